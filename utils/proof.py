"""A row's ids and labels, and the proof that they say what its record says.

Knows: what must hold of the labels of any row. Does not know how a row is rendered, tokenised or cut.
"""

from __future__ import annotations

import itertools
import operator
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from utils.readers import Row
from utils.tokens import Tokenizer

IGNORED = -100
"""The label of a token without loss; torch's cross-entropy ignores it by default."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A row ready for a batch: `labels` is as long as `input_ids`, and equals it where the loss is taken."""

    input_ids: list[int]
    labels: list[int]
    origin: str
    source: str = ""

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss; the first token of a row never can."""
        return len(self.labels) - self.labels.count(IGNORED) - (self.labels[:1] not in ([], [IGNORED]))


class MaskError(ValueError):
    """A row whose labels are not what they must be; training on it would teach something else than the record says."""


class Outcome(NamedTuple):
    """What became of a row: encoded, or dropped."""

    encoded: Encoded | None
    what: str = ""
    """Why it was dropped, or what was cut; empty for a row that was taken as it is."""
    spans: Sequence[int] = ()
    """[start, end) of each run of trained tokens, one after the other."""


@dataclass(kw_only=True)
class Draft:
    """A row as encoded, and what its proof needs."""

    encoded: Encoded | None
    """None for a row that is dropped."""
    row: Row
    answers: list[str]
    """The texts that are trained."""
    what: str
    spans: list[tuple[int, int]]
    """[start, end) of each answer in the row before it was cut, with the token that ends it."""
    prompts: list[list[int]]
    """The ids that inference sends for each of the answers."""
    head: int
    """Where tokens were cut from the prompt, and `removed` how many; the checks allow for exactly these."""
    removed: int = 0
    cut: bool = False
    """Whether anything was cut, so that answers may be missing at the end."""

    def kept_spans(self) -> list[int]:
        """[start, end) of each answer in the row as it is now, one after the other; without those cut away."""
        size = len(self.encoded.input_ids) if self.encoded else 0
        moved = [(start - self.removed, min(end - self.removed, size)) for start, end in self.spans]
        return [place for start, end in moved if start < end for place in (start, end)]

    def __post_init__(self) -> None:
        size = len(self.encoded.input_ids) if self.encoded else 0
        self.num_whole = sum([end - self.removed <= size for _, end in self.spans])
        """How many answers are whole; what is cut, is cut from the last ones."""

    def whole_answers(self) -> list[list[int]]:
        """The ids of each answer that is whole, without the token that ends it."""
        ids = self.encoded.input_ids if self.encoded else []
        return [ids[start - self.removed : end - self.removed - 1] for start, end in self.spans[: self.num_whole]]


def prove(draft: Draft, texts: Sequence[str], tokenizer: Tokenizer, controls: set[int]) -> None:
    """Checks one row's labels against its record; `MaskError` names the row and what is wrong.

    1. At least one token is trained.
    2. No control token stands twice in a row.
    3. The ids before each answer are the ids that inference sends for it.
    4. Trained text decodes to the assistant's text, with no control token inside, and a control token ends it.
    5. The labels are the tokens of the answers, and nothing else is trained.

    Args:
        texts: what each of `draft.whole_answers()` decodes to.
        controls: the ids of control tokens.
    """
    encoded, row = draft.encoded, draft.row
    assert encoded is not None, "a dropped row has nothing to prove"
    ids, labels = encoded.input_ids, encoded.labels
    if encoded.num_targets == 0:
        raise MaskError(f"{row.origin}: no token is trained")
    if len(ids) < 3 or not controls.isdisjoint(ids[1:-1]):  # where they stand at the ends alone, none is doubled
        for control in controls.intersection(ids):
            if any(a == b == control for a, b in itertools.pairwise(ids)):
                raise MaskError(
                    f"{row.origin}: the control token {tokenizer.decode([control])!r} stands twice in a row"
                )
    answers = draft.answers
    if len(draft.spans) != len(answers):
        raise MaskError(f"{row.origin}: {len(answers)} answers, but {len(draft.spans)} trained spans")
    decoded, head, removed, expected = iter(texts), draft.head, draft.removed, [IGNORED] * len(ids)
    for prompt, answer, (start, end) in zip(draft.prompts, answers, draft.spans, strict=True):
        begin, stop = start - removed, min(end - removed, len(ids))
        sent = prompt[:head] + prompt[head + removed :] if removed else prompt
        if sent[: len(ids)] != ids[:begin]:
            raise MaskError(
                f"{row.origin}: the prompt differs from what inference sends: {_show(sent, ids[:begin], tokenizer)}"
            )
        expected[begin:stop] = ids[begin:stop]
        if stop == end - removed:
            _prove_answer(ids[begin:stop], answer, next(decoded), row, tokenizer, controls)
        elif not draft.cut:
            raise MaskError(f"{row.origin}: an answer of {end - start} tokens is not whole, though nothing was cut")
    if labels != expected:
        wrong = sum(map(operator.ne, labels, expected)) + abs(len(labels) - len(expected))
        raise MaskError(f"{row.origin}: {wrong} labels differ from the answers' tokens, which alone are trained")


def _prove_answer(
    ids: Sequence[int], answer: str, decoded: str, row: Row, tokenizer: Tokenizer, controls: set[int]
) -> None:
    *text, end = ids
    if end not in controls:
        raise MaskError(
            f"{row.origin}: the answer does not end with a control token, but with {tokenizer.decode([end])!r}"
        )
    if not controls.isdisjoint(text):
        raise MaskError(f"{row.origin}: a control token stands inside the answer {answer!r}")
    # Some tokenizers cannot write every text exactly: SentencePiece may fold spaces, others normalise characters. What
    # differs in more than that is another text.
    if decoded != answer and _folded(decoded) != _folded(answer):
        raise MaskError(f"{row.origin}: the trained ids read {decoded!r}, the record says {answer!r}")


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _show(expected: Sequence[int], found: Sequence[int], tokenizer: Tokenizer) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    return (
        f"from token {at} on inference sends {tokenizer.decode(list(expected[at : at + 8]))!r}, "
        f"training has {tokenizer.decode(list(found[at : at + 8]))!r}"
    )
