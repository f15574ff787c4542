from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from utils import kv_cache
from utils.kv_cache import ROOM, RoomyLayer
from utils.loading import choose
from utils.models import get_model


def states(positions: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 2, positions, 4)


def compared(steps: list[Any]) -> None:
    """The same steps on transformers' layer and on ours, which hold the same after each."""
    from transformers.cache_utils import DynamicLayer

    theirs: Any = DynamicLayer()
    ours: Any = RoomyLayer()
    for step in steps:
        for layer in (theirs, ours):
            step(layer)
        assert torch.equal(theirs.keys, ours.keys)
        assert torch.equal(theirs.values, ours.values)
        assert theirs.get_seq_length() == ours.get_seq_length()
        assert theirs.get_mask_sizes(1) == ours.get_mask_sizes(1)


def adding(positions: int, rows: int = 3) -> Any:
    keys, values = states(positions, rows), states(positions, rows)
    return lambda layer: layer.update(keys, values)


def test_it_holds_what_transformers_layer_holds() -> None:
    torch.manual_seed(0)
    compared([adding(5), *[adding(1) for _ in range(2 * ROOM)], adding(ROOM + 3), adding(1)])


def test_rows_may_leave_change_places_and_lose_positions() -> None:
    torch.manual_seed(1)
    some = torch.tensor([2, 0])
    compared(
        [
            adding(7),
            lambda layer: layer.batch_select_indices(some),
            adding(1, rows=2),
            adding(1, rows=2),
            lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
            adding(1, rows=2),
            lambda layer: layer.crop(-2),
            adding(1, rows=2),
            lambda layer: layer.batch_repeat_interleave(3),
            adding(1, rows=6),
        ]
    )


def test_a_token_is_added_without_a_copy_of_those_before() -> None:
    layer = RoomyLayer()
    adding(4)(layer)
    assert layer.keys is not None
    place, moves = layer.keys.data_ptr(), 0
    for _ in range(3 * ROOM):
        adding(1)(layer)
        moves += layer.keys.data_ptr() != place
        place = layer.keys.data_ptr()
    assert moves <= 3


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_models_logits_are_the_same(family: str, llama_base: Path, bloom_base: Path) -> None:
    model = choose(str({"llama": llama_base, "bloom": bloom_base}[family]), get_model(family)).load().eval()
    ids = torch.randint(5, 600, (2, 9), generator=torch.Generator().manual_seed(0))
    caches: list[Any] = [DynamicCache(config=model.config), kv_cache.make(model)]
    assert any(isinstance(layer, RoomyLayer) for layer in caches[1].layers)
    for part in ids.split([5, 1, 1, 2], dim=1):
        with torch.no_grad():
            found = [model(input_ids=part, past_key_values=cache, use_cache=True).logits for cache in caches]
        assert torch.equal(*found)
