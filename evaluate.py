"""Accuracy, with its interval: on an evaluation task, or on held-out records.

    python3 evaluate.py --lora_dir my_run --task gsm8k --style cot --shots 4 --result_dir my_gsm8k
    python3 evaluate.py --lora_dir my_run --task aqua --task_file my_aqua.json --num_samples 8 --result_dir my_aqua
    python3 evaluate.py --lora_dir my_run --task mmlu --choice_by loglikelihood --result_dir my_mmlu
    python3 evaluate.py --model_name_or_path my_base --model_type llama --task cot_sample_test --result_dir base_alone
    python3 evaluate.py --lora_dir saved_models/tiny_base_cot_sample --data cot_sample_test --compare_base --show 4

--task: rows of data/tasks.toml, asked in a style and read by the task's type; the same command goes on where it was
stopped. --data: does the answer say what the record's own announces ("The answer is …", "答案是…")? Answers are decoded
greedily, but for --num_samples, in the prompt that the run was trained with. Intervals are at 95 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import catalog, cli, exam_flags, outputs, records
from utils.exam import Exam
from utils.templates import without_answer

if TYPE_CHECKING:
    from utils.answerers import Answerer


def make_parser() -> cli.Parser:
    return exam_flags.make_parser(__doc__)


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    exam_flags.require_sensible(parser, flags)
    if flags.task:
        exam = exam_flags.exam_of(parser, flags)
        return by_harness(flags, exam) if flags.lm_eval else on_task(flags, exam)
    try:
        parts = catalog.parse_mixture(flags.data)
    except ValueError as error:
        parser.error(str(error))
    return on_records(flags, parts)


def on_records(flags: argparse.Namespace, parts: Sequence[catalog.Part]) -> int:
    """Records with answers of their own."""
    from utils import assistant, distributed, held_out, loading

    rows = [row for part in parts for row in records.read_chosen(part, seed=0)]
    for row in rows:
        held_out.reference(row)  # what cannot be compared is said before anything is decoded

    loading.quiet_libraries()
    distributed.set_threads()
    opened = assistant.open_run(flags.lora_dir, **cli.loading_wishes(flags))
    settings = cli.greedy_settings(flags.max_new_tokens)
    questions = [without_answer(row.record) for row in rows]
    scored = {}
    for name, adapter in (("base", assistant.BASE), (named(flags), None))[not flags.compare_base :]:
        found = opened.answers(questions, settings, adapter=adapter, batch_size=flags.batch_size)
        scored[name] = held_out.score(rows, [answer.text for answer in found])
    print("\n".join([*held_out.shown(rows, scored, flags.show), *held_out.report(scored)]))
    if flags.output:
        with outputs.atomic(flags.output) as file:
            outputs.write_records(held_out.transcripts(rows, scored), file, array=False)
        print(f"answers: {flags.output}")
    return 0


def named(flags: argparse.Namespace) -> str:
    """Who answers, in a word."""
    return "server" if flags.api_base else "adapter" if flags.lora_dir else "model"


def on_task(flags: argparse.Namespace, exam: Exam) -> int:
    """Rows of a task, answered by predict's engine."""
    from utils import distributed, evaluation, examination, exposure, loading

    loading.quiet_libraries()
    distributed.start()
    settings, about = exam_flags.decoding_of(flags), exam_flags.about(flags)
    directories = {"base": flags.result_dir / "base"} if flags.compare_base else {}
    directories[named(flags)] = flags.result_dir
    place = Path(flags.lora_dir or flags.model_name_or_path)
    trained_on = exposure.exposure(place, flags.task, exam, own_file=not flags.task_file)
    about["rows_trained_on"] = trained_on.rows
    lines = []
    for who, directory in directories.items():
        lines += examination.examine(
            directory,
            exam,
            lambda who=who: who_answers(flags, settings, base=who == "base"),
            settings,
            who=who,
            about=about | {"who": who},
            retry_failed=flags.retry_failed,
        )
    if distributed.is_main():
        lines += trained_on.lines(flags.task)
        lines += [f"{exam.left_out:,} rows without a reference were left out"] if exam.left_out else []
        print("\n".join([*evaluation.shown(directories, flags.show, exam.spec.kind), *lines]))
        print(f"answers and scores: {flags.result_dir}")
    distributed.leave()
    return 0


def who_answers(flags: argparse.Namespace, settings: Mapping[str, Any], *, base: bool) -> Answerer:
    """Opens the model, or a server."""
    from utils import answerers

    how: dict[str, Any] = {"batch_size": flags.batch_size, "wishes": cli.loading_wishes(flags), "merge": True}
    if not settings:
        return answerers.weighing(flags.lora_dir, base=base, **how)
    server = cli.server_wishes(flags)
    return answerers.asked_for(flags.lora_dir, settings, stop=[], cut=False, server=server, base=base, **how)


def by_harness(flags: argparse.Namespace, exam: Exam) -> int:
    """A task of EleutherAI's harness, or the exam's rows as one."""
    from utils import assistant, distributed, harness, loading

    harness.require_installed()
    harness.require_free(flags.result_dir)
    loading.quiet_libraries()
    distributed.set_threads()
    own, rows = exam_flags.by_harness(flags, exam), f"rows_of_{flags.task}"
    task = own or harness.rows_task(rows, exam, max_new_tokens=flags.max_new_tokens)
    opened = assistant.open_run(flags.lora_dir, merge=True, **cli.loading_wishes(flags))
    model = harness.wrapped(opened, batch_size=flags.batch_size)
    found = harness.run(model, task, shots=flags.shots or None if own else None)
    harness.write(flags.result_dir, found, exam_flags.about(flags) | {"cut": model.cut})
    lines = harness.lines(found, model.cut)
    lines += [] if own else harness.agreement(found, rows, exam, flags.result_dir)
    print("\n".join([*lines, f"results and samples: {flags.result_dir}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
