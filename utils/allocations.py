"""Every storage that torch makes and releases, and every product that it computes, while something runs.

Knows: operators and storages. Does not know models. Tensors without numbers (torch's FakeTensor) and real ones may be
mixed: what is computed of real ones alone is computed.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default, _ATEN._int_mm.default)
_BATCHED = (_ATEN.bmm.default, _ATEN.baddbmm.default)
_FUSED = (
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
)
_FUSED_BACKWARD = (
    _ATEN._scaled_dot_product_flash_attention_backward.default,
    _ATEN._scaled_dot_product_efficient_attention_backward.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
)


class Mark(NamedTuple):
    """A moment: allocations and releases so far, bytes that are there as a pair (`Watch`), FLOPs so far."""

    events: int
    live: torch.Tensor
    products: float
    attention: float


class Watch(TorchDispatchMode):
    """Follows every storage from its making to its end, and counts products.

    `line` has a pair for every allocation and release, in order: the bytes that are there however many rows there are,
    and those a row. `products` and `attention` are FLOPs, 2 for a multiplication and an addition: of matrices, and of
    queries with keys and weights with values.

    Args:
        rows: a prime: a size that it divides is one that grows with the rows.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.line, self.products, self.attention = [(0, 0)], 0.0, 0.0
        self._rows = rows
        self._known: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch would import its compiler, for seconds

    def exclude(self, tensor: torch.Tensor) -> None:
        """`tensor` is not counted."""
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = storage

    def here(self) -> Mark:
        """How far it is."""
        return Mark(len(self.line), torch.tensor(self.line[-1]), self.products, self.attention)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # two of three calls, and nothing to follow
            return getattr(args[0], "fake_device", None) or func(*args, **kwargs)
        if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            out = func(*_without_masks(func, args), **kwargs)
        else:
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        self._count(func, args, out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._release(key, size))
            self._move(size)

    def _release(self, key: int, size: int) -> None:
        del self._known[key]
        self._move(-size)

    def _move(self, size: int) -> None:
        fixed, by_row = self.line[-1]
        grows = size % self._rows == 0
        self.line.append((fixed, by_row + size // self._rows) if grows else (fixed + size, by_row))

    def _count(self, func: Any, args: Any, out: Any) -> None:
        if func in _PRODUCTS:
            factor = args[-2] if func is _ATEN.addmm.default else args[0]
            self.products += 2.0 * out.numel() * factor.shape[-1]
        elif func in _BATCHED:
            self.attention += 2.0 * out.numel() * args[-2].shape[-1]
        elif func in _FUSED or func in _FUSED_BACKWARD:
            # Forward two products of rows x heads x length x length x width, backward five; a causal kernel makes half.
            query, key = args[1:3] if func in _FUSED_BACKWARD else args[:2]
            pairs = 2.0 * query.numel() * key.shape[-2]
            causal = True in args[4:] if func in _FUSED else True in [a for a in args[6:] if isinstance(a, bool)]
            self.attention += pairs * (5 if func in _FUSED_BACKWARD else 2) * (0.5 if causal else 1.0)


def _without_masks(func: Any, args: Any) -> Any:
    """Real Boolean indices as the places they stand for, whose number a tensor without numbers does not tell."""
    if func not in (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN._index_put_impl_.default):
        return args
    places: list[Any] = []
    for index in args[1]:
        if index is None or isinstance(index, FakeTensor) or index.dtype is not torch.bool:
            places.append(index)
        else:
            with unset_fake_temporarily():
                places += index.nonzero(as_tuple=True)
    return (args[0], places, *args[2:])
