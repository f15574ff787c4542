"""A model, examined on a task: the rows are written down as they are asked, answered, scored, and reported.

Knows: which files an examination consists of, and in which order they appear: `scores.json` comes last, so a directory
that holds it is done. Does not know flags, or who answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils import catalog, distributed, evaluation, jobs
from utils.answerers import Answerer
from utils.exam import Exam, write_questions


def examine(
    directory: Path,
    exam: Exam,
    opened: Callable[[], Answerer],
    settings: Mapping[str, Any],
    *,
    who: str,
    about: Mapping[str, Any],
    retry_failed: bool,
) -> list[str]:
    """Asks one model into `directory`, or goes on there; every process calls it, and the main one gets the lines to be
    printed.

    Args:
        opened: opens who answers; called once the questions are written.
        settings: as `jobs.carry_out` takes them.
        who: names the model in the lines.
        about: what is put into `scores.json` beside the figures.

    Raises:
        FileNotFoundError, ValueError, OSError: as `exam.write_questions` and `jobs.carry_out`.
    """
    file = distributed.decided_by_main(lambda: write_questions(directory, exam))
    if retry_failed and distributed.is_main():
        evaluation.withdraw(directory)
    done = jobs.carry_out(
        directory,
        catalog.parse_mixture([str(file)]),
        opened,
        settings,
        seed=exam.seed,
        num_samples=exam.num_samples,
        long_prompts="fail",
        about=about,
        retry_failed=retry_failed,
    )
    if done is None:
        return []
    rows = evaluation.score(directory, exam.spec.kind)
    evaluation.write(directory, rows, {**about, "failed": done.failed}, exam.num_samples)
    lines = list(evaluation.report(who, rows, exam.num_samples))
    if done.failed:
        lines.append(
            f"{done.failed:,} rows failed, and count as wrong; --retry_failed asks them again. The first: "
            f"{done.errors[0]}"
        )
    return lines
