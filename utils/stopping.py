"""Where an answer ends: at an id, at a text, or because nobody waits for it any longer.

Knows: ids and texts that end an answer. Does not know where they come from, or how tokens are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


class Decoded(Protocol):
    """What `Halt` needs of a row (`utils.decoding.Row`)."""

    prompt: Sequence[int]
    ends: Ends
    max_new_tokens: int
    on_token: Callable[[int], object]
    cancelled: bool


class Halt:
    """Tells transformers, after every token, which rows have ended; a stopping criterion.

    Args:
        padding: positions before each row's prompt.
        keeps_places: whether a row keeps its place in the batch; with beams it does not.
        pauses: asked after every token whether all rows are to stop for a while; they also do so once enough of them
            have ended, or one is cancelled. None: they go on until all have ended or are cancelled.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: Sequence[Decoded],
        padding: Sequence[int],
        *,
        keeps_places: bool = True,
        pauses: Callable[[], bool] | None = None,
    ) -> None:
        self._tokenizer, self._rows, self._keeps_places, self._pauses = tokenizer, rows, keeps_places, pauses
        self._starts = [count + len(row.prompt) for count, row in zip(padding, rows, strict=True)]
        self.lengths: list[int | None] = [None] * len(rows)
        """Positions of each row up to where it ended, padding and what ended it included; None: it has not."""
        self._stopped = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """(rows,) bool."""
        if self._stopped:  # on a GPU, transformers looks at the answer a few tokens later, and takes those back
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if not self._keeps_places:
            row = self._rows[0]
            ended = [self._ends(row, ids, max(self._starts)) for ids in input_ids.tolist()]
            return torch.tensor(ended, device=input_ids.device)
        length = input_ids.shape[1]
        for i, ids in enumerate(input_ids.tolist()):
            row = self._rows[i]
            if self.lengths[i] is None and not row.cancelled:
                row.on_token(ids[-1])
                if length - self._starts[i] >= row.max_new_tokens or self._ends(row, ids, self._starts[i]):
                    self.lengths[i] = length
        over = [end is not None or row.cancelled for end, row in zip(self.lengths, self._rows, strict=True)]
        cancelled = any(row.cancelled for row in self._rows)
        if all(over) or (self._pauses and (cancelled or sum(over) >= PAUSE_SHARE * len(over) or self._pauses())):
            self._stopped = True
            over = [True] * len(over)
        return torch.tensor(over, device=input_ids.device)

    def _ends(self, row: Decoded, ids: list[int], start: int) -> bool:
        """Whether the last of `ids` ends the row, whose prompt ends at `start`."""
        if ids[-1] in row.ends.ids:
            return True
        if not row.ends.texts:
            return False
        # A token is a byte at least; control tokens are none, and four of them are unlikely in a mark.
        tail = ids[max(start, len(ids) - row.ends.longest() - 4) :]
        return row.ends.cut(decoded(self._tokenizer, tail))[1]


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
