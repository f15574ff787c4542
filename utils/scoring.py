"""Answers read out of text, and how sure an accuracy is.

Knows: how an answer is announced in English and Chinese, exact match, and Wilson intervals. Does not know models, files
or prompts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

# The last announcement counts: a chain of reasoning may state partial answers on its way. A letter is an option only in
# upper case and alone: "the answer is a dog" announces none.
ANSWER = re.compile(
    r"(?:(?i:answer)\s*(?:(?i:is)\s*:?|:)|答案\s*[是为：:]+)[\s*(（\"“]*"
    r"(?P<answer>-?\d[\d,]*(?:\.\d+)?|[A-H](?![A-Za-z])|(?i:yes|no)(?![A-Za-z]))"
)
Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Exact matches among `total` answers; `unread` of them announced no answer and count as wrong."""

    correct: int
    total: int
    unread: int

    @property
    def value(self) -> float:
        """Share of exact matches, 0 to 1."""
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
    """The answer that `text` announces last, in lower case, numbers in their shortest form; None where there is none.

    >>> extract_answer("3+4→7. So the answer is 7."), extract_answer("所以答案是7。"), extract_answer("seven")
    ('7', '7', None)
    """
    found = [match["answer"] for match in ANSWER.finditer(text)]
    if not found:
        return None
    last = found[-1].lower().replace(",", "")
    return re.sub(r"\.0+$|(?<=\.\d)0+$", "", last)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> Accuracy:
    """Compares the announced answer of each text in `answers` with that of its reference.

    Raises:
        ValueError: a reference that announces no answer.
    """
    correct = unread = 0
    for number, (answer, reference) in enumerate(zip(answers, references, strict=True), start=1):
        expected, found = extract_answer(reference), extract_answer(answer)
        if expected is None:
            raise ValueError(
                f"reference {number} announces no answer ('the answer is …' or '答案是…'): {reference[-80:]!r}"
            )
        correct += found == expected
        unread += found is None
    return Accuracy(correct=correct, total=len(references), unread=unread)


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
