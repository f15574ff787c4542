"""What a variant is trained on: its files, that no question of an evaluation is among them, and how many rows go into a
step.

Knows: mixtures, languages of questions, the words that a style adds, and the encoder's count of trained tokens. Does
not know commands or results.

Every variant has the same optimizer steps and the same number of trained tokens, so a variant with short answers has
more rows in a step. What comes out differs by less than a row a step from what was asked; the report shows both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import asking, catalog, hygiene, outputs, records, tasks
from utils.overlap import EvaluationSets, QuestionSet
from utils.scoring import language
from utils.settings import Settings
from utils.studies.experiment import Evaluation, Experiment, Rows, Variant
from utils.tasks import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a variant's steps are made of."""

    rows_a_step: int
    rows: int
    """That it is trained on, each once an epoch."""
    trained_tokens_a_row: float
    """On average."""
    tokens_a_row: float
    """On average, those of the prompt too."""

    def trained_tokens(self, steps: int) -> int:
        """That are expected of so many steps."""
        return round(steps * self.rows_a_step * self.trained_tokens_a_row)

    def positions(self, steps: int) -> float:
        """Tokens that go through the model in so many steps: what the run costs, roughly."""
        return steps * self.rows_a_step * self.tokens_a_row


def file_of(evaluation: Evaluation) -> tuple[TaskSpec, Path]:
    """An evaluation's task, and where its questions lie."""
    spec = tasks.read_tasks()[evaluation.task]
    return spec, Path(evaluation.task_file) if evaluation.task_file else tasks.DATA_DIR / spec.path


def asked_questions(experiment: Experiment) -> EvaluationSets:
    """The questions of all evaluations; errors as `tasks.items`."""
    sets: dict[str, QuestionSet] = {}
    for evaluation in experiment.evaluations.values():
        spec, path = file_of(evaluation)
        name = evaluation.task_file or evaluation.task
        questions = tuple(item.question for item in tasks.items(spec, path))
        sets[name] = QuestionSet(name=name, questions=questions, ngram=spec.ngram)
    return EvaluationSets(sets.values())


def mixtures(name: str, variant: Variant, directory: Path) -> list[str]:
    """What `--data` is given: mixtures that are trained on as they stand, and files in `directory` for the others."""
    return [
        rows.mixture if rows.is_as_it_stands else str(directory / f"{name}-{number}.jsonl")
        for number, rows in enumerate(variant.data, start=1)
    ]


def write(name: str, variant: Variant, directory: Path, *, seed: int) -> list[Path]:
    """Writes the files that `mixtures` names; one that is there with the same rows stays untouched.

    Args:
        seed: of the rows that a `:N` takes: the same ones for every run.

    Raises:
        FileNotFoundError, ValueError: data that is missing or broken; no row is in the language; a dialogue, to whose
            question nothing can be added.
    """
    written = []
    for rows, expression in zip(variant.data, mixtures(name, variant, directory), strict=True):
        if rows.is_as_it_stands:
            continue
        path = Path(expression)
        lines = list(chosen(rows, seed=seed))
        if not lines:
            raise ValueError(f"variants.{name}: no row of {rows.mixture} has a question in {rows.language!r}")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            with outputs.atomic(path) as file:
                file.write(text)
        written.append(path)
    return written


def chosen(rows: Rows, *, seed: int) -> Iterator[dict[str, Any]]:
    """The records of a part; errors as `write`."""
    for part in catalog.parse_mixture([rows.mixture]):
        for _ in range(part.repeat):
            for row in records.read_chosen(part, seed):
                asked = hygiene.prompt_of(row.record)
                if rows.language not in (None, language(asked)):
                    continue
                if rows.style == "plain":
                    yield dict(row.record)
                elif "conversation" in row.record:
                    raise ValueError(
                        f"{row.origin}: style {rows.style!r} adds words to a question, and this is a dialogue"
                    )
                else:
                    cued = asking.cued(asked, rows.style, rows.kind)
                    yield {"instruction": cued, "input": "", "output": row.record["output"]}


def require_unseen(name: str, expressions: Sequence[str], asked: EvaluationSets, *, seed: int) -> int:
    """How many rows were looked at, none of which repeats a question of `asked`.

    Raises:
        ValueError: one does; the message names both.
    """
    seen = 0
    for part in catalog.parse_mixture(expressions):
        for row in records.read_chosen(part, seed):
            seen += 1
            for prompt, answer in _exchanges(row.record):
                if task := asked.match(prompt, answer):
                    raise ValueError(
                        f"variants.{name}: {row.origin} repeats a question of {task}, which the study asks: what was "
                        "trained on proves nothing. Train on other rows, or evaluate on others"
                    )
    return seen


def _exchanges(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if "conversation" in record:
        exchanges, system = hygiene.exchanges_of(record["conversation"])
        return [*exchanges, (system, "")]
    return [(hygiene.prompt_of(record), record["output"])]


def share(experiment: Experiment, variant: Variant, chosen: Settings, tokenizer: Any) -> Share:
    """How many rows make a step of the variant's trained tokens.

    Raises:
        FileNotFoundError, ValueError, MaskError: as `dataset.of_settings`; a step has fewer trained tokens than a row.
    """
    from utils import dataset

    data = dataset.of_settings(chosen, tokenizer)
    trained = float(data.train.targets.mean())
    a_step = experiment.trained_tokens * variant.budget / experiment.steps
    if a_step < trained:
        raise ValueError(
            f"{variant.title}: a row has {trained:.0f} trained tokens, and a step only {a_step:.0f} "
            f"({experiment.trained_tokens:,} in {experiment.steps:,} steps): give more trained_tokens or fewer steps"
        )
    return Share(
        rows_a_step=round(a_step / trained),
        rows=len(data.train),
        trained_tokens_a_row=trained,
        tokens_a_row=float(data.train.lengths.mean()),
    )
