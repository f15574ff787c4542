"""Raw rows, and what can be wrong with one of them.

Knows: that a row is a place and what stands there, how long it may be, and how its fault is said and counted. Does not
know files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

RawRow = tuple[str, Any]
"""Where it is in the file ("row 3", "line 3"; from 1), and what stands there."""

LONGEST_ROW = 64 << 20
"""Bytes or characters of a row: far beyond what any model reads, and little enough to hold."""
LONGEST_PROBLEM = 600
"""Characters of a message about a row; what it quotes of the row may be of any length."""
EXAMPLES = 3
"""Bad rows that are named for each reason."""
BAD_ROW = "bad row"
"""Begins what a ledger says of one."""


class BadRow(ValueError):
    """What is wrong with one row of a file; the others can be read.

    Args:
        origin: `file row N` or `file line N`.
        reason: a category, to be counted under.
        problem: what is wrong with this row, and what to do.
    """

    def __init__(self, origin: str, reason: str, problem: str) -> None:
        super().__init__(origin, reason, problem)  # as given, or a process could not hand it to another
        self.origin, self.reason = origin, reason
        if len(problem) > LONGEST_PROBLEM:
            problem = f"{problem[: LONGEST_PROBLEM // 2]} … {problem[-LONGEST_PROBLEM // 2 :]}"
        # A quoted key may hold half a character, which no terminal can show, or a line's end.
        self.problem = "".join(each if each.isprintable() else repr(each)[1:-1] for each in problem)

    def __str__(self) -> str:
        return f"{self.origin}: {self.problem}"

    @property
    def counted_as(self) -> str:
        """The reason under which a ledger counts it."""
        return f"{BAD_ROW}: {self.reason}"

    @property
    def number(self) -> int:
        """Which row or line of its file it is, from 1."""
        return int(self.origin.rpartition(" ")[2])


Examples = dict[str, list[tuple[int, str]]]
"""Reason → number and problem of the first rows with it; not their path, for the same content can have another."""


def examples(bad: Iterable[BadRow]) -> Examples:
    """The first bad rows for each reason."""
    found: Examples = {}
    for each in bad:
        found.setdefault(each.reason, []).append((each.number, each.problem))
    return {reason: named[:EXAMPLES] for reason, named in found.items()}


def too_long(origin: str, unit: str) -> BadRow:
    """What is wrong with a row of more than `LONGEST_ROW` bytes or characters."""
    return BadRow(origin, "too long", f"longer than {LONGEST_ROW:,} {unit}; shorten it, or leave it out")


def not_utf8(text: str, of: str, origin: str) -> BadRow | None:
    """What is wrong with a text, opened with `surrogateescape`, that held a byte which is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        problem = f"not UTF-8 (character {error.start} of {of} is the byte {byte:#04x}); save the file as UTF-8"
        return BadRow(origin, "not UTF-8", problem)
    return None
