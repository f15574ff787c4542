"""EleutherAI's harness (lm_eval, optional), given a model of ours: on tasks of its own, or on the rows of an exam.

Knows: how the harness takes a task, how it is run, and what it finds. Does not know how it asks a model
(`utils.harness_model`), or flags.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from utils import evaluation, outputs, readings
from utils.assistant import Assistant
from utils.exam import Exam
from utils.readings import LETTERS
from utils.tasks import OPEN

PACKAGE, REQUIREMENTS = "lm_eval", "requirements-lm-eval.txt"
RESULTS, SAMPLES = "lm_eval.json", "lm_eval_samples.jsonl"


def missing() -> bool:
    """Whether the harness is not installed."""
    return importlib.util.find_spec(PACKAGE) is None


def require_installed() -> None:
    """`ValueError`, with the next step, where the harness is not installed."""
    if missing():
        raise ValueError(f"--lm_eval needs EleutherAI's harness: pip install -r {REQUIREMENTS}")


def wrapped(opened: Assistant, *, batch_size: int) -> Any:
    """The model as the harness takes one, a `harness_model.TrainedPrompt`."""
    from utils.harness_model import TrainedPrompt

    return TrainedPrompt(opened, batch_size=batch_size)


def rows_task(name: str, exam: Exam, *, max_new_tokens: int) -> dict[str, Any]:
    """An exam's rows as a task of the harness, called `name`: asked by it, decoded or weighed by it; texts are read by
    `utils.readings`, as the harness has no reader for several languages.

    Raises:
        ValueError: open answers, of which none is right.
    """
    kind = exam.spec.kind
    if kind == OPEN:
        raise ValueError(f"--lm_eval: task {exam.spec.title!r} has open answers, which are not right or wrong")
    task: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: {"test": _dataset(exam)},
        "test_split": "test",
        "doc_to_text": lambda doc: doc["instruction"],
        "target_delimiter": "",
    }
    if exam.is_weighed:
        return task | {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: doc["continuations"],
            "doc_to_target": lambda doc: LETTERS.index(doc["reference"].upper()),
            "metric_list": [_mean(each) for each in ("acc", "acc_norm", "acc_bytes")],
        }

    def right(doc: Mapping[str, Any], said: Sequence[str]) -> dict[str, float]:
        reading = readings.read(said[0], kind, doc["choices"])
        return {"acc": float(readings.same(kind, reading.answer, doc["reference"]))}

    return task | {
        "output_type": "generate_until",
        "doc_to_target": lambda doc: doc["reference"],
        "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False},
        "process_results": right,
        "metric_list": [_mean("acc")],
    }


def _dataset(exam: Exam) -> Any:
    # From memory: read from JSON, dates would become points in time.
    return importlib.import_module("datasets").Dataset.from_list(exam.rows())


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def run(
    model: Any, task: str | Mapping[str, Any], *, shots: int | None = None, include: Path | None = None
) -> dict[str, Any]:
    """What the harness finds: `results` by task and metric, and `samples` by task, a row each.

    Args:
        model: as `wrapped` gives it.
        task: a task of the harness by its name, or `rows_task`.
        shots: worked examples of the harness's own; None: as its task says.
        include: a folder with further tasks.

    Raises:
        ValueError: the harness has no such task.
        OSError: its data cannot be had.
    """
    evaluator, registry = (importlib.import_module(f"{PACKAGE}.{name}") for name in ("evaluator", "tasks"))
    is_ours = not isinstance(task, str)
    manager = registry.TaskManager(include_defaults=not is_ours and include is None, include_path=include)
    if isinstance(task, str) and task not in manager.all_tasks:
        raise ValueError(f"this version of lm_eval has no task {task!r}: see `lm_eval ls tasks`")
    return evaluator.simple_evaluate(
        model=model,
        tasks=[task if isinstance(task, str) else dict(task)],
        num_fewshot=shots,
        task_manager=manager,
        apply_chat_template=True,
        fewshot_as_multiturn=False,
        bootstrap_iters=0,
    )


def answers(found: Mapping[str, Any], name: str) -> list[str]:
    """What the model wrote to each row of the task `name`, in their order."""
    return [sample["resps"][0][0] for sample in _in_order(found, name)]


def _in_order(found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def lines(found: Mapping[str, Any], cut: int) -> list[str]:
    """Each metric of each task, and what is to be known of them, for people."""
    said = [
        f"lm_eval {task}: {metric.removesuffix(',none')} {value:.4f}"
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "stderr" not in metric
    ]
    return [*said, *([f"{cut:,} prompts were cut from the left to fit"] if cut else [])]


def agreement(found: Mapping[str, Any], name: str, exam: Exam, directory: Path) -> list[str]:
    """How many rows of an exam the harness finds right or wrong as we do, where `directory` has our answers to it."""
    if not (exam.is_in(directory) and (directory / evaluation.SCORES).is_file()):
        return []
    ours = evaluation.score(directory, exam.spec.kind)
    verdicts = [bool(sample["acc"]) for sample in _in_order(found, name)]
    same = sum(verdict == row.is_right(1) for verdict, row in zip(verdicts, ours, strict=True))
    line = f"as scored here: {same:,} of {len(verdicts):,} rows"
    if exam.is_weighed:
        return [line]
    alike = sum(text == "".join(row.texts) for text, row in zip(answers(found, name), ours, strict=True))
    return [f"{line}; as answered here, to the letter: {alike:,}"]


def require_free(directory: Path) -> None:
    """`ValueError` where results of the harness are there already."""
    if (directory / RESULTS).exists():
        raise ValueError(f"{directory / RESULTS} is there already: choose another --result_dir")


def write(directory: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Puts the samples and then the results into `directory`, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    samples = [{"task": task, **sample} for task, of_task in found["samples"].items() for sample in of_task]
    with outputs.atomic(directory / SAMPLES) as file:
        file.writelines(json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
    kept = {name: found.get(name) for name in ("results", "groups", "versions", "n-shot", "n-samples")}
    with outputs.atomic(directory / RESULTS) as file:
        text = json.dumps(
            {**about, PACKAGE: metadata.version(PACKAGE), **kept}, indent=2, ensure_ascii=False, default=str
        )
        file.write(text + "\n")
