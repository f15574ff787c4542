"""How much memory decoding takes: weights before they are loaded, and positions once they are.

Knows: a device's free memory, and what a model keeps of each position. Does not know prompts, batches or training's
memory beside the weights (`utils.memory`).
"""

from __future__ import annotations

from typing import Any

import psutil

from utils import distributed, targets
from utils.disk import megabytes
from utils.loading import Base
from utils.memory import weight_bytes

USABLE = 0.8
"""Share of the free memory that keys, values and what is computed beside them are fitted into."""
BESIDE = 2.0
"""What decoding needs in all, in multiples of its keys and values: they are copied where a batch grows or shrinks."""
FEWEST = 512
"""Positions for which there must be room beside the weights: one prompt and its answer."""


def free() -> int:
    """Free bytes of this process's device."""
    found = distributed.free_memory()
    return psutil.virtual_memory().available // distributed.local_world_size() if found is None else found


def bytes_a_position(model: Any) -> int | None:
    """Of the keys and values of one token, in every layer; None where the model does not keep them in one shape, or,
    empty, cannot say it."""
    try:
        layers, heads, width = targets.cache_shape(model)
    except (ValueError, RuntimeError):  # some decide by a number that an empty model does not have
        return None
    return 2 * layers * heads * width * model.dtype.itemsize


def positions(model: Any) -> int | None:
    """How many positions may be decoded together; None where that cannot be told. At least `FEWEST`, however little is
    free: one row must be decoded in any case."""
    size = bytes_a_position(model)
    return None if size is None else max(FEWEST, int(USABLE * free() / (BESIDE * size)))


def require(base: Base) -> None:
    """`ValueError`, before a weight is read, where they do not fit into this process's device."""
    model = base.empty()
    size = bytes_a_position(model) or 0
    weights = weight_bytes(model, precision=base.precision, quantization_bit=base.quantization_bit)
    needed, there = weights + round(BESIDE * size * FEWEST), free()
    if needed > there:
        fewer = "--quantization_bit 4, " if base.quantization_bit > 4 and 4 in base.spec.quantization_bits else ""
        raise ValueError(
            f"{base.name} takes {megabytes(needed)} ({megabytes(weights)} of them its weights), and "
            f"{megabytes(there)} are free: choose {fewer}another --size or --precision bf16, or close what else runs"
        )
