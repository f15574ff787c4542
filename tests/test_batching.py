import itertools

import pytest
import torch

from utils.batching import EpochPlan, MicroBatches, deal, evaluation_batches, only_item, pad, shortest
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


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 3)])
def test_dealing_gives_every_row_to_exactly_one(world_size: int, accumulation: int) -> None:
    lengths = [7, 3, 9, 1, 5, 5, 2]
    dealt = deal(range(7), lengths, world_size=world_size, accumulation=accumulation)
    micro = [batch for rank in dealt for batch in rank]
    assert sorted(itertools.chain(*micro)) == list(range(7))
    assert [len(rank) for rank in dealt] == [accumulation] * world_size
    assert max(map(len, micro)) - min(map(len, micro)) <= 1


def test_neighbours_in_length_share_a_batch() -> None:
    ((first, second),) = deal([0, 1, 2, 3], [5, 50, 6, 49], world_size=1, accumulation=2)
    assert (first, second) == ([1, 3], [2, 0])


def test_padding_is_masked_and_carries_no_loss() -> None:
    batch = pad(rows([2, 4]), pad_id=3)
    assert batch["input_ids"].tolist() == [[10, 10, 3, 3], [11, 11, 11, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 10, IGNORED, IGNORED], [IGNORED, 11, 11, 11]]
    assert {column.dtype for column in batch.values()} == {torch.int64}


def steps_of(world_size: int, per_device: int, accumulation: int, count: int = 11) -> list[list[tuple[list[int], int]]]:
    """For each step: the sorted rows of its global batch and its number of targets, over all ranks."""
    ranks = [
        MicroBatches(
            rows([i % 5 + 2 for i in range(count)]),
            3,
            per_device_batch_size=per_device,
            accumulation=accumulation,
            seed=0,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    steps = []
    for step in range(ranks[0].steps_per_epoch):
        items = [data[step * accumulation + micro] for data in ranks for micro in range(accumulation)]
        members = sorted(itertools.chain(*(item["rows"].tolist() for item in items)))
        targets = {int(item["num_targets"]) for item in items}
        assert len(targets) == 1
        assert targets == {sum(int((item["labels"][:, 1:] != IGNORED).sum()) for item in items)}
        steps.append((members, targets.pop()))
    return steps


def test_global_batches_do_not_depend_on_shape_or_processes() -> None:
    expected = steps_of(1, 4, 1)
    assert sorted(itertools.chain(*(members for members, _ in expected))) == list(range(11))
    assert steps_of(1, 1, 4) == steps_of(1, 2, 2) == steps_of(2, 2, 1) == steps_of(4, 1, 1) == expected


def test_a_rank_without_rows_sends_one_that_is_not_trained() -> None:
    data = MicroBatches(rows([3]), 3, per_device_batch_size=1, accumulation=2, seed=0, rank=0, world_size=1)
    full, empty = data[0], data[1]
    assert (full["rows"].tolist(), empty["rows"].tolist()) == ([0], [])
    assert empty["input_ids"].shape == (1, 3)
    assert (empty["labels"] == IGNORED).all()
    assert int(empty["num_targets"]) == int(full["num_targets"]) == 2


def test_set_epoch_draws_another_order() -> None:
    data = MicroBatches(rows([3] * 20), 3, per_device_batch_size=20, accumulation=1, seed=0)
    first = data[0]["rows"].tolist()
    data = MicroBatches(rows([3] * 20), 3, per_device_batch_size=5, accumulation=1, seed=0)
    before = [data[i]["rows"].tolist() for i in range(len(data))]
    data.set_epoch(1)
    after = [data[i]["rows"].tolist() for i in range(len(data))]
    assert before != after
    assert sorted(itertools.chain(*before)) == sorted(itertools.chain(*after)) == sorted(first)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_row_once(world_size: int) -> None:
    seen = [
        int(ids[0])
        for rank in range(world_size)
        for batch in evaluation_batches(rows([4, 2, 9, 3, 3, 7, 5]), 3, 2, rank=rank, world_size=world_size)
        for ids in batch["input_ids"]
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
