"""Which rows go into which batch, and how a batch becomes tensors.

Knows: the plan of an epoch (global batches, micro-batches, ranks) and padding. Does not know models or files.

A global batch is the rows of one optimizer step. It is the same for any number of processes and any shape of
micro-batch, for it is drawn from the seed and the epoch alone; inside it the rows are dealt by length, which saves
padding and changes nothing, as the loss is summed over the global batch and divided once.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy
import torch
from torch.utils.data import Dataset

from utils import store
from utils.proof import IGNORED, Encoded

Batch = dict[str, torch.Tensor]
Lengths = Any
"""A sequence of whole numbers by row: a list, or a numpy array."""


class EpochPlan(Sequence[Sequence[int]]):
    """The global batches of an epoch: every row once, in an order drawn from (seed, epoch); the last may be smaller.

    It holds four bytes a row.
    """

    def __init__(self, num_rows: int, global_batch_size: int, *, seed: int, epoch: int) -> None:
        self._size = global_batch_size
        self._order = array("I", range(num_rows))
        random.Random(f"{seed}:{epoch}").shuffle(self._order)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return -(-len(self._order) // self._size)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[step] for step in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"the epoch has {len(self)} global batches, there is no number {index}")
        return self._order[index * self._size : (index + 1) * self._size].tolist()


def deal(rows: Sequence[int], lengths: Lengths, *, world_size: int, accumulation: int) -> list[list[list[int]]]:
    """A global batch as micro-batches: `[rank][micro-batch]` → row numbers, longest rows first.

    Neighbours in length share a micro-batch, and the ranks' n-th micro-batches hold rows of like length, so no rank
    waits for another. Sizes differ by one at most; where rows run out, a micro-batch is empty.
    """
    by_length = sorted(rows, key=lambda row: (-lengths[row], row))
    num_micro = world_size * accumulation
    size, larger = divmod(len(by_length), num_micro)
    dealt: list[list[list[int]]] = [[] for _ in range(world_size)]
    start = 0
    for i in range(num_micro):
        stop = start + size + (i < larger)
        dealt[i % world_size].append(by_length[start:stop])
        start = stop
    return dealt


def pad(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each int64 of shape (rows, longest)."""
    longest = max(len(row.input_ids) for row in rows)

    def column(values: Iterator[tuple[list[int], int]]) -> torch.Tensor:
        return torch.tensor([ids + [fill] * (longest - len(ids)) for ids, fill in values])

    return {
        "input_ids": column((row.input_ids, pad_id) for row in rows),
        "attention_mask": column(([1] * len(row.input_ids), 0) for row in rows),
        "labels": column((row.labels, IGNORED) for row in rows),
    }


def shortest(rows: Sequence[Encoded], pad_id: int, *, most_rows: int = 4, most_tokens: int = 512) -> Batch:
    """A batch of the shortest rows, whole, of together at most `most_tokens` tokens; at least one row."""
    sizes = store.lengths(rows)
    order = sorted(range(len(rows)), key=lambda row: (sizes[row], row))[:most_rows]
    fits = [i for i in range(1, len(order) + 1) if sum(int(sizes[row]) for row in order[:i]) <= most_tokens]
    return pad([rows[row] for row in order[: max(fits, default=1)]], pad_id)


class MicroBatches(Dataset[Batch]):
    """This rank's micro-batches of one epoch, in order; `set_epoch` draws those of another.

    Besides the columns of `pad`, an item has `rows` (int64, row numbers, for error messages) and `num_targets` (int64,
    scalar): the trained tokens of the whole global batch, by which its loss is divided.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        pad_id: int,
        *,
        per_device_batch_size: int,
        accumulation: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows, self._pad_id, self._seed = rows, pad_id, seed
        self._accumulation, self._rank, self._world_size = accumulation, rank, world_size
        self._global_batch_size = per_device_batch_size * accumulation * world_size
        self._lengths, self._targets = store.lengths(rows), store.targets(rows)
        self.set_epoch(0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        """Draws the batches of `epoch`, from 0."""
        self._plan = EpochPlan(len(self._rows), self._global_batch_size, seed=self._seed, epoch=epoch)

    def targets_before(self, step: int) -> int:
        """Trained tokens of the first `step` optimizer steps of the run, in all processes."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        plan = EpochPlan(len(self._rows), self._global_batch_size, seed=self._seed, epoch=epochs)
        begun = sum(int(self._targets[row]) for i in range(rest) for row in plan[i])
        return epochs * int(numpy.sum(self._targets)) + begun

    def __len__(self) -> int:
        return len(self._plan) * self._accumulation

    def __getitem__(self, index: int) -> Batch:
        step, micro = divmod(index, self._accumulation)
        members = self._plan[step]
        mine = deal(members, self._lengths, world_size=self._world_size, accumulation=self._accumulation)[self._rank][
            micro
        ]
        # A rank without rows still takes part in the step: it sends a row through the model, untrained.
        chosen = [self._rows[i] for i in mine] or [_without_targets(self._rows[members[-1]])]
        return pad(chosen, self._pad_id) | {
            "rows": torch.tensor(mine, dtype=torch.int64),
            "num_targets": torch.tensor(sum(int(self._targets[i]) for i in members)),
        }


def evaluation_batches(
    rows: Sequence[Encoded], pad_id: int, batch_size: int, *, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's share of `rows`, each once, in batches of like length."""
    lengths = store.lengths(rows)
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    for start in range(rank * batch_size, len(order), world_size * batch_size):
        yield pad([rows[i] for i in order[start : start + batch_size]], pad_id)


def only_item(items: list[Any]) -> Any:
    """Collates a list of one batch into that batch."""
    (item,) = items
    return item


def _without_targets(row: Encoded) -> Encoded:
    return Encoded(input_ids=row.input_ids, labels=[IGNORED] * len(row.input_ids), origin=row.origin, source=row.source)
