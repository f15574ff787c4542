"""Raw rows become unified records: recognising each shape and refusing what is none.

Knows: the shapes that records come in. Does not know file formats (`utils.formats`), catalogue keys, mixtures or
splits. Every row that leaves here is a unified record (`docs/design.md`): `{"instruction", "input", "output"}` or
`{"conversation": [{"role", "content"}, …]}`; anything else is an error that names the file, the row, the key and what
was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import formats
from utils.formats import LONGEST_ROW, BadRow, too_long

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A unified record and where it came from."""

    record: Mapping[str, Any]
    origin: str
    """`file row N`, counted from 1, as error messages give it."""
    source: str = ""
    """The part of the mixture it belongs to."""
    shape: str = ""
    """How it was written in its file, a name of `SHAPES`."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A way to write a record: recognised by its keys, turned into the unified one."""

    keys: tuple[str, ...]
    to_record: Callable[[Mapping[str, Any]], dict[str, Any]]

    def fits(self, raw: Mapping[str, Any]) -> bool:
        """Whether `raw` has all its keys."""
        return all(key in raw for key in self.keys)


def read_rows(path: Path, *, answered: bool = True) -> Iterator[Row]:
    """The rows of `path` as unified records, one at a time.

    Args:
        answered: whether a row must bring an output; without, a missing one is read as empty.

    Raises (while it is read):
        FileNotFoundError: no such file.
        BadRow: the first row that cannot be read, or lacks a field or holds something else than text in it.
        ValueError: an unreadable or empty file.
    """
    row = None
    for row in outcomes(formats.scan(path), path, answered=answered):
        if isinstance(row, BadRow):
            raise row
        yield row
    if row is None:
        raise ValueError(f"{path} holds no records: the file is empty")


def outcomes(
    raws: Iterable[formats.RawRow], path: Path, *, answered: bool = True, source: str = ""
) -> Iterator[Row | BadRow]:
    """What `formats.scan` gave of `path`, each as its unified record, or as what is wrong with it."""
    for where, raw in formats.decoded(raws, path):
        if isinstance(raw, BadRow):
            yield raw
            continue
        try:
            row = _row(raw, f"{path} {where}", answered=answered, source=source)
        except BadRow as bad:
            row = bad
        yield row


def _row(raw: Any, origin: str, *, answered: bool, source: str) -> Row:
    if not isinstance(raw, Mapping):
        expected = "expected an object with instruction, input and output"
        raise BadRow(origin, "no object", f"{expected}, found {kind(raw)}")
    if not answered:
        raw = _with_empty_answer(raw)
    shape = _recognise(raw, origin)
    record = SHAPES[shape].to_record(_required(raw, SHAPES[shape], origin))
    check_record(record, origin, answered=answered)
    return Row(record=record, origin=origin, source=source, shape=shape)


def _instruction(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = raw.get("input")  # null in a Parquet file means that there is none
    return {"instruction": raw["instruction"], "input": "" if given is None else given, "output": raw["output"]}


def _turns(turns: Any, role_key: str, text_key: str) -> dict[str, Any]:
    """A list of turns under other names; what is not a turn is left as it is, for `check_record` to refuse."""
    names = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}
    if not isinstance(turns, list):
        return {"conversation": turns}
    return {
        "conversation": [
            {"role": names.get(str(turn.get(role_key)), turn.get(role_key)), "content": turn.get(text_key)}
            if isinstance(turn, Mapping)
            else turn
            for turn in turns
        ]
    }


# In this order: a row that has the keys of several is the first of them.
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "instruction/input/output": Shape(keys=("instruction", "output"), to_record=_instruction),
        "conversation": Shape(
            keys=("conversation",), to_record=lambda raw: _turns(raw["conversation"], "role", "content")
        ),
        "messages": Shape(keys=("messages",), to_record=lambda raw: _turns(raw["messages"], "role", "content")),
        "ShareGPT": Shape(keys=("conversations",), to_record=lambda raw: _turns(raw["conversations"], "from", "value")),
        "prompt/completion": Shape(
            keys=("prompt", "completion"),
            to_record=lambda raw: {"instruction": raw["prompt"], "input": "", "output": raw["completion"]},
        ),
        "question/answer": Shape(
            keys=("question", "answer"),
            to_record=lambda raw: {"instruction": raw["question"], "input": "", "output": raw["answer"]},
        ),
    }
)


def _recognise(raw: Mapping[str, Any], origin: str) -> str:
    for name, shape in SHAPES.items():
        if shape.fits(raw):
            return name
    if "instruction" in raw:
        problem = "'output' is missing; a record has instruction, input (may be empty) and output"
        raise BadRow(origin, "a field is missing", problem)
    known = "; ".join(", ".join(shape.keys) for shape in SHAPES.values())
    keys = ", ".join(map(str, raw)) or "(none)"
    raise BadRow(origin, "no known shape", f"its keys are {keys}; a record has one of: {known}")


def _with_empty_answer(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = [keys[1] for keys in (s.keys for s in SHAPES.values()) if len(keys) == 2 and keys[0] in raw]
    return {**dict.fromkeys(missing, ""), **raw}


def _required(raw: Mapping[str, Any], shape: Shape, origin: str) -> Mapping[str, Any]:
    for key in shape.keys:
        if raw[key] is None:
            raise BadRow(origin, "not text", f"{key!r} must be text, found null")
    return raw


def check_record(record: Mapping[str, Any], origin: str, *, answered: bool) -> None:
    """`BadRow` unless every field is text that can be written as UTF-8, without NUL, and a dialogue's turns are in an
    order that can be trained.

    Args:
        answered: whether it must bring its output, or end with the assistant's turn.
    """
    if "conversation" not in record:
        for key, value in record.items():
            _check_text(value, repr(key), origin)
        return
    turns = record["conversation"]
    if not isinstance(turns, list) or not turns:
        found = "an empty one" if turns == [] else kind(turns)
        problem = f"a conversation must be a list of turns with role and content, found {found}"
        raise BadRow(origin, "no dialogue", problem)
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
            role = turn.get("role") if isinstance(turn, Mapping) else turn
            problem = f"turn {number} has the role {role!r}; it must be one of {', '.join(ROLES)}"
            raise BadRow(origin, "no dialogue", problem)
        _check_text(turn.get("content"), f"the content of turn {number}", origin)
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not answered and spoken[-1:] == ["user"]:
        spoken = [*spoken, "assistant"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) or not spoken:
        raise BadRow(
            origin,
            "no dialogue",
            f"the turns are {', '.join(roles)}; after an optional system turn, user and assistant must alternate, "
            "beginning with user and ending with assistant",
        )


def _check_text(value: Any, what: str, origin: str) -> None:
    if not isinstance(value, str):
        raise BadRow(origin, "not text", f"{what} must be text, found {kind(value)}")
    if len(value) > LONGEST_ROW:
        raise too_long(origin, "characters")
    if "\0" in value:
        problem = f"{what} holds a NUL character (at {value.index(chr(0))}), which ends a text for many programs"
        raise BadRow(origin, "a NUL character", f"{problem}: take it out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{what} holds half a character (a lone surrogate at {error.start}); it cannot be written as UTF-8"
        raise BadRow(origin, "half a character", problem) from error


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
