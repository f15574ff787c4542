"""A task's answers, scored: the questions' file, what the answers say, majorities, and the report.

Knows: how rows of a task become a file that predict's engine answers, how its answers are scored (`utils.readings`,
`utils.similarity`), groups, and votes among several answers (self-consistency, Wang et al. 2022, arXiv:2203.11171).
Does not know models, flags or terminals.

`questions.jsonl` holds the records as they were asked, with their references; `predictions.jsonl` beside it the
answers; `scored.jsonl` what each was read as, and `scores.json` the figures, which these files give again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils import asking, outputs, readings, result_rows, scoring, similarity
from utils.readings import Audit, Reading
from utils.scoring import Accuracy
from utils.tasks import OPEN, Item, TaskSpec

QUESTIONS, SCORED, SCORES = "questions.jsonl", "scored.jsonl", "scores.json"
UNREAD = Reading(None, "unread")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A row's answers against its reference."""

    row: str
    """`result_rows.row_id`."""
    group: str
    language: str
    """Of the question: `en` or `cn`."""
    reference: str
    texts: tuple[str, ...]
    """Empty where the row failed."""
    readings: tuple[Reading, ...]
    """One for each text, at least one; empty for an open answer."""
    kind: str

    def is_right(self, k: int) -> bool:
        """Whether what most of the first `k` answers say is the reference."""
        return readings.same(self.kind, vote(self.readings[:k], self.kind), self.reference)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """A mean over rows, 0 to 1."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """0 without rows."""
        return sum(self.values) / len(self.values) if self.values else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, from the standard error; (0, 1) for fewer than two rows."""
        total = len(self.values)
        if total < 2:
            return 0.0, 1.0
        variance = sum((value - self.mean) ** 2 for value in self.values) / (total - 1)
        margin = scoring.Z_95 * math.sqrt(variance / total)
        return max(0.0, self.mean - margin), min(1.0, self.mean + margin)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:6.1%}  ({len(self.values)} rows, 95 % interval {low:.1%} to {high:.1%})"


LIKENESSES: Mapping[str, Callable[[str, str], float]] = {"ROUGE-L": similarity.rouge_l, "chrF": similarity.chrf}


def write_questions(directory: Path, spec: TaskSpec, items: Iterable[Item], style: str, shots: int) -> Path:
    """The file of a task's rows as they are asked, or the same file if it is there already.

    Raises:
        FileNotFoundError, ValueError: as `tasks.items`, `asking.chosen_shots` and `asking.record`; no rows; a file of
            other questions is there.
        OSError: the directory cannot be written to.
    """
    examples = asking.chosen_shots(spec, shots)
    lines = [
        json.dumps(
            {
                **asking.record(spec, item, style, examples),
                "reference": item.reference,
                "choices": list(item.choices),
                "group": item.group or _group(spec, item),
                "language": asking.spoken(item),
                "origin": Path(item.origin).name,  # another day it may lie elsewhere
            },
            ensure_ascii=False,
        )
        for item in items
        if item.reference
    ]
    if not lines:
        raise ValueError(f"task {spec.title!r} has no rows with a reference: is its file empty?")
    text, path = "".join(f"{line}\n" for line in lines), directory / QUESTIONS
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{path} holds other questions than these: go on with the --task, --task_file, --shots and --style "
                "that it was made with, or choose another --result_dir"
            )
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with outputs.atomic(path) as file:
        file.write(text)
    return path


def _group(spec: TaskSpec, item: Item) -> str:
    """Of a row that names none: its language, where a task that names no groups has several."""
    return asking.spoken(item) if len(spec.lang) > 1 and not spec.group else ""


def score(directory: Path, kind: str) -> list[Scored]:
    """The rows of a directory that `jobs.carry_out` has filled, in order."""
    return [_scored(line, kind) for line in result_rows.Results.found(directory).lines()]


def _scored(line: Mapping[str, Any], kind: str) -> Scored:
    texts: Sequence[str] = ()
    if line["finish_reason"] != result_rows.FAILED:
        texts = line["generate"] if isinstance(line["generate"], list) else [line["generate"]]
    found = () if kind == OPEN else tuple(readings.read(text, kind, line["choices"]) for text in texts) or (UNREAD,)
    return Scored(
        row=line[result_rows.ROW],
        group=line["group"],
        language=line["language"],
        reference=line["reference"],
        texts=tuple(texts),
        readings=found,
        kind=kind,
    )


def vote(found: Sequence[Reading], kind: str) -> str | None:
    """What most of the readings say; of equally many the one that was said first; None where none could be read.

    >>> vote([Reading("2", "bare"), UNREAD, Reading("1/2", "bare"), Reading("0.5", "bare")], "number")
    '1/2'
    """
    counts: dict[str, int] = {}
    for reading in found:
        if reading.answer is not None:
            said = next((each for each in counts if readings.same(kind, reading.answer, each)), reading.answer)
            counts[said] = counts.get(said, 0) + 1
    return max(counts, key=lambda said: counts[said]) if counts else None


def accuracy(rows: Sequence[Scored], k: int) -> Accuracy:
    """Of the majority of each row's first `k` answers; a row of which none could be read is unread, and wrong."""
    return Accuracy(
        correct=sum(row.is_right(k) for row in rows),
        total=len(rows),
        unread=sum(all(reading.answer is None for reading in row.readings[:k]) for row in rows),
    )


def likeness(rows: Sequence[Scored], measure: Callable[[str, str], float]) -> Likeness:
    """The mean over all rows, of each row's mean over its answers; a row that failed counts as 0."""
    means = (
        sum(measure(text, row.reference) for text in row.texts) / len(row.texts) if row.texts else 0.0 for row in rows
    )
    return Likeness(values=tuple(means))


def groups(rows: Sequence[Scored]) -> dict[str, list[Scored]]:
    """The rows by group, most rows first; empty where the task has no groups."""
    found: dict[str, list[Scored]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return {} if set(found) == {""} else dict(sorted(found.items(), key=lambda each: (-len(each[1]), each[0])))


def report(who: str, rows: Sequence[Scored], kind: str, num_samples: int) -> Iterator[str]:
    """Lines: the score in all, how the answers were read, the majority's curve, and the score by group."""
    parts = {"all": rows, **groups(rows)}
    width = max(map(len, [*parts, f"maj@{num_samples}"]))
    if kind == OPEN:
        for name, measure in LIKENESSES.items():
            for part, members in parts.items():
                yield f"{part:>{width}} {who:>8} {name:>7}: {likeness(members, measure)}"
        return
    for part, members in parts.items():
        yield f"{part:>{width}} {who:>8}: {accuracy(members, num_samples)}"
    yield f"{'read':>{width}} {who:>8}: {Audit.of(reading for row in rows for reading in row.readings)}"
    for k in range(1, num_samples + 1) if num_samples > 1 else ():
        yield f"{f'maj@{k}':>{width}} {who:>8}: {accuracy(rows, k)}"


def figures(rows: Sequence[Scored], kind: str, num_samples: int) -> dict[str, Any]:
    """What `report` says, as values: shares from 0 to 1."""
    if kind == OPEN:
        measures = {
            name: {
                part: {"mean": found.mean, "interval": found.interval, "rows": len(found.values)}
                for part, members in {"all": rows, **groups(rows)}.items()
                if (found := likeness(members, measure))
            }
            for name, measure in LIKENESSES.items()
        }
        return {"likeness": measures}
    return {
        **_figure(accuracy(rows, num_samples)),
        "read": asdict(Audit.of(reading for row in rows for reading in row.readings)),
        "groups": {name: _figure(accuracy(members, num_samples)) for name, members in groups(rows).items()},
        "majority": {str(k): _figure(accuracy(rows, k)) for k in range(1, num_samples + 1)},
    }


def _figure(found: Accuracy) -> dict[str, Any]:
    return {**asdict(found), "accuracy": found.value, "interval": found.interval}


def withdraw(directory: Path) -> None:
    """Takes the scores away, where rows are asked again: what is there counts as done."""
    (directory / SCORES).unlink(missing_ok=True)


def write(directory: Path, rows: Sequence[Scored], about: Mapping[str, Any], kind: str, num_samples: int) -> None:
    """Puts `scored.jsonl` and then `scores.json` beside the answers, each whole or not at all."""
    with outputs.atomic(directory / SCORED) as file:
        outputs.write_records((_line(row, num_samples) for row in rows), file, array=False)
    with outputs.atomic(directory / SCORES) as file:
        text = json.dumps({**about, **figures(rows, kind, num_samples)}, indent=2, ensure_ascii=False)
        file.write(text + "\n")


def _line(row: Scored, num_samples: int) -> dict[str, Any]:
    names = ("group", "language", "reference")
    line = {result_rows.ROW: row.row, **{name: getattr(row, name) for name in names}}
    if row.kind == OPEN:
        return line | {
            name: [measure(text, row.reference) for text in row.texts] for name, measure in LIKENESSES.items()
        }
    read = [asdict(reading) for reading in row.readings]
    return line | {"answers": read, "answer": vote(row.readings, row.kind), "right": row.is_right(num_samples)}


def shown(directories: Mapping[str, Path], count: int, kind: str) -> Iterator[str]:
    """Lines with the first `count` questions, their references and the answers of each model."""
    rows = {who: score(directory, kind)[:count] for who, directory in directories.items()}
    asked = [line["instruction"] for line in result_rows.Results.found(next(iter(directories.values()))).lines()][
        :count
    ]
    for number, question in enumerate(asked):
        yield f"question: {question}"
        for who, found in rows.items():
            row = found[number]
            verdict = "" if kind == OPEN else "right" if row.is_right(len(row.readings)) else "wrong, it is "
            said = " | ".join(row.texts) or "(failed)"
            yield f"  {who:>8}: {said}  [{verdict}{'' if verdict == 'right' else row.reference}]"
        yield ""
