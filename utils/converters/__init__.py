"""Upstream formats → unified records: the registry, one row for each format.

Knows: which converter has which name, and that every raw row has an outcome: a record that is valid, or a reason why
there is none. Does not know which dataset comes in which format (the catalogue does), nor where records are written
(`utils.conversion`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import lookup
from utils.converters import answers, dialogue_text, dialogues, exams, fields, flan_cot, math_cot, tasks
from utils.converters.contract import Converter, Dropped, Options, Outcome, Record, as_text, describe

__all__ = ["CONVERTERS", "Converter", "Dropped", "Options", "Outcome", "Record", "convert", "find", "outcomes"]

CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        "flan_cot_tsv": flan_cot.CONVERTER,
        "gsm8k": math_cot.GSM8K,
        "aqua": math_cot.AQUA,
        "fields": fields.CONVERTER,
        "sharegpt": dialogues.SHAREGPT,
        "dialogue_text": dialogue_text.CONVERTER,
        "moss": dialogues.MOSS,
        "answers": answers.CONVERTER,
        "self_instruct": tasks.SELF_INSTRUCT,
        "gaokao": exams.GAOKAO,
        "camel": dialogues.CAMEL,
        "stack_exchange": answers.STACK_EXCHANGE,
        "coig": exams.COIG,
        "prosocial": dialogues.PROSOCIAL,
        "ultrachat": dialogues.ULTRACHAT,
        "natural_instructions": tasks.NATURAL_INSTRUCTIONS,
    }
)


def find(name: str) -> Converter:
    """The converter of that name; a `ValueError` with the nearest names where there is none."""
    return lookup.find("converter", name, CONVERTERS)


def convert(name: str, path: Path, options: Options | None = None) -> Iterator[tuple[str, Outcome]]:
    """Every outcome of a file with where it comes from (`file line N`), in the file's order.

    Raises (while it is read):
        FileNotFoundError: no such file.
        ValueError: an unknown converter; a row that is not in the format, with file, row, what was expected and found.
    """
    for where, _, outcome in outcomes(name, path, options or Options()):
        yield f"{path} {where}", outcome


def outcomes(name: str, path: Path, options: Options) -> Iterator[tuple[str, Any, Outcome]]:
    """As `convert`, with the place inside the file and the raw row."""
    converter = find(name)
    options = converter.complete(path, options)
    for where, raw in converter.read(path):
        try:
            found = list(converter.convert(raw, options))
            for outcome in found:
                _check(outcome)
        except ValueError as error:
            raise ValueError(f"{path} {where}: {error}") from error
        assert found, f"{path} {where}: the converter {name} lost the row"
        for outcome in found:
            yield where, raw, outcome


def _check(outcome: Outcome) -> None:
    """A record has the unified shape; its text can be written as UTF-8."""
    if isinstance(outcome, Dropped):
        return
    if "conversation" not in outcome:
        assert list(outcome) == ["instruction", "input", "output"], list(outcome)
        for key, value in outcome.items():
            as_text(value, repr(key))
        return
    assert list(outcome) == ["conversation"], list(outcome)
    turns = outcome["conversation"]
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    assert spoken == ["user", "assistant"] * (len(spoken) // 2), describe(turns)
    assert spoken, "a dialogue without turns"
    for number, turn in enumerate(turns, start=1):
        as_text(turn["content"], f"turn {number}")
