"""How likely a model finds given continuations of given prompts.

Knows: which of them share a batch, and the log-probabilities of their tokens. Does not know records, tasks, or what is
made of the figures.

A continuation's figure is its own: what is beside it in a batch, and how that is padded, do not change it, but for the
rounding of sums. Logits exist at the continuations' tokens alone (`target_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils.adapters import context_length, virtual_tokens
from utils.batching import pad
from utils.proof import IGNORED, Encoded
from utils.target_loss import HeadAtTargets

LOGIT_BYTES = 256 * 2**20
"""Float32 logits at a time."""


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A prompt and what comes after it, both as ids; neither is empty."""

    prompt: Sequence[int]
    continuation: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.continuation)


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What a model gives a continuation."""

    total: float
    """The sum of its tokens' log-probabilities, in nats."""
    is_greedy: bool
    """Whether each of them is the likeliest."""


class Scales:
    """Weighs continuations; made once for a model, which stays as it was.

    Args:
        batch_size: the most rows of a batch.
        most_positions: of a batch, padding included; None: no limit.
    """

    def __init__(self, model: Any, *, pad_id: int, batch_size: int, most_positions: int | None = None) -> None:
        self._head = HeadAtTargets(model)
        self._pad_id, self._batch_size, self._most_positions = pad_id, batch_size, most_positions
        self._most_targets = max(1, LOGIT_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))

    @torch.no_grad()
    def weigh(
        self, model: Any, rows: Sequence[Continued], on_batch: Callable[[int], object] = lambda done: None
    ) -> list[Likelihood]:
        """The figure of each row, in order; `on_batch` is told how many are done.

        Raises:
            ValueError: a row that does not fit into the model's context.
        """
        for row in rows:
            require_room(model, row)
        found: dict[int, Likelihood] = {}
        for members in self._batches(rows):
            batch = pad([_encoded(rows[i]) for i in members], self._pad_id)
            tensors = {name: tensor.to(model.device) for name, tensor in batch.items()}
            chances = self._head.logits(model, tensors).float().log_softmax(-1)
            targets = torch.tensor([i for member in members for i in rows[member].continuation], device=chances.device)
            given = chances.gather(1, targets[:, None])[:, 0]
            likeliest = chances.argmax(-1) == targets
            start = 0
            for member in members:
                of = slice(start, start + len(rows[member].continuation))
                start = of.stop
                found[member] = Likelihood(total=given[of].sum().item(), is_greedy=bool(likeliest[of].all()))
            on_batch(len(found))
        return [found[i] for i in range(len(rows))]

    def _batches(self, rows: Sequence[Continued]) -> Iterator[list[int]]:
        """Rows that share a batch, by number: like lengths, the longest first."""
        batch: list[int] = []
        targets = 0
        for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
            more = len(rows[i].continuation)
            positions = (len(batch) + 1) * len(rows[batch[0] if batch else i])
            is_full = len(batch) == self._batch_size or targets + more > self._most_targets
            if batch and (is_full or (self._most_positions is not None and positions > self._most_positions)):
                yield batch
                batch, targets = [], 0
            batch.append(i)
            targets += more
        if batch:
            yield batch


def require_room(model: Any, row: Continued) -> None:
    """`ValueError` if virtual tokens, a prompt and its continuation do not fit into the model's context."""
    context, needed = context_length(model), virtual_tokens(model) + len(row)
    if context is not None and needed > context:
        raise ValueError(
            f"the prompt has {len(row.prompt)} tokens; with an option of {len(row.continuation)} that is more than the "
            f"model's context of {context}: shorten it, or ask with fewer --shots"
        )


def _encoded(row: Continued) -> Encoded:
    ids, labels = [*row.prompt, *row.continuation], [IGNORED] * len(row.prompt) + [*row.continuation]
    return Encoded(input_ids=ids, labels=labels, origin="")
