"""How much a text is like a reference: ROUGE-L and chrF, by the libraries that others use.

Knows: words of a text in any script, and the two scores. Does not know tasks, models or files.

rouge-score's own tokenizer keeps nothing but ASCII letters and digits, so a Chinese text would have no words and score
0; here a Chinese or Japanese character is a word (`overlap.words`). chrF is over characters, and takes any script.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from utils.overlap import words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.chrf import CHRF


class Words:
    """A tokenizer as rouge-score asks for one."""

    def tokenize(self, text: str) -> list[str]:
        """The words."""
        return words(text)


def rouge_l(answer: str, reference: str) -> float:
    """The F-measure of ROUGE-L, 0 to 1: the longest common sequence of words.

    >>> rouge_l("今天天气很好。", "今天天气好"), rouge_l("", "今天")
    (0.9090909090909091, 0.0)
    """
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """chrF2 of one text, 0 to 1 (sacrebleu gives percent): sequences of up to 6 characters."""
    return float(_chrf().sentence_score(answer, [reference]).score) / 100


@cache
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())


@cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
