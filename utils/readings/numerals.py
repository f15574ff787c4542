"""Numbers written in words, in English and Chinese: "one hundred and five", "two thirds", "一百零五", "三分之二".

Knows: how such a number is written, and its value. Does not know whether a number is an answer. Words that only look
like a number ("一样", "千万", "one of them") are none.

Ours, for a library would have to know both languages and fractions: text2num is a compiled extension without Chinese;
cn2an installs folders named `build`, `example` and `src` beside itself and knows no fractions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
VALUES = {
    **{word: value for value, word in enumerate((*UNITS, *TEENS))},
    **{word: 10 * value for value, word in enumerate(TENS, start=2)},
    "a": 1,
    "an": 1,
}
SCALES = {"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}  # fmt: skip

UNIT = rf"(?:{'|'.join(UNITS)})"
BELOW_100 = rf"(?:(?:{'|'.join(TENS)})(?:[-\s]{UNIT})?|{'|'.join(TEENS)}|{UNIT})"
BELOW_1000 = rf"(?:(?:an?|{BELOW_100})\shundred(?:\s(?:and\s)?{BELOW_100})?|(?:an?|{BELOW_100})\sdozen|{BELOW_100})"
WHOLE = (
    rf"(?:(?:(?:an?|{BELOW_1000})\s(?:trillion|billion|million|thousand)(?:,?\s(?:and\s)?(?={BELOW_1000}))?)+"
    rf"(?:{BELOW_1000})?|{BELOW_1000})"
)
PART = rf"(?:(?:{'|'.join(PARTS)})s?)"
ENGLISH = re.compile(
    rf"(?<![\w-])(?i:(?P<minus>minus\s|negative\s)?(?:"
    rf"(?P<mixed>{WHOLE})\sand\s(?:(?P<more>an?|{UNIT})[-\s])?(?P<more_part>{PART})"
    rf"|(?:(?P<above>an?|{UNIT})[-\s])?(?P<part>{PART})"
    rf"|(?P<whole>{WHOLE})(?:\spoint(?P<decimals>(?:\s{UNIT}){{1,30}}))?"
    r"))(?![\w'’-])"
)

DIGITS = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {
    "〇": 0, "两": 2, "壹": 1, "贰": 2, "叁": 3, "肆": 4, "伍": 5, "陆": 6, "柒": 7, "捌": 8, "玖": 9,
}  # fmt: skip
SMALL = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
LARGE = {"万": 10**4, "亿": 10**8}
SIGNS = "".join((*DIGITS, *SMALL, *LARGE))
NUMERAL = rf"[{SIGNS}]{{1,40}}"
# A numeral counts where it ends, or before what is measured or counted by it.
MEASURED = (
    r"[个只元块角美欧天年月日号小时钟秒分岁人名位本张件条次米厘公里千克斤吨升毫度倍页支枝辆棵把双对头匹包袋盒瓶杯碗"
    r"排层间套道题枚颗粒朵片台家座种组周星期平立方箱篮筐桶串句行列步圈份]"
)
CHINESE = re.compile(
    rf"(?<![周期拜第{SIGNS}])(?!十分[^\W\d_钟之]|[三四五六]角形)(?P<minus>负)?(?:(?:(?P<mixed>{NUMERAL})又)?(?P<below>{NUMERAL})分之(?P<above>{NUMERAL})"
    rf"|(?P<whole>{NUMERAL})(?:点(?P<decimals>[{''.join(DIGITS)}]{{1,30}}))?(?P<and_half>{MEASURED[:-1]}]半)?|(?P<half>一?半))"
    rf"(?=\s*(?:$|[^\w\s]|{MEASURED}))"
)


@dataclass(frozen=True)
class Numeral:
    """A number in words, in its place."""

    start: int
    end: int
    value: Fraction


def find(text: str) -> list[Numeral]:
    """Every number in words, in order."""
    found = [_numeral(match, value) for match in ENGLISH.finditer(text) if (value := _english(match)) is not None]
    found += [_numeral(match, value) for match in CHINESE.finditer(text) if (value := _chinese(match)) is not None]
    return sorted(found, key=lambda each: each.start)


def whole_chinese(text: str) -> int | None:
    """The value of a Chinese whole number, None for what is none.

    >>> whole_chinese("一百零五"), whole_chinese("二〇二四"), whole_chinese("两千三"), whole_chinese("千万")
    (105, 2024, 2300, None)
    """
    if all(sign in DIGITS for sign in text):
        # "三四" is three or four; "二〇二四" is read digit by digit.
        return _by_digit(text) if len(text) != 2 or "〇" in text or "零" in text else None
    total = section = 0
    digit: int | None = None
    unit = 1
    for place, sign in enumerate(text):
        if sign in DIGITS:
            if digit is not None and digit != 0:
                return None
            digit = DIGITS[sign]
            if digit == 0:
                unit = 1  # "一百零五" is not 150
            continue
        if digit is None:
            may_stand_alone = sign in ("十", "拾") and (place == 0 or section or total)
            if not may_stand_alone and not (sign in LARGE and (section or total)):
                return None
            digit = 1 if sign in SMALL else 0
        if sign in SMALL:
            section, unit, digit = section + digit * SMALL[sign], SMALL[sign], None
        else:
            total = (total + section + digit) * LARGE[sign] if sign == "亿" else total + (section + digit) * LARGE[sign]
            section, unit, digit = 0, LARGE[sign], None
    is_short = digit is not None and unit > 10 and text[-2] not in ("零", "〇")  # "两千三": 2300
    return total + section + (digit or 0) * (unit // 10 if is_short else 1)


def _numeral(match: re.Match[str], value: Fraction) -> Numeral:
    return Numeral(match.start(), match.end(), value)


def _english(match: re.Match[str]) -> Fraction | None:
    fields = {name: text.lower() for name, text in match.groupdict().items() if text}
    if part := fields.get("part"):
        value = Fraction(VALUES[fields.get("above", "a")], _part(part))
        if "above" not in fields and part.rstrip("s") != "half":
            return None  # "third" alone is a place in a row
    elif whole := fields.get("mixed"):
        value = _whole(whole) + Fraction(VALUES[fields.get("more", "a")], _part(fields["more_part"]))
    else:
        value = Fraction(_whole(fields["whole"]))
        decimals = "".join(str(VALUES[word]) for word in fields.get("decimals", "").split())
        value += Fraction(int(decimals or 0), 10 ** len(decimals))
    return -value if "minus" in fields else value


def _part(word: str) -> int:
    return PARTS[word] if word in PARTS else PARTS[word.rstrip("s")]


def _whole(text: str) -> int:
    total = section = 0
    for word in re.findall(r"[a-z]+", text):
        if word in ("hundred", "dozen"):
            section *= SCALES[word]
        elif word in SCALES:
            total, section = total + section * SCALES[word], 0
        elif word != "and":
            section += VALUES[word]
    return total + section


def _chinese(match: re.Match[str]) -> Fraction | None:
    fields = {name: text for name, text in match.groupdict().items() if text}
    if "half" in fields:
        value: Fraction | None = Fraction(1, 2)
    elif "below" in fields:
        below = 1 if fields["below"] == "百" else whole_chinese(fields["below"])  # 百分之五十 is 50, as 50% is
        above, mixed = whole_chinese(fields["above"]), whole_chinese(fields.get("mixed", "零"))
        value = None if above is None or mixed is None or not below else Fraction(above, below) + mixed
    else:
        whole = whole_chinese(fields["whole"])
        decimals = fields.get("decimals", "")
        value = None if whole is None else whole + Fraction(_by_digit(decimals), 10 ** len(decimals))
        if value is not None and "and_half" in fields:
            value += Fraction(1, 2)
    return -value if value is not None and "minus" in fields else value


def _by_digit(text: str) -> int:
    return int("".join(str(DIGITS[sign]) for sign in text) or "0")
