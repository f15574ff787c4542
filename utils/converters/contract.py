"""What a converter is, what it gives, and the checks that all of them share.

Knows: outcomes (a unified record, or a row dropped for a reason), options, and what makes a record valid. Does not know
any upstream format.

Three ends are told apart. A row that is not in its format (a key is missing, null or a number stands where text must
be) is a `ValueError`. A row in its format that nothing can be learnt from (no answer, a dialogue that the assistant
opens) is `Dropped`, and counted. Everything else is a record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils import cot, formats
from utils.formats import RawRow

Record = dict[str, Any]
Turn = tuple[str, str]
"""A role (`system`, `user`, `assistant`) and what it says."""
AnswerSource = Literal["chatgpt", "human"]


@dataclass(frozen=True)
class Dropped:
    """A row that is in its format and of no use, and why; the reason is a fixed phrase, so that it can be counted."""

    reason: str


Outcome = Record | Dropped


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may choose about a conversion."""

    style: cot.Style = "cot"
    """Chains of thought: with the steps, or the same rows with the answer alone."""
    seed: int = 0
    """Chains of thought: chooses the phrasings."""
    set_name: str = ""
    """Chains of thought: which set of `data/cot_phrasings.toml` it is; empty: as the file's name says."""
    answer_source: AnswerSource = "chatgpt"
    """HC3: whose answer is taken; the other's where there is none."""


@dataclass(frozen=True, kw_only=True)
class Converter:
    """One upstream format."""

    what: str
    """The format in a few words, for people."""
    read: Callable[[Path], Iterator[RawRow]]
    convert: Callable[[Any, Options], Iterable[Outcome]]
    """The outcomes of one raw row, at least one; raises ValueError for a row that is not in its format."""
    complete: Callable[[Path, Options], Options] = lambda _, options: options
    """Adds to the options what the file's name tells."""
    sorted_by_hash: bool = False
    """Whether rows are written in the order of their hash, so that the order of the input cannot show."""


def describe(value: Any) -> str:
    """The kind of a JSON value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def mapping(raw: Any, keys: Iterable[str] = ()) -> Mapping[str, Any]:
    """`raw` as an object that has all of `keys`."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object, found {describe(raw)}")
    for key in keys:
        if key not in raw:
            found = ", ".join(map(str, raw)) or "none"
            raise ValueError(f"expected the key {key!r}, found {shorten(found)}")
    return raw


def sequence(raw: Mapping[str, Any], key: str) -> Sequence[Any]:
    """The list under `key`."""
    value = mapping(raw, [key])[key]
    if not isinstance(value, list):
        raise ValueError(f"expected a list in {key!r}, found {describe(value)}")
    return value


def text(raw: Mapping[str, Any], key: str) -> str:
    """The text under `key`, as it stands."""
    return as_text(mapping(raw, [key])[key], repr(key))


def optional_text(raw: Mapping[str, Any], key: str) -> str:
    """The text under `key`; empty where there is no such key, or null (what Parquet puts there)."""
    return "" if raw.get(key) is None else text(raw, key)


def as_text(value: Any, what: str) -> str:
    """`value` where it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"expected text in {what}, found {describe(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text in {what}, found half a character (a lone surrogate at {error.start}), which cannot be "
            "written as UTF-8"
        ) from error
    return value


def shorten(found: str, characters: int = 80) -> str:
    """A value for a message of one line."""
    found = " ".join(found.encode("utf-8", "backslashreplace").decode().split())
    return found if len(found) <= characters else found[:characters] + "…"


def instruction(instruct: str, given: str, output: str) -> Outcome:
    """A single exchange. Where `instruct` is empty, `given` is what is asked."""
    if not output.strip():
        return Dropped("no output")
    if not instruct.strip():
        instruct, given = given, ""
    if not instruct.strip():
        return Dropped("no instruction")
    return {"instruction": instruct, "input": given, "output": output}


def conversation(turns: Sequence[Turn]) -> Outcome:
    """A dialogue, or why it is none that can be trained on. Nothing is merged, cut or put elsewhere."""
    spoken = turns[1:] if turns and turns[0][0] == "system" else turns
    roles = [role for role, _ in spoken]
    if not roles:
        return Dropped("no turns")
    if "system" in roles:
        return Dropped("a system turn inside the dialogue")
    if roles[0] != "user":
        return Dropped("does not begin with the user")
    if any(one == two for one, two in zip(roles, roles[1:], strict=False)):
        return Dropped("two turns of one side in a row")
    if roles[-1] != "assistant":
        return Dropped("ends with the user")
    if not all(content.strip() for _, content in spoken):
        return Dropped("an empty turn")
    return {"conversation": [{"role": role, "content": content} for role, content in turns if content.strip()]}


def chain_of_thought(question: str, answer: str, rationale: str, set_name: str, options: Options) -> Outcome:
    """A record of the CoT formatter, or why there is none."""
    try:
        return dict(
            cot.render(
                question=question,
                answer=answer,
                rationale=rationale,
                set_name=set_name,
                style=options.style,
                seed=options.seed,
            )
        )
    except cot.Unusable as error:
        return Dropped(str(error))


def rows_or_document(path: Path) -> Iterator[RawRow]:
    """The rows of a file, or the one object that it is: some upstreams publish a file per dialogue, over many lines."""
    if path.is_file() and path.name.lower().removesuffix(".gz").endswith(".json"):
        with formats.open_text(path, newline="\n") as file:
            first = next((line for line in file if line.strip()), "")
        if first.lstrip().startswith("{") and not _is_json(first):
            yield "row 1", formats.document(path)
            return
    yield from formats.read(path)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
