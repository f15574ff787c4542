"""Joined letters as answers: "nk", "n-k", "N K".

Knows: how letters are joined. Does not know what announces an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from utils.readings.contract import Kind
from utils.readings.wording import MARKS, MARKS_BEFORE, OPENING, sentence
from utils.scoring import QUOTED

AROUND = re.compile(r"^\W+|(?:(?<=\w)|^)\W+$")
BETWEEN = re.compile(r"[\s,、.\-+]+")
QUOTES = re.compile(r"[\"'“”‘’「」『』]")
ENDS = re.compile(r"[\"”」』'’]|(?<!\s)\s*[(（]|,\s+(?=\w{2})")
BRACKETS = re.compile(r"(?<!\s)\s*[(（][^()（）]*[)）]\W*$")
COMES_TO = re.compile(r".*(?:=|→|即|也就是)")
MADE = re.compile(
    r"(?:\b(?i:gives?|gets?|makes?|yields?|(?:them|together|letters|result|word)\s+is)\s|:|(?:得到|就是|(?:起来|拼接|连接|组合)[^，。]{0,4}?是))\s*[\"'“]?(?P<letters>[A-Za-z]{1,12})\W*$"
)
OTHER_SCRIPTS = "\u0250"
"""From here on no letter is Latin; é and ž stand before it."""
NO_LETTERS = {"unknown", "unclear", "none", "nothing", "undefined", "sorry", "impossible"}


def _joined(said: str) -> str | None:
    """`nk` for "nk", "n k" and "n-k"."""
    parts = BETWEEN.split(AROUND.sub("", said))
    is_joined = len(parts) == 1 or all(len(part) == 1 for part in parts)
    found = "".join(parts).lower()
    return found if is_joined and found.isalpha() and max(found) < OTHER_SCRIPTS and found not in NO_LETTERS else None


def _announced(rest: str, choices: Sequence[str]) -> str | None:
    said = sentence(rest)
    if comes_to := COMES_TO.match(said):
        said = said[comes_to.end() :]
    return _joined(QUOTES.sub("", said)) or _joined(ENDS.split(said)[0])


def _bare(text: str, choices: Sequence[str]) -> str | None:
    return _joined(text) or _joined(BRACKETS.sub("", text))


def _last(text: str, choices: Sequence[str]) -> str | None:
    """What is quoted last, or what the text ends with as what the letters make."""
    if made := MADE.search(text):
        return _joined(made["letters"])
    quoted = [next(group for group in match.groups() if group is not None) for match in QUOTED.finditer(text)]
    found = [letters for each in quoted if (letters := _joined(each))]
    return found[-1] if found else None


KIND = Kind(announced=_announced, bare=_bare, fallback=_last, marks=MARKS, marks_before=MARKS_BEFORE, opening=OPENING)
