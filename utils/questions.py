"""What is to be answered: one instruction, what is typed, or the rows of a file, as they are and by name.

Knows: that a row stays as it was written, and which rows ask the same. Does not know prompts, tokens or models.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils import catalog, formats, records, result_rows
from utils.formats import BadRow, not_utf8
from utils.readers import outcomes, read_rows
from utils.templates import without_answer


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of the input."""

    number: int
    """From 0."""
    id: str
    """`result_rows.row_id`: number and content."""
    raw: Mapping[str, Any]
    """The row as the file has it."""
    record: Mapping[str, Any] | None
    """As a record without its answer; None: it is none, or has fields that are ours."""
    error: str = ""
    """Why there is no record."""
    asks: int = 0
    """A hash of what is asked."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """A file of questions, read once."""

    parts: list[catalog.Part]
    rows: int
    sha256: str
    """Of the rows, as `Question.id` names them."""
    repeated: frozenset[int] = field(default_factory=frozenset)
    """What is asked more than once (`Question.asks`)."""
    unreadable: int = 0
    """Rows that are no records."""
    fault: str = ""
    """What is wrong with the first of them."""

    def __iter__(self) -> Iterator[Question]:
        return read(self.parts)


def survey(parts: list[catalog.Part]) -> Input:
    """Reads all rows once, to know how many there are and which repeat.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown ending, a broken array or table, no rows, none that can be read.
    """
    digest, asked = hashlib.sha256(), Counter[int]()
    rows = unreadable = 0
    fault = ""
    for rows, question in enumerate(read(parts), start=1):  # noqa: B007
        digest.update(question.id.encode() + b"\n")
        if question.record is not None:
            asked[question.asks] += 1
        else:
            unreadable, fault = unreadable + 1, fault or question.error
    if not rows:
        raise ValueError(f"{parts[0].path} holds no records: the file is empty")
    if unreadable == rows:
        raise ValueError(f"no row of {parts[0].path} can be asked: {fault}")
    repeated = frozenset(asks for asks, count in asked.items() if count > 1)
    return Input(
        parts=parts, rows=rows, sha256=digest.hexdigest(), repeated=repeated, unreadable=unreadable, fault=fault
    )


def read(parts: list[catalog.Part]) -> Iterator[Question]:
    """The rows of all parts, one after the other; a part's `:N` draws as in training, with seed 0, and `*W` repeats."""
    number = 0
    for part in parts:
        chosen = records.choose(part, 0)[1]
        for _ in range(part.repeat):
            for where, raw in formats.decoded(records.scan(part, chosen), part.path):
                yield _question(number, where, raw, part.path)
                number += 1


def _question(number: int, where: str, raw: Any, path: Path) -> Question:
    text = str(raw) if isinstance(raw, BadRow) else json.dumps(raw, ensure_ascii=False, default=str)
    name = result_rows.row_id(number, _sha256(text).hex()[:12])
    (row,) = outcomes([(where, raw)], path, answered=False)
    kept = raw if isinstance(raw, Mapping) else {}
    taken = [key for key in result_rows.OURS if key in kept]
    if isinstance(row, BadRow):
        return Question(number=number, id=name, raw=kept, record=None, error=str(row))
    if taken:
        problem = f"{path} {where}: it has a field {taken[0]!r} of its own, where the answer's goes: rename it"
        return Question(number=number, id=name, raw={}, record=None, error=problem)
    record = without_answer(row.record)
    asks = int.from_bytes(_sha256(json.dumps(record, ensure_ascii=False))[:8])
    return Question(number=number, id=name, raw=kept, record=record, asks=asks)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def given(
    instruction: str | None, text: str, file: Path | None
) -> Iterator[Mapping[str, Any]] | list[Mapping[str, Any]]:
    """Records without answers: of one instruction with its input, of a file's rows (its lines, of a `.txt`), or,
    without both, of what is typed, one at a time."""
    if instruction is not None:
        return [{"instruction": instruction, "input": text}]
    if file is None:
        return _typed()
    if file.suffix == ".txt":
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
        for number, line in enumerate(lines := text.splitlines(), start=1):
            if bad := not_utf8(line, "the line", f"{file} line {number}"):
                raise ValueError(str(bad))
        return [{"instruction": line, "input": ""} for line in lines if line.strip()]
    return [without_answer(row.record) for row in read_rows(file, answered=False)]


def _typed() -> Iterator[Mapping[str, Any]]:
    """Typed on the terminal (or piped in, one a line) until an empty line or the end of input."""
    prompt = "instruction> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if not line:
            return
        yield {"instruction": line, "input": ""}
