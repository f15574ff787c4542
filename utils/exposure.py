"""Whether a run was trained on the questions that it is asked.

Knows: a run's data, as far as its files are still here and are the same, and which tasks its rows were held against.
Does not know what is made of it: who asks says it, and a study refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils import cache, formats, overlap, readers, runinfo
from utils.exam import Exam
from utils.templates import to_messages

MOST_ROWS = 100_000
"""Rows that are read for it: some seconds."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What is known of it."""

    rows: int | None
    """Of its data, those that repeat a question; None: they were not looked at."""
    reason: str = ""
    """Why not; empty where there is no run to tell of any data."""

    def lines(self, name: str) -> list[str]:
        """What there is to say; nothing where nothing repeats."""
        if self.reason:
            return [f"whether it was trained on questions of {name} was not looked at: {self.reason}"]
        if not self.rows:
            return []
        return [f"WARNING: {self.rows:,} rows of its training data repeat questions of {name}: no held-out score"]


def exposure(directory: Path, name: str, exam: Exam, *, own_file: bool) -> Exposure:
    """How many rows of the run's data repeat questions of the exam.

    Args:
        directory: of the run, an adapter or a model; without `run.json` nothing is known of its data.
        name: the task's.
        own_file: whether the exam's rows are those of the task's own file, which rows are dropped for by default.
    """
    if not (directory / runinfo.NAME).is_file():
        return Exposure(rows=None)
    run = runinfo.read(directory)
    is_dropped = "evaluation_overlap" not in run.settings.get("keep", [])
    notes = run.ledger.get("notes", [])
    if own_file and is_dropped and any(name in overlap.held_against(note) for note in notes):
        return Exposure(rows=0)
    total = sum(source["rows"] for source in run.sources)
    if total > MOST_ROWS:
        return Exposure(rows=None, reason=f"its data have {total:,} rows, more than {MOST_ROWS:,}")
    paths = [Path(source["path"]) for source in run.sources]
    for path, source in zip(paths, run.sources, strict=True):
        if not path.exists() or cache.content_hash(path) != source["sha256"]:
            return Exposure(rows=None, reason=f"{path} is not here, or is another than it was")
    asked = overlap.QuestionSet(name=name, questions=tuple(item.question for item in exam.items), ngram=exam.spec.ngram)
    found = overlap.EvaluationSets([asked])
    count = 0
    for path in paths:
        for row in readers.outcomes(formats.scan(path), path):
            if not isinstance(row, formats.BadRow):
                count += any(found.match(message["content"]) for message in to_messages(row.record))
    return Exposure(rows=count)
