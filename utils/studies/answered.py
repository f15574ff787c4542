"""What the models of a study answered, as evaluate.py left it.

Knows: the lines of `scored.jsonl`, and how right each is. Does not know which variant answered, nor what follows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALL = "all"
"""The group of all questions, beside those of a language."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one line answered to one evaluation, in the order of the questions."""

    directory: Path
    lines: tuple[Mapping[str, Any], ...]
    """Of `scored.jsonl`."""

    @property
    def values(self) -> list[float]:
        """1 and 0 for right and wrong; of open answers the mean ROUGE-L of each."""
        return [float(line["right"]) if "right" in line else mean(line["ROUGE-L"]) for line in self.lines]

    @property
    def is_exact(self) -> bool:
        """Whether answers are right or wrong."""
        return all("right" in line for line in self.lines)

    def is_unread(self, place: int) -> bool:
        """Whether an answer that is right or wrong could not be read."""
        line = self.lines[place]
        return "right" in line and line["answer"] is None

    def among(self, group: str) -> list[int]:
        """The places of a group's questions."""
        return [place for place, line in enumerate(self.lines) if group in (ALL, line["language"])]


def mean(values: Sequence[float]) -> float:
    """0 for none."""
    return sum(values) / len(values) if values else 0.0


def read_answers(directory: Path) -> Answers:
    """What evaluate.py wrote to `directory`."""
    text = (directory / "scored.jsonl").read_text(encoding="utf-8")
    return Answers(directory=directory, lines=tuple(json.loads(line) for line in text.splitlines()))
