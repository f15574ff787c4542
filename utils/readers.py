"""Files of records: reading each format and recognising each shape.

Knows: JSON arrays, JSON Lines, CSV/TSV with a header, Parquet and `datasets` folders, and the shapes that records come
in. Does not know catalogue keys, mixtures or splits. Every row that leaves here is a unified record (`docs/design.md`):
`{"instruction", "input", "output"}` or `{"conversation": [{"role", "content"}, …]}`; anything else is an error that
names the file, the row, the key and what was expected.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

RawRow = tuple[str, Any]  # where in the file ("row 3", "line 3"), and what stands there
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A unified record and where it came from."""

    record: Mapping[str, Any]
    origin: str
    """`file row N`, counted from 1, as error messages give it."""
    source: str = ""
    """The part of the mixture it belongs to."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A way to write a record: recognised by its keys, turned into the unified one."""

    keys: tuple[str, ...]
    to_record: Callable[[Mapping[str, Any]], dict[str, Any]]


def read_rows(path: Path, *, answered: bool = True) -> tuple[list[Row], str]:
    """All rows of `path` as unified records, and the name of the shape they had.

    Args:
        answered: whether a row must bring an output; without, a missing one is read as empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unreadable file, a broken row, a missing or non-text field; the message names the row.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    rows, shape = [], None
    for where, raw in _read_raw(path):
        origin = f"{path} {where}"
        if not isinstance(raw, Mapping):
            raise ValueError(f"{origin}: expected an object with instruction, input and output, found {_kind(raw)}")
        if not answered:
            raw = _with_empty_answer(raw)
        shape = shape if shape and set(SHAPES[shape].keys) <= raw.keys() else _recognise(raw, origin)
        record = SHAPES[shape].to_record(_required(raw, SHAPES[shape], origin))
        _check(record, origin, answered=answered)
        rows.append(Row(record=record, origin=origin))
    if not rows:
        raise ValueError(f"{path} holds no records: the file is empty")
    return rows, shape or ""


def _read_raw(path: Path) -> Iterable[RawRow]:
    if path.is_dir():
        return _read_datasets_folder(path)
    match path.suffix.lower():
        case ".parquet":
            return _read_parquet(path)
        case ".csv" | ".tsv":
            return _read_table(path, "," if path.suffix.lower() == ".csv" else "\t")
        case ".json" | ".jsonl":
            return _read_json(path)
    raise ValueError(
        f"{path}: the ending {path.suffix!r} is not one of .json, .jsonl, .csv, .tsv, .parquet, or a datasets folder"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte-order mark would make the first key unknown
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}; save it as UTF-8"
        ) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys without a word; we do not."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_duplicates)


def _read_json(path: Path) -> list[RawRow]:
    """A JSON array, or one JSON object a line (some sets call JSON Lines `.json`)."""
    text = _read_text(path)
    if not text.strip():
        return []
    if text.lstrip().startswith("["):
        return _read_array(text.lstrip(), path)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also cut at U+2028 inside a string
        if line.strip():
            try:
                rows.append((f"line {number}", _DECODER.decode(line)))
            except ValueError as error:
                hint = "; one object over several lines belongs in [ ]" if line.strip() == "{" else ""
                raise ValueError(f"{path} line {number}: broken JSON ({error}){hint}") from error
    return rows


def _read_array(text: str, path: Path) -> list[RawRow]:
    """Element by element, so that an error knows its row."""
    rows: list[RawRow] = []
    at = _skip_space(text, 1)
    while text[at : at + 1] != "]":
        try:
            value, at = _DECODER.raw_decode(text, at)
        except ValueError as error:
            raise ValueError(f"{path} row {len(rows) + 1}: broken JSON ({error})") from error
        rows.append((f"row {len(rows) + 1}", value))
        at = _skip_space(text, at)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
            if text[at : at + 1] == "]":
                raise ValueError(f"{path} row {len(rows)}: broken JSON (a comma follows the last row)")
        elif text[at : at + 1] != "]":
            what = "the file ends here" if at >= len(text) else f"found {text[at]!r}"
            raise ValueError(f"{path} row {len(rows)}: broken JSON (after it a comma or ] was expected, {what})")
    if text[at + 1 :].strip():
        raise ValueError(f"{path}: broken JSON (text follows the closing ] after row {len(rows)})")
    return rows


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _read_table(path: Path, delimiter: str) -> list[RawRow]:
    csv.field_size_limit(sys.maxsize)  # csv's own 131,072 characters are fewer than some answers have
    try:
        table = csv.DictReader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
        rows = list(table)
        wide = next((number for number, row in enumerate(rows, start=1) if None in row), None)
        if wide is not None:
            raise ValueError(
                f"{path} row {wide}: more cells than the header has columns; quote a cell that holds {delimiter!r}"
            )
        return [
            (f"row {number}", {k: v for k, v in row.items() if v is not None})
            for number, row in enumerate(rows, start=1)
        ]
    except csv.Error as error:
        raise ValueError(f"{path}: broken table ({error})") from error


def _read_parquet(path: Path) -> list[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)]


def _read_datasets_folder(path: Path) -> list[RawRow]:
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is a folder, but not one that datasets.save_to_disk wrote") from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = [str(name) for name in loaded]
        raise ValueError(f"{path} holds several splits ({', '.join(splits)}): name one, such as {path / splits[0]}")
    return [(f"row {number}", row) for number, row in enumerate(loaded, start=1)]


def _instruction(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"instruction": raw["instruction"], "input": raw.get("input", ""), "output": raw["output"]}


def _turns(turns: Any, role_key: str, text_key: str) -> dict[str, Any]:
    """A list of turns under other names; what is not a turn is left as it is, for `_check` to refuse."""
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
        if set(shape.keys) <= raw.keys():
            return name
    if "instruction" in raw:
        raise ValueError(f"{origin}: 'output' is missing; a record has instruction, input (may be empty) and output")
    known = "; ".join(", ".join(shape.keys) for shape in SHAPES.values())
    raise ValueError(f"{origin}: its keys are {', '.join(map(str, raw)) or '(none)'}; a record has one of: {known}")


def _with_empty_answer(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = [keys[1] for keys in (s.keys for s in SHAPES.values()) if len(keys) == 2 and keys[0] in raw]
    return {**dict.fromkeys(missing, ""), **raw}


def _required(raw: Mapping[str, Any], shape: Shape, origin: str) -> Mapping[str, Any]:
    for key in shape.keys:
        if raw[key] is None:
            raise ValueError(f"{origin}: {key!r} must be text, found null")
    return raw


def _check(record: Mapping[str, Any], origin: str, *, answered: bool) -> None:
    """Every field is text that can be written as UTF-8, and a dialogue's turns are in an order that can be trained."""
    if "conversation" not in record:
        for key, value in record.items():
            _check_text(value, f"{origin}: {key!r}")
        return
    turns = record["conversation"]
    if not isinstance(turns, list) or not turns:
        raise ValueError(
            f"{origin}: a conversation must be a list of turns with role and content, found {_kind(turns)}"
        )
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
            role = turn.get("role") if isinstance(turn, Mapping) else turn
            raise ValueError(f"{origin}: turn {number} has the role {role!r}; it must be one of {', '.join(ROLES)}")
        _check_text(turn.get("content"), f"{origin}: the content of turn {number}")
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not answered and spoken[-1:] == ["user"]:
        spoken = [*spoken, "assistant"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) or not spoken:
        raise ValueError(
            f"{origin}: the turns are {', '.join(roles)}; after an optional system turn, user and assistant must "
            "alternate, beginning with user and ending with assistant"
        )


def _check_text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, found {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds half a character (a lone surrogate at {error.start}); it cannot be written as UTF-8"
        ) from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
