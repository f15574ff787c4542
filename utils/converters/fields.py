"""Single exchanges under other names: one object a row, of which one key asks, one gives and one answers.

The names and who uses them stand in the tables below. Checked on real files of code_alpaca (`output`), GPTeacher
(`response`), BELLE's evaluation set (`question`, `std_answer`), InstructionWild's user questions (no answer at all) and
the original project's unified files. From documentation only (unverified): dolly (`context`, `response`; its page in
the TensorFlow Datasets catalogue). With no document seen (unverified): firefly (`kind`, `input`, `target`), xP3 and
FLAN-Muffin (`inputs`, `targets`), GPT4All and swype/instruct (`prompt`, `response` or `completion`), alpaca,
alpaca_data_cleaned, Alpaca-GPT4, BELLE and finance (`instruction`, `input`, `output`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from utils import formats
from utils.converters.contract import (
    Converter,
    Dropped,
    Options,
    Outcome,
    instruction,
    mapping,
    optional_text,
    shorten,
    text,
)

# In each the first name that a row has is taken. `input` asks only where nothing else does (firefly).
ASKS = ("instruction", "prompt", "question", "inputs", "input")
GIVES = ("input", "context")
ANSWERS = ("output", "response", "answer", "completion", "targets", "target", "std_answer")


def convert(raw: Any, options: Options) -> Iterator[Outcome]:
    """One row; keys that are in no table say nothing that is trained on."""
    row = mapping(raw)
    asks = _first(row, ASKS)
    if asks is None:
        raise ValueError(f"expected one of the keys {', '.join(ASKS)}, found {shorten(', '.join(row) or 'none')}")
    gives, answers = _first(row, GIVES), _first(row, ANSWERS)
    asked = text(row, asks)
    given = optional_text(row, gives) if gives and gives != asks else ""
    yield instruction(asked, given, text(row, answers)) if answers else Dropped("no output")


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


CONVERTER = Converter(what="instruction, input and output under any of their names", read=formats.read, convert=convert)
