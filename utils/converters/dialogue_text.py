"""Dialogues written as one text with role marks.

| dialect | marks | where | checked |
| --- | --- | --- | --- |
| hh-rlhf (Anthropic) | `Human:`, `Assistant:`, each after a blank line | `chosen` | on 200 rows |
| baize (its `preprocess.py`) | `[|Human|]`, `[|AI|]` | `input` | unverified |
| OIG (no document seen) | `<human>:`, `<bot>:` | `text` | unverified |
| BELLE multiturn_chat (its card) | `Human:`, `Assistant:` | `instruction`; then `output` | unverified |
| Guanaco (no document seen) | `User:`, `Assistant:`, `System:` | `instruction`, `input`; then `output` | unverified |

`output` is the last answer; hh-rlhf's `rejected` is left out. A mark counts only at the beginning of a line, in hh-rlhf
only after a blank line: `Human: ` quoted in a sentence is text. A turn that begins with another mark is no text of that
role (hh-rlhf holds such slips), and its dialogue is dropped. Text before the first mark becomes the system turn; a
System mark later on gives knowledge for the user turn after it and is put at that turn's head. An empty last mark, with
which baize and BELLE ask for the next answer, is no turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from utils import formats
from utils.converters.contract import (
    Converter,
    Dropped,
    Options,
    Outcome,
    Turn,
    conversation,
    instruction,
    mapping,
    optional_text,
    shorten,
    text,
)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Marks, and the pattern that finds them where they count; its group `mark` is a key of `roles`."""

    roles: Mapping[str, str]
    pattern: re.Pattern[str]
    anywhere: re.Pattern[str]
    """The marks at the beginning of any line, where a turn must not have one."""


def _dialect(roles: Mapping[str, str], before: str = r"^[ \t]*") -> Dialect:
    marks = f"(?P<mark>{'|'.join(map(re.escape, roles))})"
    return Dialect(
        roles=roles,
        pattern=re.compile(before + marks, flags=re.MULTILINE),
        anywhere=re.compile(r"^[ \t]*" + marks, flags=re.MULTILINE),
    )


HH = _dialect({"Human:": "user", "Assistant:": "assistant"}, before=r"(?:\A\s*|\n\n)")
BAIZE = _dialect({"[|Human|]": "user", "[|AI|]": "assistant"})
OIG = _dialect({"<human>:": "user", "<bot>:": "assistant"})
BELLE = _dialect({"Human:": "user", "Assistant:": "assistant"})
GUANACO = _dialect({"User:": "user", "Assistant:": "assistant", "System:": "system"})


def convert(raw: Any, options: Options) -> Iterator[Outcome]:
    """One row of any dialect; a row of instruction and output without marks is a single exchange."""
    row = mapping(raw)
    if "chosen" in row:
        yield dialogue(text(row, "chosen"), HH)
    elif "instruction" in row:
        yield _with_answer(row)
    elif key := next((key for key in ("input", "text") if key in row), None):
        said = text(row, key)
        yield dialogue(said, BAIZE if BAIZE.pattern.search(said) else OIG)
    else:
        raise ValueError(
            f"expected one of the keys chosen, instruction, input, text, found {shorten(', '.join(row) or 'none')}"
        )


def _with_answer(row: Mapping[str, Any]) -> Outcome:
    asked, given, output = text(row, "instruction"), optional_text(row, "input"), text(row, "output")
    history = "\n".join(part for part in (asked, given) if part.strip())
    dialect = BELLE if BELLE.roles.keys() & _marks(history, BELLE) >= {"Human:"} else GUANACO
    if not _marks(history, dialect):
        return instruction(asked, given, output)
    return dialogue(history, dialect, answer=output)


def _marks(said: str, dialect: Dialect) -> set[str]:
    return {match["mark"] for match in dialect.pattern.finditer(said)}


def dialogue(said: str, dialect: Dialect, answer: str | None = None) -> Outcome:
    """The turns of `said`; `answer` is what the assistant says last, where upstream keeps it apart."""
    found = list(dialect.pattern.finditer(said))
    if not found:
        return Dropped("no role mark")
    ends = [match.start() for match in found[1:]] + [len(said)]
    turns: list[Turn] = [
        (dialect.roles[match["mark"]], said[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)
    ]
    if answer is None and len(turns) > 1 and turns[-1] == ("user", ""):
        turns.pop()
    if answer is not None:
        if turns[-1] == ("assistant", ""):
            turns.pop()
        turns.append(("assistant", answer))
    if any(dialect.anywhere.search(content) for _, content in turns):
        return Dropped("a role mark inside a turn")
    return conversation([("system", said[: found[0].start()].strip()), *_with_knowledge(turns)])


def _with_knowledge(turns: list[Turn]) -> list[Turn]:
    """System turns joined to the user turn that follows; one that none follows is left, and its dialogue dropped."""
    joined: list[Turn] = []
    for role, content in turns:
        if role == "user" and joined and joined[-1][0] == "system":
            content = f"{joined.pop()[1]}\n\n{content}".strip()
        joined.append((role, content))
    return joined


CONVERTER = Converter(
    what="dialogues in one text with role marks: hh-rlhf, baize, OIG, BELLE, Guanaco",
    read=formats.read,
    convert=convert,
)
