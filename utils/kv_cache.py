"""Keys and values of decoded tokens, in memory that is there before they come.

Knows: transformers' interface of a cache's layer. Does not know models or decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Positions that a layer's memory grows by; it is copied once in so many tokens, not at each."""


class RoomyLayer(DynamicLayer):
    """transformers' growing layer, with room behind its keys and values. Its own joins old and new ones at every token,
    which copies all of them: as much work as attention itself (benchmarks/predict_throughput.py)."""

    _rooms: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """(keys, values) with the new ones behind those that are there, each (rows, heads, positions, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if not self._has_room(key_states, length):
            self._rooms = (self._roomy(self.keys, key_states, length), self._roomy(self.values, value_states, length))
        assert self._rooms is not None
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, before:length] = new
        self.keys, self.values = (room[:, :, :length] for room in self._rooms)
        return self.keys, self.values

    def _has_room(self, new: torch.Tensor, length: int) -> bool:
        """Whoever picks or reorders rows, or cuts positions, puts other tensors in the place of ours."""
        if self._rooms is None or self.keys is None or self.keys.numel() == 0:
            return False
        room = self._rooms[0]
        return self.keys.data_ptr() == room.data_ptr() and room.shape[2] >= length and len(room) == len(new)

    @staticmethod
    def _roomy(old: Any, new: torch.Tensor, length: int) -> torch.Tensor:
        rows, heads, _, width = new.shape
        room = new.new_empty(rows, heads, length + ROOM, width)
        if old.numel():
            room[:, :, : old.shape[2]] = old
        return room


def make(model: Any) -> DynamicCache:
    """An empty cache for `model`, as transformers would make it, with room in the layers that grow; those of another
    kind (sliding windows, states) are as they are."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_be_joined(cache: DynamicCache) -> bool:
    """Whether `joined` and `drop_first` know all its layers."""
    return all(type(layer) is RoomyLayer for layer in cache.layers)


def joined(first: DynamicCache, second: DynamicCache) -> DynamicCache:
    """The rows of both, those of the shorter behind zeros, where there is padding."""
    length = max(first.get_seq_length(), second.get_seq_length())
    layers: Any = zip(first.layers, second.layers, strict=True)
    for one, two in layers:
        one.keys = torch.cat([_filled(one.keys, length), _filled(two.keys, length)])
        one.values = torch.cat([_filled(one.values, length), _filled(two.values, length)])
    return first


def drop_first(cache: DynamicCache, positions: int) -> None:
    """Takes the first positions of all rows away."""
    layers: Any = cache.layers
    for layer in layers:
        layer.keys, layer.values = layer.keys[:, :, positions:], layer.values[:, :, positions:]


def _filled(states: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))
