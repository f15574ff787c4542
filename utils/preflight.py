"""What a run will need, before it begins.

Knows: how much disk its files take and how much memory its activations take. Does not know how to make either.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MEGABYTE = 1024 * 1024
SMALL_FILES = 16 * MEGABYTE
"""Tokenizer, logs, plot and card, generously."""


def run_bytes(trainable_parameters: int, save_total_limit: int) -> int:
    """Disk of a run: one checkpoint more than are kept, for the new one is whole before the oldest goes, and the final
    adapter."""
    return (save_total_limit + 2) * checkpoint_bytes(trainable_parameters) + SMALL_FILES


def checkpoint_bytes(trainable_parameters: int) -> int:
    """Disk of a checkpoint: the adapter in fp32 and AdamW's two moments of it."""
    return 3 * 4 * trainable_parameters


def require_space(
    directory: Path, needed: int, *, remedy: str = "choose another --output_dir, or lower --save_total_limit"
) -> None:
    """`OSError` if the disk below `directory` (which need not exist yet) has less than `needed` bytes free; `remedy`:
    what helps besides making room."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"the run would write about {megabytes(needed)} to {directory}, where {megabytes(free)} are free: make "
            f"room, {remedy}"
        )


def activation_bytes(tokens: int, *, hidden: int, layers: int, vocabulary: int, bytes_per_value: int) -> int:
    """Memory that a forward pass keeps for the backward pass, for `tokens` in a micro-batch.

    34 bytes a token, layer and hidden unit in 16 bits without the attention matrix, which SDPA does not keep
    (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2), and the logits with their fp32 copy and gradient.
    """
    per_layer = 34 * hidden * bytes_per_value // 2
    return tokens * (layers * per_layer + vocabulary * (bytes_per_value + 8))


def needs_checkpointing(free_bytes: int | None, activations: int) -> bool:
    """Whether gradient checkpointing is needed: the activations would take more than 80 % of the free device memory.
    None (a CPU run, whose memory can swap) never needs it."""
    return free_bytes is not None and activations > 0.8 * free_bytes


def megabytes(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / MEGABYTE:,.0f} MB" if size < 1024 * MEGABYTE else f"{size / MEGABYTE / 1024:,.1f} GB"
