"""Rows that are decoded together by transformers' `generate`, which rows may leave and join on the way.

Knows: padding, the cache, and that transformers goes on where it was stopped if it is given ids and cache. Does not
know where prompts come from, or text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from utils import kv_cache, sampling
from utils.adapters import virtual_tokens
from utils.stopping import Ends, Halt


def _ignore(token: int) -> None:
    """Nobody watches."""


@dataclass(kw_only=True, eq=False)
class Row:
    """A prompt and what has been decoded behind it."""

    prompt: Sequence[int]
    ends: Ends
    max_new_tokens: int
    seed: int
    on_token: Callable[[int], object] = _ignore
    """Told each new token, the one that ends the answer included, in the thread that decodes. Not with beams."""
    cancelled: bool = False
    """Set by whoever wants no more of it."""
    new: list[int] = field(default_factory=list)
    """The tokens decoded so far."""

    def __post_init__(self) -> None:
        self.draws = random.Random(self.seed)

    @property
    def ids(self) -> list[int]:
        """The prompt and what came behind it."""
        return [*self.prompt, *self.new]


class Batch:
    """Rows with the same settings, decoded together. Rows that have ended leave; others join while it runs.

    Args:
        settings: parameters of transformers' `generate`; `max_new_tokens` is each row's own.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, dict(settings)
        self.rows: list[Row] = []
        self._width = 0
        """Positions of every row, padding on the left included."""
        self._keeps_places = settings.get("num_beams", 1) == 1
        # Virtual tokens stand in a cache that peft makes; beams change places in transformers'.
        self._cache = kv_cache.make(model) if self._keeps_places and not virtual_tokens(model) else None

    @property
    def can_be_joined(self) -> bool:
        """Whether rows can join while others are on their way."""
        return not self.rows or (self._cache is not None and kv_cache.can_be_joined(self._cache))

    def add(self, rows: Sequence[Row]) -> list[Row]:
        """Takes rows in; those who come later are brought to their first token alone. Returns those of them that have
        ended with it."""
        if not self.rows:
            self.rows = list(rows)
            self._width = max((len(row.ids) for row in rows), default=0)
            if self._cache is not None:
                self._cache = kv_cache.make(self._model)
            return []
        late = Batch(self._model, self._tokenizer, self._settings)
        late.add(rows)
        ended = late.run(lambda: True)
        if late.rows:
            assert self._cache is not None
            assert late._cache is not None
            self._cache = kv_cache.joined(self._cache, late._cache)
            self.rows += late.rows
            self._width = max(self._width, late._width)
        return ended

    def run(self, pauses: Callable[[], bool] = lambda: False) -> list[Row]:
        """Decodes until rows have ended, and returns them, and those that are cancelled; or, with none, until
        `pauses()`, which is asked at every token. A row that has ended stays beside the others until enough of them
        have (`stopping.PAUSE_SHARE`)."""
        padding = [self._width - len(row.ids) for row in self.rows]
        halt = Halt(
            self._tokenizer,
            self.rows,
            padding,
            keeps_places=self._keeps_places,
            pauses=pauses if self._cache is not None else None,
        )
        with sampling.seeded(self._settings, self.rows[0].seed):
            output = self._generate(padding, halt)
        for row, ids, skipped, length in zip(self.rows, output, padding, halt.lengths, strict=True):
            row.new = ids[skipped + len(row.prompt) : length]
        self._width = len(output[0])
        stays = [self._cache is not None and length is None and not row.cancelled
                 for row, length in zip(self.rows, halt.lengths, strict=True)]  # fmt: skip
        over = [row for row, stay in zip(self.rows, stays, strict=True) if not stay]
        self._keep([i for i, stay in enumerate(stays) if stay])
        return over

    def _keep(self, stay: Sequence[int]) -> None:
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in stay]
        if self.rows and self._cache is not None:
            self._cache.batch_select_indices(torch.tensor(stay, device=self._model.device))
            spare = self._width - max(len(row.ids) for row in self.rows)
            if spare and kv_cache.can_be_joined(self._cache):  # only padding is left there
                kv_cache.drop_first(self._cache, spare)
                self._width -= spare

    @torch.no_grad()
    def _generate(self, padding: Sequence[int], halt: Halt) -> list[list[int]]:
        """transformers' `generate` on all rows, from where they are: (rows, positions)."""
        # With a token that the row has anyway: a penalty on repetitions looks at padding, too.
        rows = [[*[row.prompt[0]] * count, *row.ids] for row, count in zip(self.rows, padding, strict=True)]
        masks = [[0] * count + [1] * len(row.ids) for row, count in zip(self.rows, padding, strict=True)]
        device, ends = self._model.device, self.rows[0].ends.ids
        if any(row.ends.ids != ends for row in self.rows):
            raise ValueError("rows that are decoded together must end at the same ids")
        told = sampling.chosen_by(self._settings, [row.draws for row in self.rows])
        told["max_new_tokens"] = max(row.max_new_tokens - len(row.new) for row in self.rows)
        return self._model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(masks, device=device),
            use_cache=True,
            eos_token_id=list(ends),
            pad_token_id=self._tokenizer.pad_token_id,
            stopping_criteria=[halt],
            **({} if self._cache is None else {"past_key_values": self._cache}),
            **told,
        ).tolist()
