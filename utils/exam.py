"""What a task asks of a model, and the file of it: `questions.jsonl` has the records as asked, and their references.

Knows: styles, worked examples and options of a whole task, and that a directory holds the answers to one such file.
Does not know models, or how answers are scored (`utils.evaluation`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import asking, outputs
from utils.tasks import Item, TaskSpec

QUESTIONS = "questions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What is asked, and how.

    Raises:
        ValueError: as `asking.chosen_shots` and `asking.require_weighable`.
    """

    spec: TaskSpec
    items: Sequence[Item]
    style: str
    """One of `asking.STYLES`."""
    shots: int
    """Worked examples."""
    choice_by: str = asking.TEXT
    """One of `asking.CHOICE_BY`."""
    num_samples: int = 1
    seed: int = 42
    """Of the drawing, where there are several samples."""

    def __post_init__(self) -> None:
        asking.chosen_shots(self.spec, self.shots)
        if self.is_weighed:
            asking.require_weighable(self.spec, self.style, self.choice_by)

    @property
    def is_weighed(self) -> bool:
        """Whether options are weighed, and nothing is written."""
        return self.choice_by != asking.TEXT

    @property
    def left_out(self) -> int:
        """Rows without a reference, which are not asked."""
        return sum(1 for item in self.items if not item.reference)

    @property
    def text(self) -> str:
        """Of `questions.jsonl`."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())

    def is_in(self, directory: Path) -> bool:
        """Whether these questions are those of `directory`."""
        path = directory / QUESTIONS
        return path.is_file() and path.read_text(encoding="utf-8") == self.text

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `questions.jsonl`: a record each, and what it is scored by.

        Raises:
            ValueError: none has a reference.
        """
        rows = [self._row(item) for item in self.items if item.reference]
        if not rows:
            raise ValueError(f"task {self.spec.title!r} has no rows with a reference: is its file empty?")
        return rows

    def _row(self, item: Item) -> dict[str, Any]:
        spoken = asking.spoken(item)
        shots = asking.chosen_shots(self.spec, self.shots, spoken)
        record: Mapping[str, Any]
        if self.is_weighed:
            record, continuations = asking.weighed(self.spec, item, self.style, shots, self.choice_by)
            record = {**record, "continuations": continuations}
        else:
            record = asking.record(self.spec, item, self.style, shots)
        # A task in several languages that names no groups is told apart by them.
        group = spoken if len(self.spec.lang) > 1 and not self.spec.group else item.group
        return {
            **record,
            "reference": item.reference,
            "choices": list(item.choices),
            "group": group,
            "language": spoken,
            "origin": Path(item.origin).name,  # another day it may lie elsewhere
        }


def write_questions(directory: Path, exam: Exam) -> Path:
    """The file of the exam's rows, or the same file if it is there already.

    Raises:
        ValueError: no rows; a file of other questions is there.
        OSError: the directory cannot be written to.
    """
    text, path = exam.text, directory / QUESTIONS
    if path.exists():
        if not exam.is_in(directory):
            raise ValueError(
                f"{path} holds other questions than these: go on with the task file that it was made from and with "
                "its --task, --style, --shots and --choice_by, or choose another --result_dir"
            )
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with outputs.atomic(path) as file:
        file.write(text)
    return path
