"""Free text as an answer, to be compared as it is.

Knows: where such an answer ends. Does not know what announces it. Since any words are an answer, none is taken for a
refusal, and nothing is corrected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from utils.readings import options
from utils.readings.contract import Kind, Undecided
from utils.readings.wording import MARKS, MARKS_BEFORE
from utils.scoring import announced_answer, canonical

REASON = re.compile(r",?\s+(?i:because|since)\s|[,，]?\s*因为")


def _announced(rest: str, choices: Sequence[str]) -> str | None:
    if options.SEVERAL.match(rest):
        raise Undecided
    found = announced_answer(rest).strip("$")
    reason = REASON.search(found)
    return (found[: reason.start()] if reason else found) or None


def _bare(text: str, choices: Sequence[str]) -> str | None:
    return canonical(text.strip()) or None if len(text.strip().splitlines()) == 1 else None


def _last(text: str, choices: Sequence[str]) -> str | None:
    """The last line."""
    return canonical(text.strip().splitlines()[-1].strip()) or None if text.strip() else None


KIND = Kind(
    announced=_announced,
    bare=_bare,
    fallback=_last,
    marks=MARKS,
    marks_before=MARKS_BEFORE,
    opening=" \t\r\n*_",
    has_denials=False,
    opens_with_not=True,
    is_free=True,
)
