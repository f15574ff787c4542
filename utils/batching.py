"""Which rows go into which batch, and how a batch becomes tensors.

Knows: the plan of an epoch (global batches, micro-batches, ranks) and padding. Does not know models or files.

A global batch is the rows of one optimizer step. It is the same for any number of processes and any shape of
micro-batch, for it is drawn from the seed and the epoch alone; inside it the rows are dealt by length, which saves
padding and changes nothing, as the loss is summed over the global batch and divided once.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy
import torch
from torch.utils.data import Dataset

from utils import distributed, packing, store
from utils.proof import IGNORED, Encoded

Batch = dict[str, torch.Tensor]
Lengths = Any
"""A sequence of whole numbers by row: a list, or a numpy array."""

OVERHEAD_TOKENS = 96
"""What a micro-batch more costs, in tokens of padding; see docs/log.md."""


class EpochPlan(Sequence[Sequence[int]]):
    """The global batches of an epoch: every row once, in an order drawn from (seed, epoch); the last may be smaller.

    It holds four bytes a row.
    """

    def __init__(
        self, num_rows: int, global_batch_size: int, *, seed: int, epoch: int, first: int | None = None
    ) -> None:
        """`first`: a row whose global batch changes places with the first."""
        self._size = global_batch_size
        self._order = array("I", range(num_rows))
        random.Random(f"{seed}:{epoch}").shuffle(self._order)  # pyright: ignore[reportArgumentType]
        self._steps = list(range(-(-num_rows // global_batch_size)))
        if first is not None:
            # A smaller last batch stays the last: only the row goes, in exchange for one of the first batch.
            at = self._order.index(first)
            step = at // global_batch_size
            if (step + 1) * global_batch_size > num_rows:
                self._order[0], self._order[at] = self._order[at], self._order[0]
            else:
                self._steps[0], self._steps[step] = self._steps[step], self._steps[0]

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[step] for step in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"the epoch has {len(self)} global batches, there is no number {index}")
        start = self._steps[index] * self._size
        return self._order[start : start + self._size].tolist()


MicroBatch = list[list[int]]
"""Its lines, each the row numbers that share it: one, unless rows are packed."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchSize:
    """How large a micro-batch may be: in rows, or in tokens, padding included. One of them is given."""

    rows: int | None = None
    tokens: int | None = None
    packing: Literal["lines", "line"] | None = None
    """With `tokens`: rows share lines as long as the longest row, or all have one line (see `packing.in_one_line`)."""

    def __post_init__(self) -> None:
        assert (self.rows is None) != (self.tokens is None), self
        assert self.packing is None or self.tokens is not None, self

    def halved(self, longest: int) -> MicroBatchSize | None:
        """Half of it; None where it is one row already. `longest`: tokens of the longest row."""
        if self.rows is not None:
            return replace(self, rows=self.rows // 2) if self.rows > 1 else None
        tokens = self.tokens or 0
        return replace(self, tokens=max(longest, tokens // 2)) if tokens > longest else None

    def said(self) -> str:
        """For people."""
        return f"{self.tokens:,} positions" if self.tokens else f"{self.rows} rows"


def cut(rows: Sequence[int], lengths: Lengths, size: MicroBatchSize) -> list[MicroBatch]:
    """Rows as micro-batches, the longest first, in which lines are of like length.

    In rows: sizes differ by one at most. In tokens: of all cuts into micro-batches of at most `size.tokens`, the one
    with the least padding, where a micro-batch more counts as `OVERHEAD_TOKENS` of it. A row longer than that is alone.
    """
    by_length = sorted(rows, key=lambda row: (-int(lengths[row]), row))
    if size.rows is not None:
        return _evenly([[row] for row in by_length], max(1, -(-len(by_length) // size.rows)))
    limit = size.tokens or 0
    lines = [[row] for row in by_length]
    if size.packing and by_length:
        longest = int(lengths[by_length[0]])
        lines = packing.bins(by_length, lengths, max(longest, limit) if size.packing == "line" else longest)
        lines.sort(key=lambda line: (-_tokens(line, lengths), line))
    sizes = [_tokens(line, lengths) for line in lines]
    # best[i]: (cost, start of the last micro-batch) of the first i lines.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(sizes) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            positions = sizes[start] * (end - start)
            if positions > limit and end - start > 1:
                break
            options.append((best[start][0] + positions + OVERHEAD_TOKENS, start))
        best.append(min(options))
    batches, end = [], len(sizes)
    while end:
        start = best[end][1]
        batches.append(lines[start:end])
        end = start
    return batches[::-1]


def deal(rows: Sequence[int], lengths: Lengths, size: MicroBatchSize, *, world_size: int) -> list[list[MicroBatch]]:
    """A global batch as micro-batches: `[rank][micro-batch]`, longest rows first.

    Every rank gets the same number of them, and nearly the same number of positions: the n-th micro-batches of all
    ranks are of like size, and the larger go to those who have less. Where there are fewer lines than ranks, a
    micro-batch is empty.
    """
    batches = cut(rows, lengths, size)

    def cost(batch: MicroBatch) -> int:
        return positions_of(batch, lengths)

    while len(batches) % world_size:
        batches.sort(key=cost, reverse=True)
        largest = next((i for i, batch in enumerate(batches) if len(batch) > 1), None)
        batches += [[]] if largest is None else _evenly(batches.pop(largest), 2)
    batches.sort(key=lambda batch: (-cost(batch), batch))
    dealt: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for start in range(0, len(batches), world_size):
        poorest = sorted(range(world_size), key=lambda rank: (loads[rank], rank))
        for rank, batch in zip(poorest, batches[start : start + world_size], strict=True):
            dealt[rank].append(batch)
            loads[rank] += cost(batch)
    return dealt


def positions_of(batch: MicroBatch, lengths: Lengths) -> int:
    """Positions of a micro-batch, padding included."""
    return max((_tokens(line, lengths) for line in batch), default=0) * len(batch)


def _tokens(rows: Sequence[int], lengths: Lengths) -> int:
    return sum(int(lengths[row]) for row in rows)


def _evenly(lines: MicroBatch, number: int) -> list[MicroBatch]:
    """`lines` in `number` parts of neighbours whose sizes differ by one at most."""
    size, larger = divmod(len(lines), number)
    starts = [i * size + min(i, larger) for i in range(number + 1)]
    return [lines[start:stop] for start, stop in itertools.pairwise(starts)]


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


def endings(rows: Sequence[Encoded], pad_id: int, *, most_rows: int = 4, tokens: int = 16) -> Batch:
    """A batch of the last tokens of the shortest rows: trained tokens for a causal model, few enough for any
    vocabulary."""
    sizes = store.lengths(rows)
    order = sorted(range(len(rows)), key=lambda row: (int(sizes[row]), row))[:most_rows]
    chosen = [rows[row] for row in order]
    return pad([replace(row, input_ids=row.input_ids[-tokens:], labels=row.labels[-tokens:]) for row in chosen], pad_id)


class StepBatches(Dataset[dict[str, Any]]):
    """This rank's share of the optimizer steps of one epoch, in order; `set_epoch` draws those of another.

    An item is a step: `members`, the row numbers of its whole global batch; `micro_batches`, a list of batches; and
    `num_targets` (int64, scalar), the trained tokens of the whole global batch, by which its loss is divided: at least
    one, for a row without any does not pass its proof. A micro-batch has the columns of `pad`, and `rows` (int64, row
    numbers, for error messages). `size` may be changed between steps.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        pad_id: int,
        size: MicroBatchSize,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """`batch_size`: rows of a global batch, of all ranks together. `rank`, `world_size`: this process's, unless
        given."""
        self._rows, self._pad_id, self.size, self._seed = rows, pad_id, size, seed
        self._batch_size = batch_size
        self._rank = distributed.rank() if rank is None else rank
        self._world_size = world_size or distributed.world_size()
        self._lengths, self._targets = store.lengths(rows), store.targets(rows)
        self.set_epoch(0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        """Draws the batches of `epoch`, from 0."""
        self._plan = self._drawn(epoch)

    def _drawn(self, epoch: int) -> EpochPlan:
        # The longest row comes in the first step of the run: memory that runs out does so in the first minute.
        first = int(numpy.argmax(self._lengths)) if epoch == 0 and len(self._rows) else None
        return EpochPlan(len(self._rows), self._batch_size, seed=self._seed, epoch=epoch, first=first)

    def targets_before(self, step: int) -> int:
        """Trained tokens of the first `step` optimizer steps of the run, in all processes."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        plan = self._drawn(epochs)
        begun = sum(int(self._targets[row]) for i in range(rest) for row in plan[i])
        return epochs * int(numpy.sum(self._targets)) + begun

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> dict[str, Any]:
        members = self._plan[index]
        targets = sum(int(self._targets[i]) for i in members)
        assert targets, "a step without a trained token"
        return {"members": members, "micro_batches": self.share(members), "num_targets": torch.tensor(targets)}

    def share(self, members: Sequence[int]) -> list[Batch]:
        """This rank's micro-batches of the global batch `members`, of the present `size`."""
        mine = deal(members, self._lengths, self.size, world_size=self._world_size)[self._rank]
        return [_tensors(batch, self._rows, self._pad_id, self.size, members[-1]) for batch in mine]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(numpy.max(self._lengths))


def padding_share(lengths: Lengths, size: MicroBatchSize, *, batch_size: int, seed: int, world_size: int) -> float:
    """The share of padding among all positions of the first epoch's micro-batches; of its first 100 steps, if it has
    more."""
    plan = EpochPlan(len(lengths), batch_size, seed=seed, epoch=0)
    tokens = positions = 0
    for step in plan[:100]:
        for batch in itertools.chain(*deal(step, lengths, size, world_size=world_size)):
            tokens += sum(_tokens(line, lengths) for line in batch)
            positions += positions_of(batch, lengths)
    return 1 - tokens / positions


def evaluation_batches(
    rows: Sequence[Encoded], pad_id: int, size: MicroBatchSize, *, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's share of `rows`, each once, in batches of like length; the same number for every rank, so that one
    with fewer rows ends with a row that is not trained."""
    lengths = store.lengths(rows)
    for batch in deal(range(len(rows)), lengths, size, world_size=world_size)[rank]:
        yield _tensors(batch, rows, pad_id, size, 0)


def only_item(items: list[Any]) -> Any:
    """Collates a list of one batch into that batch."""
    (item,) = items
    return item


def _tensors(batch: MicroBatch, rows: Sequence[Encoded], pad_id: int, size: MicroBatchSize, stand_in: int) -> Batch:
    """A micro-batch as its tensors, and `rows`, its row numbers. One without rows still takes part in a step, whose
    processes wait for each other: it is the row `stand_in`, untrained."""
    lines = [[rows[row] for row in line] for line in batch] or [[_without_targets(rows[stand_in])]]
    tensors = packing.packed(lines, pad_id) if size.packing else pad([row for line in lines for row in line], pad_id)
    return tensors | {"rows": torch.tensor([row for line in batch for row in line], dtype=torch.int64)}


def _without_targets(row: Encoded) -> Encoded:
    return Encoded(input_ids=row.input_ids, labels=[IGNORED] * len(row.input_ids), origin=row.origin, source=row.source)
