"""How much of a batch is padding, by how rows are put into it: no training, only lengths.

    python3 benchmarks/padding.py    # writes benchmarks/results/padding.json

The rows are FLAN's real chains of thought with the real LLaMA tokenizer, cutoff 512, in the order of the first epoch
(seed 42). `window`: so many global batches of 128 rows are sorted by length together before they are cut, which saves
padding and makes the rows of a step alike; 1 is what the project does. Needs the real data (ALPACA_COT_REAL_DATA,
default ../shared/data).
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment
from contestants import material

from utils import batching
from utils.batching import EpochPlan, MicroBatchSize, cut, positions_of

BATCH = 128
BUDGETS = (512, 1024, 2048, 4096, 8192)


def share(batches: Sequence[Any], lengths: Sequence[int]) -> float:
    """Of padding among all positions."""
    tokens = sum(lengths[row] for batch in batches for line in batch for row in line)
    return round(1 - tokens / sum(positions_of(batch, lengths) for batch in batches), 4)


def in_order(rows: Sequence[int], count: int) -> list[list[list[int]]]:
    """Micro-batches of `count` rows as they come."""
    return [[[row] for row in rows[start : start + count]] for start in range(0, len(rows), count)]


def greedy(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[list[int]]]:
    """Rows by length, a micro-batch closed when the next row would not fit any more."""
    batches: list[list[list[int]]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if not batches or lengths[batches[-1][0][0]] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append([row])
    return batches


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        lengths = material.mixture(Path(folder)).train.lengths.tolist()
    plan = list(EpochPlan(len(lengths), BATCH, seed=material.SEED, epoch=0))
    every = list(itertools.chain(*plan))
    results: dict[str, Any] = {
        "rows": len(lengths),
        "mean_length": round(sum(lengths) / len(lengths), 1),
        "in_order": {f"{count} rows": share(in_order(every, count), lengths) for count in (4, 16, 128)},
    }
    results["greedy cut of a step, 2048 tokens"] = share(
        [batch for step in plan for batch in greedy(step, lengths, 2048)], lengths
    )
    for window in (1, 4, 16):
        for budget in BUDGETS:
            groups = [every[i : i + window * BATCH] for i in range(0, len(every), window * BATCH)]
            batches = [batch for group in groups for batch in cut(group, lengths, MicroBatchSize(tokens=budget))]
            found = {"padding": share(batches, lengths), "micro_batches_a_step": round(len(batches) / len(plan), 1)}
            results.setdefault(f"window of {window}", {})[f"{budget} tokens"] = found
    kept = batching.OVERHEAD_TOKENS
    for overhead in (0, 32, 64, 256, 1_000_000):
        batching.OVERHEAD_TOKENS = overhead
        batches = [batch for step in plan for batch in cut(step, lengths, MicroBatchSize(tokens=2048))]
        found = {"padding": share(batches, lengths), "micro_batches_a_step": round(len(batches) / len(plan), 1)}
        results.setdefault("overhead of a micro-batch, 2048 tokens", {})[str(overhead)] = found
    batching.OVERHEAD_TOKENS = kept
    for packing in ("lines", "line"):
        size = MicroBatchSize(tokens=2048, packing=packing)
        batches = [batch for step in plan for batch in cut(step, lengths, size)]
        results.setdefault("packing, 2048 tokens", {})[packing] = share(batches, lengths)
    environment.write("padding", ["python3 benchmarks/padding.py"], results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
