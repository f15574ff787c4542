"""Where an answer ends: at an id, at a text, or because nobody waits for it any longer.

Knows: ids and texts that end an answer. Does not know where they come from, or how tokens are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

PAUSE_SHARE = 0.25
"""Share of a batch's rows that have ended at which the others go on without them: a row that has ended costs as much as
one that has not, and going on costs a copy of the keys and values, about as much as one token."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What ends an answer; neither is part of it."""

    ids: Sequence[int]
    texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if "" in self.texts:
            raise ValueError("--stop '': an empty text stands everywhere; give at least one character")

    def end_of(self, ids: Sequence[int]) -> int | None:
        """How many of `ids` come before the first that ends an answer; None: none does."""
        return next((i for i, token in enumerate(ids) if token in self.ids), None)

    def cut(self, text: str) -> tuple[str, bool]:
        """`text` up to the first of the texts that end it, and whether one did."""
        found = [at for at in map(text.find, self.texts) if at >= 0]
        return (text[: min(found)], True) if found else (text, False)

    def longest(self) -> int:
        """Bytes of the longest of the texts; 0: there is none."""
        return max((len(text.encode()) for text in self.texts), default=0)


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer, without control tokens, as training's proof reads it: cleaning up would take blanks that
    the model wrote."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Halt:
    """Tells transformers, after every token, which rows have ended; a stopping criterion.

    Args:
        width: positions of the prompts, padding included; what ends an answer is not looked for in a prompt.
        stays: whether a row keeps its place in the batch; with beams it does not.
        pauses: whether all rows are to stop, for a while, once enough of them have ended.
    """

    def __init__(self, tokenizer: Any, ends: Ends, width: int, *, stays: bool = True, pauses: bool = False) -> None:
        self._tokenizer, self._ends, self._width = tokenizer, ends, width
        self._stays, self._pauses = stays, pauses
        self.cancelled = False
        self.lengths: list[int | None] = []
        """Positions of each row up to where it ended, padding and what ended it included; None: it has not. Empty where
        rows change places."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """(rows,) bool."""
        ended = [token in self._ends.ids for token in input_ids[:, -1].tolist()]
        if size := self._ends.longest():
            # A token is a byte at least; control tokens are none, and four of them are unlikely in a mark.
            start = max(self._width, input_ids.shape[1] - size - 4)
            texts = [decoded(self._tokenizer, ids) for ids in input_ids[:, start:].tolist()]
            ended = [now or self._ends.cut(text)[1] for now, text in zip(ended, texts, strict=True)]
        if self._stays:
            length = input_ids.shape[1]
            self.lengths = [
                before if before is not None else length if now else None
                for before, now in zip(self.lengths or [None] * len(ended), ended, strict=True)
            ]
            ended = [length is not None for length in self.lengths]
        if self.cancelled or (self._pauses and sum(ended) >= PAUSE_SHARE * len(ended)):
            ended = [True] * len(ended)
        return torch.tensor(ended, device=input_ids.device)


class HeldBack:
    """Text that comes in pieces → the same pieces, without what ends it: what may be the beginning of an end is held
    back until it is known not to be."""

    def __init__(self, ends: Ends) -> None:
        self._ends, self._kept, self.ended = ends, "", False

    def add(self, piece: str) -> Iterator[str]:
        """What may be shown now."""
        if self.ended:
            return
        text, self.ended = self._ends.cut(self._kept + piece)
        keep = 0 if self.ended else self._beginning(text)
        self._kept = text[len(text) - keep :]
        if shown := text[: len(text) - keep]:
            yield shown

    def rest(self) -> Iterator[str]:
        """What was held back, at the end."""
        if self._kept and not self.ended:
            yield self._kept

    def _beginning(self, text: str) -> int:
        """Characters at the end of `text` with which one of the ends begins."""
        sizes = (size for end in self._ends.texts for size in range(len(end) - 1, 0, -1) if text.endswith(end[:size]))
        return max(sizes, default=0)
