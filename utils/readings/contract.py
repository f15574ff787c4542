"""What a type of answer is to the reader, and what is read.

Knows: the four ways in which an answer is read, and how two answers are compared. Does not know any type of answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

How = Literal["announced", "bare", "fallback", "unread"]
HOWS: tuple[How, ...] = get_args(How)
LETTERS = "ABCDEFGH"

Reader = Callable[[str, Sequence[str]], str | None]
"""What a text answers, or None; the options' texts come second, and those types that have none ignore them."""


class Undecided(Exception):
    """The text names several answers, or says that there is none: nothing in it is read."""


@dataclass(frozen=True)
class Reading:
    """One answer."""

    answer: str | None
    """In its type's one form: `1234.5`, `b`, `yes`, `1961-01-11`, …; None: unread."""
    how: How


UNREAD = Reading(None, "unread")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A type of answer; each reader may raise `Undecided`."""

    announced: Reader
    """Reads what follows an announcement."""
    bare: Reader
    fallback: Reader
    marks: re.Pattern[str]
    """What announces an answer that follows."""
    marks_before: re.Pattern[str]
    """What announces an answer that stands before it."""
    opening: str
    """Characters that are dropped between an announcement and the answer."""
    has_denials: bool = True
    """Whether "not 7" denies 7; to a question of yes and no it is an answer."""
    opens_with_not: bool = False
    """Whether an answer may begin with "not", as an option's words may."""
    is_free: bool = False
    """Whether any words are an answer, so that nothing can be told from what surrounds it."""


def same(kind: str, found: str | None, expected: str) -> bool:
    """Whether an answer that was read is the expected one, both in their type's form; numbers by value: 3/4 is 0.75."""
    if found is None or found == expected:
        return found is not None
    return kind == "number" and Fraction(found) == Fraction(expected)
