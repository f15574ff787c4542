"""Answers read out of text, and how sure an accuracy is.

Knows: how an answer is announced in English and Chinese, and Wilson intervals. Does not know models, files or prompts.
What a model answers is read by `utils.readings`, which reads more; this is the form that converters write.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# The last announcement counts: a chain of reasoning may state partial answers on its way.
ANNOUNCED = re.compile(r"(?i:answer)\s*(?:(?i:is)(?![A-Za-z'’])\s*:?|:)|答案\s*[是为：:]+")
QUOTES = ('""', "“”", "「」", "『』")
"""A quoted answer is read whole; a pair of marks each."""
QUOTED = re.compile(
    "|".join(f"{opened}([^\\n]*?){closed}(?=[\\s.,;:!?)*。，；：！？）]|$)" for opened, closed in QUOTES)
)
# An option is a letter in upper case that stands alone: "a dog", "A dog", "A-frame" and "C++" announce none, nor do
# several letters ("A, B"). Yes and no stand alone too: "no one" is not "no".
REASON = r"(?:because|since|as|for|which|is)\b"
NUMBER = r"(?P<minus>-?)(?:(?:US|HK)?\$|Rs\.?\s?|[€£¥￥₹])?\s?(?P<number>-?\d[\d,]*(?:\.\d+)?(?:[/:]\d+)?)"
OPTION = (
    rf"(?:A(?!\s+(?!{REASON})[a-z])|[B-H])(?![A-Za-z0-9]|['’+#-])"
    r"(?!\s*[,、，/&]\s*[A-H](?![A-Za-z]))"
)
YES_NO = rf"(?i:yes|no)(?![A-Za-z0-9'’-])(?=\s*(?:$|[^\w\s]|[\u4e00-\u9fff]|{REASON}))"
SHORT = re.compile(rf"[\s*(（\"“]*(?:{NUMBER}|(?P<word>{OPTION}|{YES_NO}))")
SENTENCE_END = re.compile(r"[\n。！？；!?]|\.(?=[\"”’)*]*(?:\s|$))")
AROUND = ' \t\r\n*_`"“”「」『』.,;:。，；：'
Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Right ones among `total` answers; `unread` of them could not be read and count as wrong."""

    correct: int
    total: int
    unread: int

    @property
    def value(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.correct / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of `value`."""
        return wilson(self.correct, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        unread = f", {self.unread} without a readable answer" if self.unread else ""
        return f"{self.value:6.1%}  ({self.correct}/{self.total}, 95 % interval {low:.1%} to {high:.1%}{unread})"


def extract_answer(text: str) -> str | None:
    """The answer that `text` announces last, in lower case and numbers in their shortest form; None without one.

    A number stands without its unit and an option for its letter; any other answer is what is quoted, or what follows
    up to the end of its sentence.

    >>> extract_answer("3+4→7. So the answer is 7."), extract_answer("所以答案是7。"), extract_answer("seven")
    ('7', '7', None)
    >>> extract_answer("The answer is a bloody mess."), extract_answer('the answer is "Dr. No".')
    ('a bloody mess', 'dr. no')
    """
    for announced in reversed(list(ANNOUNCED.finditer(text))):
        answer = announced_answer(text[announced.end() :].lstrip(" \t\r\n*"))
        if answer:
            return answer
    return None


def canonical(answer: str) -> str:
    """A whole answer in the form that `extract_answer` gives: `(C)` → `c`, `$72` → `72`, `7 apples` → `7`."""
    return _short(SHORT.match(answer)) or _plain(answer)


def announced_answer(rest: str) -> str:
    """The answer that `rest` opens with, in the form that `extract_answer` gives; empty where there is none."""
    if quoted := QUOTED.match(rest):
        answer = next(group for group in quoted.groups() if group is not None)
        return _short(SHORT.fullmatch(answer.rstrip(")）. "))) or _plain(answer)
    if short := _short(SHORT.match(rest)):
        return short
    end = SENTENCE_END.search(rest)
    return _plain(rest[: end.start()] if end else rest)


def _short(match: re.Match[str] | None) -> str:
    """A number, an option or yes/no; empty where nothing matched."""
    if match is None:
        return ""
    if match["number"] is None:
        return match["word"].lower()
    number = match["minus"] + match["number"].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(AROUND).lower()


def wilson(successes: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927, doi:10.1080/01621459.1927.10502953); (0, 1) for no trials."""
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    centre = share + z * z / (2 * total)
    margin = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (centre - margin) / (1 + z * z / total)), min(1.0, (centre + margin) / (1 + z * z / total))


def language(text: str) -> str:
    """`cn` for a text with Chinese characters, else `en`."""
    return "cn" if re.search(r"[\u4e00-\u9fff]", text) else "en"
