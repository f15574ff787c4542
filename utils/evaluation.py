"""Answers, scored: what they say, majorities, options by their likelihood, groups, and the report.

Knows: how answers are scored (`utils.readings`, `utils.similarity`), votes among several answers (self-consistency,
Wang et al. 2022, arXiv:2203.11171), and the three ways of comparing likelihoods that EleutherAI's harness has. Does not
know models, flags or terminals.

`predictions.jsonl` holds the answers, `scored.jsonl` what each was read as, and `scores.json` the figures, which these
files give again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils import outputs, readings, result_rows, scoring, similarity
from utils.readings import LETTERS, UNREAD, Audit, Reading
from utils.scoring import Accuracy
from utils.tasks import OPEN

SCORED, SCORES = "scored.jsonl", "scores.json"


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
    """One for each text, at least one; empty for an open answer, and for options that were weighed."""
    kind: str
    weighed: Mapping[str, str] = field(default_factory=dict)
    """Of options that were weighed: a name of `WEIGHTS` → the letter that it finds best."""

    def answer(self, k: int) -> str | None:
        """What most of the first `k` answers say, or the likeliest option; None where there is none."""
        return self.weighed["acc"] if self.weighed else vote(self.readings[:k], self.kind)

    def is_right(self, k: int) -> bool:
        """Whether `answer` is the reference."""
        return readings.same(self.kind, self.answer(k), self.reference)


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
# As lm_eval/api/task.py has them: `acc_norm` is by characters there, `acc_bytes` by bytes.
WEIGHTS: Mapping[str, Callable[[str], int]] = {
    "acc": lambda text: 1,
    "acc_norm": len,
    "acc_bytes": lambda text: len(text.encode("utf-8")),
}
"""A way of comparing options → what an option's log-likelihood is divided by; of equally good ones the first counts."""
Measure = Callable[[Sequence[Scored]], Accuracy | Likeness]


def score(directory: Path, kind: str) -> list[Scored]:
    """The rows of a directory that `jobs.carry_out` has filled, in order."""
    return [_scored(line, kind) for line in result_rows.Results.found(directory).lines()]


def _scored(line: Mapping[str, Any], kind: str) -> Scored:
    texts: Sequence[str] = ()
    if line["finish_reason"] != result_rows.FAILED:
        texts = line["generate"] if isinstance(line["generate"], list) else [line["generate"]]
    weighed = best(line["continuations"], line["loglikelihoods"]) if "loglikelihoods" in line else {}
    found: tuple[Reading, ...] = ()
    if kind != OPEN and "continuations" not in line:
        found = tuple(readings.read(text, kind, line["choices"]) for text in texts) or (UNREAD,)
    return Scored(
        row=line[result_rows.ROW],
        group=line["group"],
        language=line["language"],
        reference=line["reference"],
        texts=tuple(texts),
        readings=found,
        kind=kind,
        weighed=weighed,
    )


def best(continuations: Sequence[str], loglikelihoods: Sequence[float]) -> dict[str, str]:
    """The letter of the best option, by each of `WEIGHTS`.

    >>> best(["五十", "no"], [-6.0, -3.5])
    {'acc': 'b', 'acc_norm': 'b', 'acc_bytes': 'a'}
    """
    places = range(len(continuations))
    return {
        name: LETTERS[max(places, key=lambda i: loglikelihoods[i] / size(continuations[i]))].lower()
        for name, size in WEIGHTS.items()
    }


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


def weighed_accuracy(rows: Sequence[Scored], name: str) -> Accuracy:
    """Of options that were weighed, compared as `name` of `WEIGHTS` does; a row that failed is wrong."""
    return Accuracy(
        correct=sum(row.weighed.get(name) == row.reference for row in rows),
        total=len(rows),
        unread=sum(not row.weighed for row in rows),
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


def measures(rows: Sequence[Scored], num_samples: int) -> dict[str, Measure]:
    """What rows like these are scored by; the first one counts, and has no name where it is the only one."""
    if any(row.kind == OPEN for row in rows):
        return {name: lambda rows, each=each: likeness(rows, each) for name, each in LIKENESSES.items()}
    if any(row.weighed for row in rows):
        return {name: lambda rows, name=name: weighed_accuracy(rows, name) for name in WEIGHTS}
    return {"": lambda rows: accuracy(rows, num_samples)}


def report(who: str, rows: Sequence[Scored], num_samples: int) -> Iterator[str]:
    """Lines: the score in all and by group, how the answers were read, and the majority's curve."""
    parts, found = {"all": rows, **groups(rows)}, measures(rows, num_samples)
    width = max(map(len, [*parts, f"maj@{num_samples}"]))
    for name, measure in found.items():
        for part, members in parts.items():
            yield f"{part:>{width}} {who:>8}{f' {name:>9}' if name else ''}: {measure(members)}"
    if list(found) != [""]:
        return
    yield f"{'read':>{width}} {who:>8}: {Audit.of(reading for row in rows for reading in row.readings)}"
    for k in range(1, num_samples + 1) if num_samples > 1 else ():
        yield f"{f'maj@{k}':>{width}} {who:>8}: {accuracy(rows, k)}"


def figures(rows: Sequence[Scored], num_samples: int) -> dict[str, Any]:
    """What `report` says, as values: shares from 0 to 1; the first measure's by themselves, the others' by name."""

    def parts(measure: Measure) -> dict[str, Any]:
        return {**_figure(measure(rows)), "groups": {name: _figure(measure(of)) for name, of in groups(rows).items()}}

    (first, measure), *others = measures(rows, num_samples).items()
    found = {"measure": first or "accuracy", **parts(measure), **{name: parts(each) for name, each in others}}
    if first:
        return found
    return found | {
        "read": asdict(Audit.of(reading for row in rows for reading in row.readings)),
        "majority": {str(k): _figure(accuracy(rows, k)) for k in range(1, num_samples + 1)},
    }


def _figure(found: Accuracy | Likeness) -> dict[str, Any]:
    if isinstance(found, Likeness):
        return {"mean": found.mean, "interval": found.interval, "total": len(found.values)}
    return {**asdict(found), "accuracy": found.value, "interval": found.interval}


def withdraw(directory: Path) -> None:
    """Takes the scores away, where rows are asked again: what is there counts as done."""
    (directory / SCORES).unlink(missing_ok=True)


def write(directory: Path, rows: Sequence[Scored], about: Mapping[str, Any], num_samples: int) -> None:
    """Puts `scored.jsonl` and then `scores.json` beside the answers, each whole or not at all."""
    with outputs.atomic(directory / SCORED) as file:
        outputs.write_records((_line(row, num_samples) for row in rows), file, array=False)
    with outputs.atomic(directory / SCORES) as file:
        file.write(json.dumps({**about, **figures(rows, num_samples)}, indent=2, ensure_ascii=False) + "\n")


def _line(row: Scored, num_samples: int) -> dict[str, Any]:
    names = ("group", "language", "reference")
    line = {result_rows.ROW: row.row, **{name: getattr(row, name) for name in names}}
    if row.kind == OPEN:
        return line | {
            name: [measure(text, row.reference) for text in row.texts] for name, measure in LIKENESSES.items()
        }
    answer, read = row.answer(num_samples), [asdict(reading) for reading in row.readings]
    if row.weighed:
        line, read = line | {"best": row.weighed}, [{"answer": answer, "how": "weighed"}]
    return line | {"answers": read, "answer": answer, "right": row.is_right(num_samples)}


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
