"""Disk: what a run's files take, and whether there is room.

Knows: sizes of files, and how a size is written for people. Does not know how any file is made.
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


def megabytes(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / MEGABYTE:,.0f} MB" if size < 1024 * MEGABYTE else f"{size / MEGABYTE / 1024:,.1f} GB"
