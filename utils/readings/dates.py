"""Dates as answers.

Knows: how a day is written in English and Chinese. Does not know what announces an answer. A date is one that the
calendar has; it has a year of four digits. The month comes first, unless no month has its number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

from utils.readings import numerals
from utils.readings.contract import Kind, Undecided
from utils.readings.wording import MARKS, MARKS_BEFORE, OPENING

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = rf"(?P<name>(?i:{'|'.join(MONTHS)}))[a-z]*\.?"
DAY = r"(?P<day>\d{1,2})(?i:st|nd|rd|th)?"
PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\d/])(?P<month>\d{1,2})(?P<mark>[-/.])(?P<day>\d{1,2})(?P=mark)(?P<year>\d{4})(?!\d)",
        r"(?<!\d)(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})(?!\d)",
        r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<month>\d\d)(?P<day>\d\d)(?!\d)",
        r"(?<!\d)(?P<year>\d{4})\s*年\s*(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]",
        r"(?P<year>[〇零一二三四五六七八九]{4})年(?P<month>[一二三四五六七八九十]{1,2})月(?P<day>[一二三四五六七八九十]{1,3})[日号]",
        rf"\b{MONTH}\s+{DAY},?\s+(?P<year>\d{{4}})(?!\d)",
        rf"(?<!\d){DAY}\s+(?:(?i:of)\s+)?{MONTH},?\s+(?P<year>\d{{4}})(?!\d)",
    )
)
BRACKETS = re.compile(r"(?<!\s)\s*[(（][^()（）]*[)）]\W*$")
AROUND = re.compile(r"^\W+|(?:(?<=\w)|^)\W+$")
RELATIVE = re.compile(r"\b(?i:before|after|since|until)\s*$")
"""Before a date that another day is told by."""
OR = re.compile(r"\s*(?:,\s*)?(?:\b(?i:or|and)\b|或者?|和)\s*")


def _dates(text: str) -> list[tuple[int, int, str]]:
    """Start, end and `YYYY-MM-DD` of every date that the calendar has, in order."""
    return sorted(
        (match.start(), match.end(), found)
        for pattern in PATTERNS
        for match in pattern.finditer(text)
        if not RELATIVE.search(text, max(0, match.start() - 8), match.start()) and (found := _form(match))
    )


def _form(match: re.Match[str]) -> str | None:
    fields = match.groupdict()
    if fields.get("name"):
        fields["month"] = str(MONTHS.index(fields["name"].lower()) + 1)
    values = [_value(fields[name]) for name in ("year", "month", "day")]
    if None in values:
        return None
    year, month, day = (value or 0 for value in values)
    if fields.get("mark") and month > 12:
        month, day = day, month
    try:
        return date(year, month, day).isoformat()
    except ValueError:
        return None


def _value(digits: str) -> int | None:
    return int(digits) if digits.isascii() else numerals.whole_chinese(digits)


def _announced(rest: str, choices: Sequence[str]) -> str | None:
    line = rest.partition("\n")[0]
    found = _dates(line)
    if len(found) > 1 and OR.fullmatch(line, found[0][1], found[1][0]):
        raise Undecided
    return found[0][2] if found else None


def _bare(text: str, choices: Sequence[str]) -> str | None:
    stripped = AROUND.sub("", BRACKETS.sub("", text))
    return next((found for start, end, found in _dates(stripped) if end - start == len(stripped)), None)


def _last(text: str, choices: Sequence[str]) -> str | None:
    found = _dates(text)
    return found[-1][2] if found else None


KIND = Kind(announced=_announced, bare=_bare, fallback=_last, marks=MARKS, marks_before=MARKS_BEFORE, opening=OPENING)
