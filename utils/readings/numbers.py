"""Numbers as answers: digits in any dress, and words.

Knows: signs, currencies, separators of thousands, fractions, powers of ten, what a sum comes to. Does not know what
announces an answer. A time of day (3:30), a ratio (2:3) and a range (10-15) are no number. Words ("twelve", "十二") are
read where they are announced or all there is, never out of a longer text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from utils.readings import numerals
from utils.readings.contract import Kind, Undecided
from utils.readings.wording import MARKS, MARKS_BEFORE, OPENING, sentence

CURRENCY = r"(?:(?:US|HK|NT)?\\?\$|Rs\.?|RMB|[€£¥₹])\s?"
WHOLE = r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d{1,3}(?: \d{3}){2,}(?!\d)|\d++"
NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_])(?<!\d[:'’′])(?P<minus>(?<![\w)\]}}%])-)?(?:{CURRENCY})?(?P<inner>-)?"
    rf"(?:(?P<mixed>\d+)\s(?=\d+/\d))?(?P<digits>(?:{WHOLE})(?:\.\d+)?|(?<!\d)\.\d+)(?![:'’′]\d)"
    r"(?:\^(?P<raised>\d{1,3}))?"
    r"(?:\s?/\s?(?P<below>\d+)(?![/\d]))?"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w)|\s?[×x*·]\s?10\s?\^\s?\(?(?P<power>-?\d{1,3})\)?)?"
    r"(?P<scale>\s?(?:(?i:thousand|million|billion|trillion)\b|万亿|[万亿]|千(?![克米瓦卡]))|[kK](?![A-Za-z]))?"
)
MOST_DIGITS = 300
"""Beyond this a model is in a loop; and Python does not turn digits without end into a number."""
SCALES = {"thousand": 3, "k": 3, "千": 3, "万": 4, "million": 6, "亿": 8, "billion": 9, "trillion": 12, "万亿": 12}
RAISED = re.compile(r"(?<=10)[⁻⁰¹²³⁴-⁹]+")
LOWERED = dict(zip(map(ord, "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"), "-0123456789", strict=True))

SUM = re.compile(r"[\s\d.,+*/×÷·()$€£¥%x-]*=")
OPERATION = re.compile(r"\d[\s)%]*[+*×÷·x/-]")
UNITS = re.compile(r"[\s.。!！%°]*(?:[^\W\d_]++[\s.。!！]*+){0,3}(?:\([^()\n]{1,40}\))?[^\w=+*/×÷]*")
AND_HALF = re.compile(r"\s+and\s+(?:a|one)\s+half\b|[^\W\d_]半")
ANOTHER = re.compile(
    r"%?\s*(?:[^\W\d_]+\s+)?(?:(?i:or|and|to)\s|[-~]|(?:或者?|和|与|到|至))\s*\$?\d"
    r"|(?:\s?,\s?\d+)+,?\s(?i:and|or)\s\d|,?\s(?i:or)\s(?:[^\W\d_]+\s){0,3}\$?\d"
    r"|\s?(?:个?小时|分钟?|秒|天|年|个?月|周|元|角|[厘千]?米|公里|[千公]?[克斤]|升|英尺)\s?\d"
)
JOINS = re.compile(r"\s*[^\W\d_]*\s*(?:\b(?i:or|and|to)\b|或者?|和|到|至)\s*")
UNFINISHED = re.compile(r"\s*[+*×÷/]\s*[$(]*\d|\s+-\s+[$(]*\d")
"""A sum that does not say what it comes to."""
RANGE = re.compile(
    r"(?i:between)\s\$?\d[\d.,]*\s(?i:and)\s\$?\d[\d.,]*|(?<![\d.])\d[\d.]*\s?[和到至~-]\s?\d[\d.]*\s?之间"
)
REASON = re.compile(r"\b(?i:because|since)\b|因为")
LEADS_IN = re.compile(r"\s*(?:[A-Za-z]\s*)?[=≈~]\s*")
OPENS = re.compile(r"[.。]\s+[A-Z\u4e00-\u9fff]")
ALONE = re.compile(r"\W*+(?:[^\W\d_]++\W*+)?")
NEARLY_ALONE = re.compile(r"\W*(?:[^\W\d_]++[^\w(]*+){0,2}(?:\(\d+\)\W*)?")


def value(match: re.Match[str]) -> Fraction | None:
    """Of what `NUMBER` found; None for a fraction of nothing, and for digits without end."""
    digits = re.sub(r"[, ]", "", match["digits"])
    if len(digits) + len(match["below"] or "") + len(match["mixed"] or "") > MOST_DIGITS:
        return None
    found = Fraction(digits)
    if match["below"]:
        if int(match["below"]) == 0:
            return None
        found = Fraction(match["mixed"] or 0) + found / int(match["below"])
    if match["raised"]:
        if len(digits) * int(match["raised"]) > MOST_DIGITS:
            return None
        found **= int(match["raised"])
    if exponent := match["exponent"] or match["power"]:
        found *= Fraction(10) ** int(exponent)
    if match["scale"]:
        found *= 10 ** SCALES[match["scale"].strip().lower()]
    return -found if match["minus"] or match["inner"] else found


def written(found: Fraction) -> str:
    """`1234.5`, `-3`, `1/3`: as decimals where they end.

    >>> written(Fraction("1234.50")), written(Fraction(2, 3))
    ('1234.5', '2/3')
    """
    twos, fives, rest = 0, 0, found.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    places = max(twos, fives)
    if rest != 1 or places == 0:
        return str(found)
    digits = str(abs(found.numerator) * 10**places // found.denominator).rjust(places + 1, "0")
    return f"{'-' if found < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def opening(text: str) -> Fraction | None:
    """The value of the number that a text opens with, with or without its unit; None where it opens otherwise."""
    match = NUMBER.match(text)
    return value(match) if match else None


def _announced(rest: str, choices: Sequence[str]) -> str | None:
    said = REASON.split(_lowered(sentence(rest)))[0]
    first = NUMBER.search(said)
    spoken = _spoken(said, value(first) if first else None)
    if spoken is not None:
        return written(spoken)
    while first and (left := SUM.match(said, first.start())) and OPERATION.search(left.group()):
        after = NUMBER.search(said, left.end())  # "5 * 3 = 15": what it comes to
        if after is None:
            break
        first = after
    found = value(first) if first else None
    if first is None or found is None or UNFINISHED.match(said, first.end()):
        return None
    if ANOTHER.match(said, first.end()) and not AND_HALF.match(said, first.end()):
        raise Undecided
    return written(found + Fraction(1, 2) if AND_HALF.match(said, first.end()) else found)


def _spoken(said: str, digits: Fraction | None) -> Fraction | None:
    """The number in words that opens `said`, or is the only one in it; `digits` is the value of those in it."""
    words = numerals.find(said)
    if not words:
        return None
    first = words[0]
    if first.start > 0:
        return first.value if digits is None and len(words) == 1 and first.value > 1 else None
    if digits is not None:
        return first.value if first.value == digits else None
    if first.value == 1 and not ALONE.fullmatch(said, first.end):
        return None  # "one of them"
    if len(words) > 1 and JOINS.fullmatch(said, first.end, words[1].start):
        raise Undecided
    return first.value


def _bare(text: str, choices: Sequence[str]) -> str | None:
    stripped = _lowered(text.strip(" \t\r\n*_`"))
    if leads_in := LEADS_IN.match(stripped):
        stripped = stripped[leads_in.end() :]
    match = NUMBER.match(stripped)
    if match and (found := value(match)) is not None:
        second = NUMBER.search(stripped, match.end())
        if second and ANOTHER.match(stripped, match.end()) and UNITS.fullmatch(stripped, second.end()):
            raise Undecided
        opens = OPENS.match(stripped, match.end()) and found != 1  # "1. First, …" is a list
        return written(found) if opens or UNITS.fullmatch(stripped, match.end()) else None
    words = numerals.find(stripped)
    if words and words[0].start == 0 and len(words) == 1:
        after = ALONE if words[0].value == 1 else NEARLY_ALONE
        return written(words[0].value) if after.fullmatch(stripped, words[0].end) else None
    return None


def _last(text: str, choices: Sequence[str]) -> str | None:
    found = None
    for match in NUMBER.finditer(RANGE.sub(" ", _lowered(text))):
        if (each := value(match)) is not None:
            found = each
    return None if found is None else written(found)


def _lowered(text: str) -> str:
    """10⁸ as 10^8."""
    return RAISED.sub(lambda raised: "^" + raised.group().translate(LOWERED), text)


KIND = Kind(
    announced=_announced, bare=_bare, fallback=_last, marks=MARKS, marks_before=MARKS_BEFORE, opening=OPENING
)  # fmt: skip
