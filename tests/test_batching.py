import itertools
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.batching import (
    OVERHEAD_TOKENS,
    EpochPlan,
    MicroBatchSize,
    StepBatches,
    cut,
    deal,
    evaluation_batches,
    only_item,
    pad,
    padding_share,
    positions_of,
    shortest,
)
from utils.proof import IGNORED, Encoded


def rows(lengths: list[int]) -> list[Encoded]:
    return [
        Encoded(input_ids=[i + 10] * n, labels=[IGNORED] + [i + 10] * (n - 1), origin=f"row {i}")
        for i, n in enumerate(lengths)
    ]


def test_an_epoch_has_every_row_once_and_another_order_each_time() -> None:
    plans = [list(EpochPlan(23, 5, seed=1, epoch=e)) for e in range(3)]
    for plan in plans:
        assert sorted(itertools.chain(*plan)) == list(range(23))
        assert [len(step) for step in plan] == [5, 5, 5, 5, 3]
    assert plans[0] != plans[1] != plans[2]
    assert plans[0] == list(EpochPlan(23, 5, seed=1, epoch=0))
    assert plans[0] != list(EpochPlan(23, 5, seed=2, epoch=0))


SIZES = [
    MicroBatchSize(rows=1),
    MicroBatchSize(rows=3),
    MicroBatchSize(tokens=1),
    MicroBatchSize(tokens=12),
    MicroBatchSize(tokens=99),
    MicroBatchSize(tokens=12, packing="lines"),
    MicroBatchSize(tokens=12, packing="line"),
]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    world_size=st.integers(1, 5),
    size=st.one_of(
        st.builds(lambda n: MicroBatchSize(rows=n), st.integers(1, 50)),
        st.builds(lambda n: MicroBatchSize(tokens=n), st.integers(1, 400)),
    ),
)
@settings(deadline=None)
def test_dealing_gives_every_row_to_exactly_one(lengths: list[int], world_size: int, size: MicroBatchSize) -> None:
    dealt = deal(range(len(lengths)), lengths, size, world_size=world_size)
    micro = [[row for line in batch for row in line] for rank in dealt for batch in rank]
    assert sorted(itertools.chain(*micro)) == list(range(len(lengths)))
    assert len({len(rank) for rank in dealt}) == 1, "with collectives in a forward pass, ranks must do as many"
    for batch in micro:
        assert size.rows is None or len(batch) <= size.rows
        assert size.tokens is None or len(batch) <= 1 or max(lengths[i] for i in batch) * len(batch) <= size.tokens


def padded(batches: list[list[int]], lengths: list[int]) -> int:
    return sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), limit=st.integers(1, 90))
@settings(deadline=None, max_examples=60)
def test_the_cut_has_the_least_padding_of_all(lengths: list[int], limit: int) -> None:
    lengths.sort(reverse=True)
    everything = list(range(len(lengths)))

    def cost(batches: list[list[int]]) -> int:
        return padded(batches, lengths) + OVERHEAD_TOKENS * len(batches)

    def allowed(batch: list[int]) -> bool:
        return len(batch) == 1 or lengths[batch[0]] * len(batch) <= limit

    cuts = []
    for chosen in itertools.product([False, True], repeat=len(lengths) - 1):
        starts = [0, *[i + 1 for i, here in enumerate(chosen) if here], len(lengths)]
        cuts.append([everything[a:b] for a, b in itertools.pairwise(starts)])
    best = min(cost(batches) for batches in cuts if all(map(allowed, batches)))
    found = cut(everything, lengths, MicroBatchSize(tokens=limit))
    assert cost([[row for (row,) in batch] for batch in found]) == best


def test_neighbours_in_length_share_a_batch() -> None:
    ((first, second),) = deal([0, 1, 2, 3], [5, 50, 6, 49], MicroBatchSize(rows=2), world_size=1)
    assert (first, second) == ([[1], [3]], [[2], [0]])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_have_nearly_the_same_number_of_tokens(world_size: int) -> None:
    lengths = [int(40 * 1.02**i) for i in range(128)]
    dealt = deal(range(128), lengths, MicroBatchSize(tokens=2048), world_size=world_size)
    loads = [sum(positions_of(batch, lengths) for batch in rank) for rank in dealt]
    assert max(loads) < 1.05 * min(loads)


def test_rows_of_like_length_need_little_padding() -> None:
    lengths = [int(40 * 1.02**i) for i in range(128)]
    shares = [
        padding_share(lengths, size, batch_size=128, seed=0, world_size=1)
        for size in (MicroBatchSize(rows=128), MicroBatchSize(tokens=2048))
    ]
    assert shares[0] > 0.5
    assert shares[1] < 0.06
    assert padding_share([7] * 10, MicroBatchSize(tokens=70), batch_size=10, seed=0, world_size=1) == 0


@pytest.mark.parametrize("packing", [None, "lines", "line"])
def test_the_share_of_padding_is_that_of_the_tensors(packing: Literal["lines", "line"] | None) -> None:
    lengths, size = [3, 9, 4, 2, 12, 5, 5, 1], MicroBatchSize(tokens=30, packing=packing)
    steps = StepBatches(rows(lengths), 9, size, batch_size=4, seed=3, rank=0, world_size=1)
    ids = [batch["input_ids"] for step in range(len(steps)) for batch in steps[step]["micro_batches"]]
    share = sum(int((part == 9).sum()) for part in ids) / sum(part.numel() for part in ids)
    assert padding_share(lengths, size, batch_size=4, seed=3, world_size=1) == pytest.approx(share)
    assert (share > 0) == (packing != "line"), "one line has no padding"


def test_the_longest_row_comes_first_and_no_row_is_lost() -> None:
    for longest in range(23):
        plan = EpochPlan(23, 5, seed=1, epoch=0, first=longest)
        assert longest in plan[0]
        assert sorted(itertools.chain(*plan)) == list(range(23))
        assert [len(step) for step in plan] == [5, 5, 5, 5, 3]


def test_padding_is_masked_and_carries_no_loss() -> None:
    batch = pad(rows([2, 4]), pad_id=3)
    assert batch["input_ids"].tolist() == [[10, 10, 3, 3], [11, 11, 11, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 10, IGNORED, IGNORED], [IGNORED, 11, 11, 11]]
    assert {column.dtype for column in batch.values()} == {torch.int64}


def shares(size: MicroBatchSize, world_size: int = 1, *, batch_size: int = 4, count: int = 11) -> list[StepBatches]:
    made = rows([i % 5 + 2 for i in range(count)])
    return [
        StepBatches(made, 3, size, batch_size=batch_size, seed=0, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


def steps_of(ranks: list[StepBatches]) -> list[tuple[list[int], int]]:
    """For each step: the sorted rows of its global batch and its number of targets, over all ranks."""
    steps = []
    for step in range(len(ranks[0])):
        items = [data[step] for data in ranks]
        batches = [batch for item in items for batch in item["micro_batches"]]
        members = sorted(itertools.chain(*(batch["rows"].tolist() for batch in batches)))
        targets = {int(item["num_targets"]) for item in items}
        assert len(targets) == 1
        assert targets == {sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)}
        steps.append((members, targets.pop()))
    return steps


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_global_batches_do_not_depend_on_shape_or_processes(size: MicroBatchSize, world_size: int) -> None:
    expected = steps_of(shares(MicroBatchSize(rows=4)))
    assert sorted(itertools.chain(*(members for members, _ in expected))) == list(range(11)), "each row once an epoch"
    assert steps_of(shares(size, world_size)) == expected


def test_a_rank_without_rows_sends_one_that_is_not_trained() -> None:
    full, empty = (data[0] for data in shares(MicroBatchSize(rows=1), 2, count=1))
    ((one,), (none,)) = full["micro_batches"], empty["micro_batches"]
    assert (one["rows"].tolist(), none["rows"].tolist()) == ([0], [])
    assert none["input_ids"].shape == (1, 2)
    assert (none["labels"] == IGNORED).all()
    assert int(empty["num_targets"]) == int(full["num_targets"]) == 1


@given(size=st.sampled_from(SIZES), longest=st.integers(1, 60))
def test_halving_ends_with_single_rows(size: MicroBatchSize, longest: int) -> None:
    size = replace(size, tokens=max(longest, size.tokens)) if size.tokens else size
    before, smaller = size, size.halved(longest)
    while smaller is not None:
        assert (smaller.packing, smaller.rows is None) == (size.packing, size.rows is None)
        assert (smaller.rows or smaller.tokens or 0) < (before.rows or before.tokens or 0)
        assert smaller.tokens is None or smaller.tokens >= longest
        before, smaller = smaller, smaller.halved(longest)
    assert (before.rows, before.tokens) == ((1, None) if size.rows else (None, longest))


def test_halving_halves() -> None:
    assert MicroBatchSize(rows=7).halved(99) == MicroBatchSize(rows=3)
    assert MicroBatchSize(tokens=100, packing="line").halved(9) == MicroBatchSize(tokens=50, packing="line")
    assert MicroBatchSize(tokens=100).halved(80) == MicroBatchSize(tokens=80)
    assert MicroBatchSize(tokens=80).halved(80) is None
    assert [MicroBatchSize(rows=3).said(), MicroBatchSize(tokens=4096).said()] == ["3 rows", "4,096 positions"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_step_may_be_shared_out_again_in_smaller_parts(size: MicroBatchSize, world_size: int) -> None:
    ranks = shares(MicroBatchSize(rows=4), world_size)
    members = ranks[0][1]["members"]
    whole = steps_of(ranks)
    for data in ranks:
        assert data[1]["members"] == members, "every rank knows the whole step"
        assert data.longest == 6
        data.size = size
    parts = [data.share(members) for data in ranks]
    assert len({len(part) for part in parts}) == 1
    assert sorted(row for part in parts for batch in part for row in batch["rows"].tolist()) == sorted(members)
    assert sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for part in parts for batch in part) == whole[1][1]
    assert steps_of(ranks) == whole, "and from here on, all of them"


def test_set_epoch_draws_another_order() -> None:
    data = StepBatches(rows([3] * 20), 3, MicroBatchSize(rows=5), batch_size=5, seed=0)
    before = steps_of([data])
    data.set_epoch(1)
    after = steps_of([data])
    assert before != after
    assert sorted(itertools.chain(*(m for m, _ in before))) == sorted(itertools.chain(*(m for m, _ in after)))
    assert data.targets_before(5) == sum(targets for _, targets in before) + after[0][1]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_row_once(size: MicroBatchSize, world_size: int) -> None:
    made = rows([4, 2, 9, 3, 3, 7, 5])
    ranks = [list(evaluation_batches(made, 3, size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [
        token
        for batches in ranks
        for batch in batches
        for token in set(batch["input_ids"][batch["labels"] != IGNORED].tolist())
    ]
    assert sorted(seen) == list(range(10, 17))


def test_only_item() -> None:
    assert only_item(["x"]) == "x"
    with pytest.raises(ValueError, match="too many values"):
        only_item(["x", "y"])


def test_the_shortest_rows_are_whole_and_few() -> None:
    made = rows([700, 3, 200, 5, 300, 4])
    batch = shortest(made, 0)
    assert batch["attention_mask"].sum(1).tolist() == [3, 4, 5, 200]
    assert batch["labels"][0].tolist() == [IGNORED, 11, 11] + [IGNORED] * 197
    assert shortest(made, 0, most_tokens=8)["attention_mask"].sum(1).tolist() == [3, 4]
    assert shortest(made[:1], 0)["attention_mask"].sum().item() == 700, "at least one, however long"
