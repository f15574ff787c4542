"""Checkpoints of a run: which one to go on from, and what is left when the disk is full.

Knows: the folders that Trainer writes (`trainer_state.json` comes last). Does not know what is trained.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import disk, runinfo


def newest(directory: Path) -> Path | None:
    """The whole `checkpoint-N` with the highest step."""
    found = [(int(path.name.rpartition("-")[2]), path) for path in directory.glob("checkpoint-*") if _is_whole(path)]
    return max(found)[1] if found else None


PLAN = "plan.json"
"""What the checkpoints of a run's directory are of."""


def begin(directory: Path, plan: Mapping[str, Any], *, overwrite: bool) -> None:
    """Writes down what the checkpoints that will come are of; `overwrite` deletes the run that is there."""
    if overwrite:
        runinfo.clear(directory)
    (directory / PLAN).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def _require_same_plan(checkpoint: Path, plan: Mapping[str, Any]) -> None:
    file = checkpoint.parent / PLAN
    if not file.is_file():
        return
    kept = json.loads(file.read_text(encoding="utf-8"))
    for name in [*kept, *(name for name in plan if name not in kept)]:
        if kept.get(name) != plan.get(name):
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint}: it was trained with --{name} {kept.get(name)}, now it is "
                f"{plan.get(name)}: give the same, or another --output_dir"
            )


def to_resume(directory: Path, wish: str | None, plan: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from: None for no `wish`, the newest of `directory` for an empty one, else the one named.

    Args:
        plan: flag → value of all that must be as it was.

    Raises:
        ValueError: there is none, it is not whole, or it is of another plan.
    """
    if wish is None:
        return None
    checkpoint = Path(wish) if wish else newest(directory)
    if checkpoint is None:
        raise ValueError(f"--resume_from_checkpoint: {directory} holds no whole checkpoint; --overwrite starts anew")
    if not _is_whole(checkpoint):
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: no trainer_state.json, so not a whole checkpoint")
    _require_same_plan(checkpoint, plan)
    return checkpoint


def left_of(directory: Path) -> str:
    """What a run that broke off has left in `directory`, and how to go on."""
    last = newest(directory)
    return f"{last} is whole: add --resume_from_checkpoint to go on" if last else "no checkpoint was finished"


@contextmanager
def full_disk_explained(directory: Path, needed: int) -> Iterator[None]:
    """Turns whatever a library raises on a full disk into one `OSError` that says what was kept and how to go on.

    Args:
        needed: bytes that a checkpoint takes.
    """
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        for path in directory.glob("checkpoint-*"):
            if not _is_whole(path):
                shutil.rmtree(path, ignore_errors=True)
        last = newest(directory)
        kept = (
            f"{last} is whole: make room, then add --resume_from_checkpoint" if last else "no checkpoint was finished"
        )
        free = disk.megabytes(shutil.disk_usage(directory).free)
        raise OSError(
            f"the disk of {directory} is full ({free} free; a checkpoint takes about {disk.megabytes(needed)}), "
            f"so the run stopped; {kept}"
        ) from error


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / "trainer_state.json").is_file()


def _is_full_disk(error: BaseException) -> bool:
    """torch and safetensors raise errors of their own, which carry the system's words or only torch's."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or "PytorchStreamWriter failed" in str(error)
