"""Options as answers: by letter, by words, by amount.

Knows: letters A to H that stand alone, options' words and amounts, and options that are ruled out. Does not know what
announces an answer. Who names two options, or none of them, has chosen none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from utils.readings import numbers
from utils.readings.contract import LETTERS, Kind, Undecided
from utils.readings.wording import ANSWER_IS, IS_ANSWER, LETTER_FOLLOWS, OPENING, sentence
from utils.scoring import OPTION

ONE = r"[(（\[]?[A-H](?![A-Za-z])[)）\]]?"
JOIN = r"\s*(?:[,、，/&]|\band\b|\bor\b|[和或与及])\s*"
GROUP = rf"(?<![A-Za-z]){ONE}(?:{JOIN}{ONE}){{0,7}}"
SINGLE = rf"{OPTION}(?!\s*(?:and|or|和|或|与)\s*[(（]?[A-H](?![A-Za-z]))"
LETTER = re.compile(
    rf"(?:(?i:option|choice|选项)\s*)?(?:[(（\[]?(?P<letter>{SINGLE})|[(（\[]?(?P<small>[a-h])[)）\]]"
    r"|(?P<alone>[a-h])(?=[.。!！*]*\s*(?:\n|$)))"
)
OPENS = re.compile(
    r"(?:(?i:option|choice|选项)\s*)?(?:[(（\[](?P<inside>[A-Ha-h])[)）\]]"
    rf"|(?P<letter>{SINGLE})[*_]*\s*(?:[项选]项?\s*)?(?:[):：。、，,\n]|\.(?![A-Za-z]\.)|[-–—]\s|$)"
    r"|(?P<small>[a-h])(?:\)\s|[.)]?\s*$))"
)
# In Chinese a letter stands beside other characters; only some of these follow an option: 项, 是, …
ANYWHERE = re.compile(
    rf"(?:[(（](?P<inside>[A-H])[)）](?!{JOIN}{ONE})|(?<![A-Za-z0-9'’.-])(?P<letter>{SINGLE})(?!\.[A-Za-z]\.|[)）]{JOIN}{ONE}))"
    r"(?![\u4e00-\u9fff])"
    rf"|(?<![A-Za-z0-9'’-])(?P<followed>{SINGLE})(?=[项选是为对最更符])"
)
SECOND = re.compile(r"(?<![A-Za-z])[A-H][)）]?\s*(?:and|or|[和或与、，,/&])\s*$")
"""Before the second of two letters."""

RULED_OUT = re.compile(
    rf"{GROUP}\s*(?:选?项)?(?:的?(?:说法|描述))?(?:都|均|也|全)?(?:是)?(?:错误?的?|不正确|不符合\w*|不对|有误|排除)"
    rf"|{GROUP}\s*(?i:is|are|(?:can|could|must)\s+be)\s+(?i:also\s+|clearly\s+|both\s+|all\s+)*(?i:wrong|incorrect|false|not\b|ruled\s+out|eliminated|excluded)"
    rf"|(?:排除|不(?:能|应该?|可以?|会)?选择?|(?i:rule\s+out|eliminate|exclude))\s*{GROUP}"
)
IS_RIGHT = (
    r"(?<=[A-H)）\]])\s*(?:选?项)?(?:的?(?:说法|描述))?"
    r"(?:\s(?i:is|are)\s+(?i:the\s+)?(?i:correct|right|best)\b|正确|最?符合题意|是?对的)"
)
CHOSEN = rf"(?i:\b(?:choose|chose|pick|select|go\s+with)\s+(?:option\s+)?){LETTER_FOLLOWS}"
SEVERAL = re.compile(rf"(?i:both|either|neither)\b|{ONE}{JOIN}{ONE}|{ONE}[,，]?\s*[也还]?可能是?{ONE}")
AND_ANOTHER = re.compile(rf"\s*(?:or|and|或|和)\s*{ONE}")
LABEL = re.compile(r"[(（]?(?<![A-Za-z])(?P<letter>[A-H])[)）.．、:：]\s*")
NONE = re.compile(r"(?i:none|neither|nothing)\b|(?:以上)?(?:都|均)(?:不|错|没)")
NO_WORDS = re.compile(r"^[^\w(（\[$¥€£-]+|(?<![^\w\x00-\x7f])(?<!\s)(?:\s|[^\w\x00-\x7f])+$")
"""Signs, spaces and pictures around a text."""
ARTICLE = re.compile(r"(?:an?|the)\s+(?=\w)")
AROUND = " \t*_`\"“”‘’「」『』.,;:。，；：!！'"


def canonical_text(text: str) -> str:
    """Words in lower case without what stands around them, or an article; numbers stay as they are written."""
    text = " ".join(text.split()).strip(AROUND).casefold()
    return ARTICLE.sub("", text, count=1) if ARTICLE.match(text) else text


def _announced(rest: str, choices: Sequence[str]) -> str | None:
    rest = rest.replace("--", " - ")
    if not RULED_OUT.match(rest):
        rest = RULED_OUT.sub(lambda span: " " * len(span.group()), rest)
    said = sentence(rest)
    if by_words := _by_words(said, choices, whole=False):
        return by_words
    if SEVERAL.match(rest) or NONE.match(rest):
        raise Undecided
    letter = LETTER.match(rest)
    found = _valid(letter, choices)
    if letter and found and AND_ANOTHER.match(_after_own_words(rest[letter.end() :], found, choices)):
        raise Undecided
    return found or _by_amount(said, choices)


def _bare(text: str, choices: Sequence[str]) -> str | None:
    text = NO_WORDS.sub("", text)
    if SEVERAL.match(text) or _without_list(text, choices) != text:
        return None
    if found := _valid(OPENS.match(text), choices) or _by_words(text, choices, whole=True):
        return found
    letter, _, words = text.partition(" ")
    own = _by_words(words, choices, whole=False) if len(letter) == 1 else None
    if own and own == letter.lower():  # "C bedroom"
        return own
    return _by_amount(text, choices) if numbers.KIND.bare(text, ()) else None


def _last(text: str, choices: Sequence[str]) -> str | None:
    text = _without_list(RULED_OUT.sub(" ", text), choices)
    found = [
        letter
        for match in ANYWHERE.finditer(text)
        if (letter := _valid(match, choices)) and not SECOND.search(text, 0, match.start())
    ]
    return found[-1] if found else _only_words(text, choices)


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
        and (said == words or (not whole and said.startswith(words) and _ends(said, len(words))))
    ]
    return max(found)[1] if found else None


def _after_own_words(rest: str, letter: str, choices: Sequence[str]) -> str:
    """What follows an option's letter, without the option's own words."""
    rest = rest.lstrip(")）.:： ")
    place = LETTERS.index(letter.upper())
    own = choices[place] if place < len(choices) else ""
    return rest[len(own) :] if rest.startswith(own) else rest


def _ends(text: str, place: int) -> bool:
    """Whether a word can end at a place: always between Chinese characters."""
    return not (text[place].isalnum() and text[place].isascii())


def _by_amount(said: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option with the amount that `said` opens with: "24 dollars" for "$24"."""
    amount = numbers.opening(said) if choices else None
    if amount is None:
        return None
    found = [place for place, choice in enumerate(choices[: len(LETTERS)]) if numbers.opening(choice) == amount]
    return LETTERS[found[0]].lower() if len(found) == 1 else None


def _without_list(text: str, choices: Sequence[str]) -> str:
    """`text` without the options as the question lists them, if it lists them all."""
    spans: dict[str, tuple[int, int]] = {}
    for label in LABEL.finditer(text) if choices else ():
        letter = label["letter"]
        own = choices[LETTERS.index(letter)] if LETTERS.index(letter) < len(choices) else ""
        if letter not in spans and text.startswith(own, label.end()):
            spans[letter] = label.start(), label.end() + len(own)
    if len(spans) < len(choices[: len(LETTERS)]):
        return text
    for start, end in sorted(spans.values(), reverse=True):
        text = f"{text[:start]} {text[end:]}"
    return text


def _only_words(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the option whose words are in the text's last line, if no other option's are."""
    last = text.strip().rpartition("\n")[2].casefold()
    found = [
        place
        for place, choice in enumerate(choices[: len(LETTERS)])
        if (words := canonical_text(choice)) and _holds(last, words)
    ]
    return LETTERS[found[0]].lower() if len(found) == 1 else None


def _holds(text: str, words: str) -> bool:
    """Whether `text` has `words`, and not as a part of longer ones."""
    place = text.find(words)
    while place >= 0:
        before, end = text[place - 1 : place], place + len(words)
        if not (before.isalnum() and before.isascii()) and (end == len(text) or _ends(text, end)):
            return True
        place = text.find(words, place + 1)
    return False


KIND = Kind(
    announced=_announced,
    bare=_bare,
    fallback=_last,
    marks=re.compile(f"{ANSWER_IS}|{CHOSEN}"),
    marks_before=re.compile(f"{IS_ANSWER}|{IS_RIGHT}"),
    opening=OPENING,
    opens_with_not=True,
)
