"""What an answer says, by the type of answer that its task asks for, and how it was read.

Knows: numbers, letters of options, yes and no, joined letters, dates and free text, in English and Chinese, and four
ways of reading them: announced ("the answer is 18", "#### 18", "答案是18", "故选B"), bare (the text is the answer, or
opens with it), by a fallback (the last number, letter, … of the text), not at all. Does not know models, files, prompts
or what is done with a score.

A score that rests on fallbacks is worth less than one on announced answers, so every answer says how it was read
(`Audit` counts). What is written in words ("twelve", "十二") is not read as a number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from typing import Literal

from utils import lookup
from utils.scoring import OPTION, QUOTED, SENTENCE_END, YES_NO, canonical, extract_answer

How = Literal["announced", "bare", "fallback", "unread"]
HOWS: tuple[How, ...] = ("announced", "bare", "fallback", "unread")
LETTERS = "ABCDEFGH"

# Wider than scoring.ANNOUNCED, for what follows must be of a type. The last one that can be read counts.
MARK = re.compile(
    r"(?i:answers?)[*_]*(?:\s+(?i:to|of|for)\s[^.:\n]{1,80}?)?\s*(?:\b(?i:is|are|would\s+be)(?![A-Za-z'’])\s*:?|[:=])"
    r"|(?i:(?:option|choice)\s+is(?![A-Za-z'’]))\s*:?"
    r"|####|\\boxed\s*(?=\{)"
    r"|(?:答案|结果|选项)[*_】]*\s*(?:应该|应当|应)?(?:[是为选]?\s*[：:=]+|[是为选])"
    r"|答案】?\s*(?=[(（]?[A-H](?![A-Za-z]))"
    r"|选择?\s*[：:]?\s*(?=[(（]?[A-H](?![A-Za-z]))"
)
OPENING = " \t\r\n*_:：{([（【$\\\"“「『'‘"
DENIED = re.compile(r"(?i:not)\b|不是")
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("−"): ord("-"), ord("￥"): ord("¥")}

CURRENCY = r"(?:(?:US|HK|NT)?\\?\$|Rs\.?|RMB|[€£¥₹])\s?"
NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_])(?P<minus>(?<![\w)\]}}%])-)?(?:{CURRENCY})?(?P<inner>-)?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)(?:/(?P<below>\d+)(?![/\d]))?"
)
SUM = re.compile(r"[\s\d.,+*/×÷·()$€£¥%x-]*=")
UNITS = re.compile(r"[\s.。!！%°]*(?:[^\W\d_]+[\s.。!！]*){0,3}")

SINGLE = rf"{OPTION}(?!\s*(?:and|or|和|或|与)\s*[(（]?[A-H](?![A-Za-z]))"
LETTER = re.compile(rf"(?:(?i:option|choice|选项)\s*)?[(（\[]?(?P<letter>{SINGLE})|[(（]?(?P<small>[a-h])[)）]")
LETTER_OPENS = re.compile(r"\s*[*_]*(?:[(（](?P<inside>[A-Ha-h])[)）]|(?P<letter>[A-H])[*_]*\s*(?:[).:：。、，,\n]|$))")
LETTER_ANYWHERE = re.compile(rf"[(（](?P<inside>[A-H])[)）]|(?<![A-Za-z0-9'’-])(?P<letter>{SINGLE})")
SECOND = re.compile(r"(?<![A-Za-z])[A-H][)）]?\s*(?:and|or|[和或与,、，/&])\s*$")
"""Before the second of two letters; who names two options has chosen none."""

YES_CN = ("是的", "是", "对的", "对", "正确", "可以", "能", "会")
NO_CN = ("不是", "不对", "不正确", "不可以", "不能", "不会", "否", "错误", "错")
CLAUSE_ENDS = r"(?=的?\s*(?:$|[^\w\s]|因为))"
TRUTH = re.compile(
    rf"(?P<english>{YES_NO}|(?i:true|false|incorrect|correct)(?![A-Za-z0-9'’-]))"
    rf"|(?P<no>{'|'.join(NO_CN)}){CLAUSE_ENDS}|(?P<yes>{'|'.join(YES_CN)}){CLAUSE_ENDS}"
)
TRUTH_OPENS = re.compile(
    rf"(?:(?i:yes|no|true|false)\b(?=\s*(?:$|[^\w\s'’-]))|(?:{'|'.join((*NO_CN, *YES_CN))}){CLAUSE_ENDS})"
)
CLAUSE = re.compile(r"[^.。,，;；!！?？\n]+")

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = rf"(?P<name>(?i:{'|'.join(MONTHS)}))[a-z]*\.?"
DATES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<!\d)(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})(?!\d)",
        r"(?<!\d)(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})(?!\d)",
        r"(?<!\d)(?P<year>\d{4})\s*年\s*(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]",
        rf"\b{MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>\d{{4}})(?!\d)",
        rf"(?<!\d)(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+{MONTH},?\s+(?P<year>\d{{4}})(?!\d)",
    )
)


@dataclass(frozen=True)
class Reading:
    """One answer."""

    answer: str | None
    """In its type's one form: `1234.5`, `b`, `yes`, `1961-01-11`, …; None: unread."""
    how: How


@dataclass(frozen=True)
class Kind:
    """A type of answer: what each way of reading finds in a text, or None. `choices` are the options' texts, in order;
    those kinds that have none ignore them."""

    announced: Callable[[str, Sequence[str]], str | None]
    """Reads what follows an announcement."""
    bare: Callable[[str, Sequence[str]], str | None]
    fallback: Callable[[str, Sequence[str]], str | None]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """How many answers were read in which way."""

    announced: int = 0
    bare: int = 0
    fallback: int = 0
    unread: int = 0

    @classmethod
    def of(cls, readings: Iterable[Reading]) -> Audit:
        """Counts them."""
        return cls(**Counter(reading.how for reading in readings))

    def __str__(self) -> str:
        return (
            f"{self.announced:,} announced, {self.bare:,} bare, {self.fallback:,} by fallback, "
            f"{self.unread:,} could not be read"
        )


def read(text: str, kind: str, choices: Sequence[str] = ()) -> Reading:
    """What `text` answers.

    Args:
        kind: a key of `KINDS`.
        choices: the options' texts, for `choice`: without them, letters A to H; with them also by an option's words.

    Raises:
        ValueError: an unknown kind.

    >>> read("9 * 2 = 18\\n#### 18", "number"), read("故选：D。", "choice")
    (Reading(answer='18', how='announced'), Reading(answer='d', how='announced'))
    >>> read("It costs $5, and $3 more.", "number"), read("Who knows?", "number")
    (Reading(answer='3', how='fallback'), Reading(answer=None, how='unread'))
    """
    if kind not in KINDS:
        raise ValueError(lookup.unknown_name("answer type", kind, tuple(KINDS)))
    ways = KINDS[kind]
    if kind != "text":  # free text stays as it was written
        text = text.translate(FULL_WIDTH)
        choices = [choice.translate(FULL_WIDTH) for choice in choices]
    for rest in _announced(text, kind):
        found = ways.announced(rest, choices)
        if found:
            return Reading(found, "announced")
    if found := ways.bare(text, choices):
        return Reading(found, "bare")
    if found := ways.fallback(text, choices):
        return Reading(found, "fallback")
    return Reading(None, "unread")


def same(kind: str, found: str | None, expected: str) -> bool:
    """Whether an answer that was read is the expected one, both in their type's form; numbers by value: 3/4 is 0.75."""
    if found is None or found == expected:
        return found is not None
    return kind == "number" and Fraction(found) == Fraction(expected)


def _announced(text: str, kind: str) -> Iterator[str]:
    """What follows each announcement, the last first."""
    if kind == "text":
        yield text
        return
    for mark in reversed(list(MARK.finditer(text))):
        rest = text[mark.end() :].lstrip(OPENING)
        if kind in ("choice", "yes_no") or not DENIED.match(rest):  # an option may be "not dry"; 不是 is no
            yield rest


def _sentence(text: str) -> str:
    end = SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def _number_form(match: re.Match[str]) -> str | None:
    digits = match["digits"].replace(",", "")
    if match["below"] and int(match["below"]) == 0:
        return None
    whole, _, decimals = digits.partition(".")
    decimals = decimals.rstrip("0")
    form = str(int(whole or "0")) + (f".{decimals}" if decimals else "")
    if match["below"]:
        form = f"{form}/{int(match['below'])}" if "." not in form else str(Fraction(form) / int(match["below"]))
    is_negative = bool(match["minus"] or match["inner"]) and Fraction(form) != 0
    return f"-{form}" if is_negative else form


def _announced_number(rest: str, choices: Sequence[str]) -> str | None:
    said = _sentence(rest)
    first = NUMBER.search(said)
    while first and (left := SUM.match(said, first.start())):  # "5 * 3 = 15": what it comes to
        after = NUMBER.search(said, left.end())
        if after is None:
            break
        first = after
    return _number_form(first) if first else None


def _bare_number(text: str, choices: Sequence[str]) -> str | None:
    stripped = text.strip(" \t\r\n*_`")
    match = NUMBER.match(stripped)
    return _number_form(match) if match and UNITS.fullmatch(stripped, match.end()) else None


def _last_number(text: str, choices: Sequence[str]) -> str | None:
    found = [form for match in NUMBER.finditer(text) if (form := _number_form(match))]
    return found[-1] if found else None


def _valid(match: re.Match[str] | None, choices: Sequence[str]) -> str | None:
    letter = next((group for group in match.groups() if group), None) if match else None
    if letter is None or (choices and letter.upper() not in LETTERS[: len(choices)]):
        return None
    return letter.lower()


def _by_words(said: str, choices: Sequence[str], *, whole: bool) -> str | None:
    """The letter of the option whose text `said` is, or opens with; the longest counts."""
    said = canonical_text(said)
    found = [
        (len(words), LETTERS[place].lower())
        for place, choice in enumerate(choices[: len(LETTERS)])
        if (words := canonical_text(choice))
        and (said == words or (not whole and said.startswith(words) and not said[len(words)].isalnum()))
    ]
    return max(found)[1] if found else None


def canonical_text(text: str) -> str:
    """Words in lower case without what stands around them; for options, numbers too stay as they are written."""
    return " ".join(text.split()).strip(' \t*_`"“”「」『』.,;:。，；：').casefold()


def _announced_choice(rest: str, choices: Sequence[str]) -> str | None:
    return _valid(LETTER.match(rest), choices) or _by_words(_sentence(rest), choices, whole=False)


def _bare_choice(text: str, choices: Sequence[str]) -> str | None:
    return _valid(LETTER_OPENS.match(text), choices) or _by_words(text, choices, whole=True)


def _last_choice(text: str, choices: Sequence[str]) -> str | None:
    found = [
        letter
        for match in LETTER_ANYWHERE.finditer(text)
        if (letter := _valid(match, choices)) and not SECOND.search(text[: match.start()])
    ]
    return found[-1] if found else None


def _truth(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    word = match.group().lower()
    return "no" if word in ("no", "false", "incorrect", *NO_CN) else "yes"


def _announced_truth(rest: str, choices: Sequence[str]) -> str | None:
    return _truth(TRUTH.match(rest))


def _bare_truth(text: str, choices: Sequence[str]) -> str | None:
    return _truth(TRUTH_OPENS.match(text.lstrip(OPENING)))


def _last_truth(text: str, choices: Sequence[str]) -> str | None:
    """The last clause that is yes or no and nothing else."""
    words = [clause.strip(OPENING + ")）*\"”'") for clause in CLAUSE.findall(text)]
    found = [match for word in words if (match := TRUTH_OPENS.fullmatch(word))]
    return _truth(found[-1]) if found else None


def _joined(said: str) -> str | None:
    """`nk` for "nk", "n k" and "n-k"."""
    parts = re.split(r"[\s,.\-+]+", said.strip(" \t\r\n\"'“”‘’*_.,;:!"))
    is_joined = all(part.isalpha() for part in parts) and (len(parts) == 1 or all(len(part) == 1 for part in parts))
    return "".join(parts).lower() if is_joined else None


def _announced_letters(rest: str, choices: Sequence[str]) -> str | None:
    return _joined(re.split(r"[\"”」』']", _sentence(rest))[0])


def _bare_letters(text: str, choices: Sequence[str]) -> str | None:
    return _joined(text)


def _last_letters(text: str, choices: Sequence[str]) -> str | None:
    """What is quoted last."""
    quoted = [next(group for group in match.groups() if group is not None) for match in QUOTED.finditer(text)]
    found = [letters for each in quoted if (letters := _joined(each))]
    return found[-1] if found else None


def _dates(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and `YYYY-MM-DD` of every date that the calendar has."""
    for pattern in DATES:
        for match in pattern.finditer(text):
            fields = match.groupdict()
            month = MONTHS.index(fields["name"].lower()) + 1 if fields.get("name") else int(fields["month"])
            try:
                found = date(int(fields["year"]), month, int(fields["day"]))
            except ValueError:
                continue
            yield match.start(), match.end(), found.isoformat()


def _announced_date(rest: str, choices: Sequence[str]) -> str | None:
    return min(_dates(rest.partition("\n")[0]), default=(0, 0, None))[2]


def _bare_date(text: str, choices: Sequence[str]) -> str | None:
    stripped = text.strip(' \t\r\n*_`.。"')
    return next((found for start, end, found in _dates(stripped) if end - start == len(stripped)), None)


def _last_date(text: str, choices: Sequence[str]) -> str | None:
    return max(_dates(text), default=(0, 0, None))[2]


def _announced_text(text: str, choices: Sequence[str]) -> str | None:
    return extract_answer(text)


def _bare_text(text: str, choices: Sequence[str]) -> str | None:
    return canonical(text.strip()) if len(text.strip().splitlines()) == 1 else None


def _last_text(text: str, choices: Sequence[str]) -> str | None:
    """The last line."""
    return canonical(text.strip().splitlines()[-1].strip()) if text.strip() else None


KINDS = {
    "number": Kind(_announced_number, _bare_number, _last_number),
    "choice": Kind(_announced_choice, _bare_choice, _last_choice),
    "yes_no": Kind(_announced_truth, _bare_truth, _last_truth),
    "letters": Kind(_announced_letters, _bare_letters, _last_letters),
    "date": Kind(_announced_date, _bare_date, _last_date),
    "text": Kind(_announced_text, _bare_text, _last_text),
}
