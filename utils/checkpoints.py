"""Checkpoints of a run: folders that are whole or absent, and which one can be gone on from.

Knows: the folder, its manifest (every file's size and sha256, and what the checkpoint is of), and what is left when the
disk is full. Does not know what is trained, or what two runs may differ in (`utils.resumption`).

A checkpoint is written beside its place, flushed to the disk file by file, given its manifest last, and renamed: what
has a manifest was finished, and what does not agree with its manifest was damaged since. The stock Trainer writes into
the place itself, takes the newest folder by its name alone, and loads a flipped bit without an error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import disk, outputs, runinfo

MANIFEST = "manifest.json"
FORMAT = 1
_PREFIX = "checkpoint-"


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of optimizer step `step` of the run in `directory` is."""
    return directory / f"{_PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def found(directory: Path) -> list[Path]:
    """The checkpoints in `directory` by step, whole or not."""
    named = [path for path in directory.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted((path for path in named if path.is_dir()), key=step_of)


@contextmanager
def writing(directory: Path, step: int, about: Mapping[str, Any]) -> Iterator[Path]:
    """An empty folder that becomes the checkpoint of `step` where the block ends well, and is gone where it does not.

    Args:
        about: what the checkpoint is of, as JSON; `about_of` gives it back.
    """
    with outputs.atomic_directory(path_of(directory, step)) as folder:
        yield folder
        files = {path.name: _described(path) for path in sorted(folder.iterdir())}
        (folder / MANIFEST).write_text(
            _sealed({"format": FORMAT, "step": step, "about": about, "files": files}), encoding="utf-8"
        )


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sealed(manifest: Mapping[str, Any]) -> str:
    """`manifest` as text, with the hash of itself: a flipped bit of it must not pass either."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n"


def fault(checkpoint: Path) -> str | None:
    """Why `checkpoint` cannot be gone on from; None where every file is as it was written."""
    path = checkpoint / MANIFEST
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        files = manifest["files"]
        intact = manifest["format"] == FORMAT and _sealed(manifest) == text
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was not finished, or another program wrote it"
    except (ValueError, KeyError, TypeError, OSError):
        intact, manifest, files = False, {}, {}
    if not intact:
        return f"its {MANIFEST} is damaged, or of another version of this program"
    if checkpoint.name != path_of(checkpoint, manifest["step"]).name:
        return (
            f"it is of step {manifest['step']}: a folder of another name than {_PREFIX}{manifest['step']} is not read"
        )
    for name, known in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        size = file.stat().st_size
        if size != known["bytes"]:
            return f"{name} has {size:,} bytes, and had {known['bytes']:,}"
        try:
            found = _described(file)
        except OSError as error:  # a sector that is gone
            return f"{name} cannot be read ({error.strerror or error})"
        if found != known:
            return f"{name} is damaged: its sha256 is not the one it was written with"
    return None


def about_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint without `fault` is of, as it was given to `writing`."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["about"]


def newest(directory: Path, say: Callable[[str], object] = lambda line: None) -> Path | None:
    """The whole checkpoint with the highest step; `say` is told of each one that is passed over, and why."""
    for checkpoint in reversed(found(directory)):
        why = fault(checkpoint)
        if why is None:
            return checkpoint
        say(f"{checkpoint} is passed over: {why}")
    return None


def thin_out(directory: Path, limit: int, written: Path, keep: Collection[Path] = ()) -> None:
    """Deletes checkpoints until `limit` are left: first those of steps that are still to come (a run that went on from
    an older one will write them anew), then the oldest. Never `written`, which is whole, nor those of `keep`."""
    present = found(directory)
    later = [path for path in reversed(present) if step_of(path) > step_of(written)]
    earlier = [path for path in present if step_of(path) <= step_of(written)]
    removable = [path for path in [*later, *earlier] if path != written and path not in keep]
    for path in removable[: max(0, len(present) - limit)]:
        _remove(path)


def _remove(checkpoint: Path) -> None:
    """Under another name first: a process that is killed must not leave half of it in its place."""
    aside = checkpoint.with_name(f".{checkpoint.name}.removed.part")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    if aside.is_symlink():  # to another disk: what it leads to is not ours to delete
        aside.unlink()
    else:
        shutil.rmtree(aside)


def begin(directory: Path, *, overwrite: bool) -> None:
    """Clears what killed processes have left in `directory`, where no other process writes (`utils.run_lock`);
    `overwrite` deletes the run that is there."""
    if overwrite:
        runinfo.clear(directory)
    for leftover in directory.glob(outputs.LEFTOVERS):
        shutil.rmtree(leftover)
    for leftover in directory.glob(".*.jsonl.*.part"):  # `outputs.atomic`
        leftover.unlink()
    for path in list(directory.glob(f".{_PREFIX}*")):
        if path.exists():
            outputs.recover(directory / path.name.split(".")[1], alone=True)


def left_of(directory: Path) -> str:
    """What a run that broke off has left in `directory`, and how to go on."""
    last = newest(directory)
    return f"{last} is whole: add --resume_from_checkpoint to go on" if last else "no checkpoint was finished"


@contextmanager
def full_disk_explained(directory: Path, needed: int) -> Iterator[None]:
    """Turns whatever a library raises on a full disk into one `OSError` that says what is missing, what was kept and
    how to go on.

    Args:
        needed: bytes that a checkpoint takes.
    """
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        last = newest(directory)
        kept = (
            f"{last} is whole: make room, then add --resume_from_checkpoint" if last else "no checkpoint was finished"
        )
        free = shutil.disk_usage(directory).free
        missing = f"{disk.megabytes(needed - free)} more are needed" if needed > free else "a quota may be used up"
        raise OSError(
            f"the disk of {directory} is full ({disk.megabytes(free)} free; a checkpoint takes about "
            f"{disk.megabytes(needed)}: {missing}), so the run stopped; {kept}"
        ) from error


_OF_TORCH = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""What torch says when one of its writes fails, at the latest when it closes the archive (all met on full disks,
benchmarks/faults.py)."""


def _is_full_disk(error: BaseException) -> bool:
    """torch and safetensors raise errors of their own, which carry the system's words or only torch's."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    signs = ("No space left", "Disk quota exceeded", "File too large", *_OF_TORCH)
    return any(sign in str(error) for sign in signs)
