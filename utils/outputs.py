"""Files of records, and directories, that are written whole or not at all.

Knows: writing beside the place and moving there at the end, so that an error or Ctrl-C leaves what was there before;
and what a process that was killed has left beside it.
Does not know what is written, or why.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

ENDINGS = (".json", ".jsonl")
LEFTOVERS = ".part-*"
"""What a process that was killed in `into` leaves in its directory."""


def require_ending(path: Path) -> None:
    """`ValueError` for a path that `write_records` cannot write."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: the ending {path.suffix!r} is not one of {', '.join(ENDINGS)}")


def write_records(records: Iterable[Mapping[str, Any]], file: TextIO, *, array: bool) -> int:
    """Writes records one at a time, a line each, as a JSON array or as JSON Lines; returns how many."""
    written = 0
    for written, record in enumerate(records, start=1):
        if array:
            file.write("[\n" if written == 1 else ",\n")
        file.write(json.dumps(record, ensure_ascii=False))
        if not array:
            file.write("\n")
    if array:
        file.write("\n]\n" if written else "[]\n")
    return written


@contextmanager
def atomic(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file that takes the place of `path` where the block ends well, and is gone where it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are their owner's alone
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Deletes what processes that were killed in `atomic(path)` have left; for one that writes there alone."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        left.unlink()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `path` where the block ends well, and is gone where it does not. Where
    `path` is a link, the link stays, and what it leads to is replaced."""
    recover(path)
    path = path.resolve()  # "." has no name
    folder = _beside(path, os.getpid(), ".part")
    aside = folder.with_suffix(".old")
    folder.mkdir(parents=True)
    try:
        yield folder
        _finish_files(folder)
        if path.exists():
            path.rename(aside)
        folder.rename(path)
        sync(path.parent)
    finally:
        # Ctrl-C may come between any two calls: what is on disk tells how far it went, nothing else does.
        _settle(folder, aside, path)


@contextmanager
def into(directory: Path) -> Iterator[Path]:
    """An empty folder whose files take their places in `directory` where the block ends well, one after the other, each
    whole or not at all; other files of `directory` stay. A process that is killed leaves the folder (`LEFTOVERS`)."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=LEFTOVERS.removesuffix("*"), dir=directory) as name:
        folder = Path(name)
        folder.chmod(0o777 & ~_umask())
        yield folder
        _finish_files(folder)
        for file in sorted(folder.iterdir()):
            file.replace(directory / file.name)
        sync(directory)


@contextmanager
def gone_if_empty(directory: Path) -> Iterator[None]:
    """Afterwards `directory` is gone if nothing is in it."""
    try:
        yield
    finally:
        with suppress(OSError):
            directory.rmdir()


def sync(path: Path) -> None:
    """Has a file's content, or the names in a folder, on the disk before it returns: a rename is only then there after
    a loss of power, and in order (Pillai et al. 2014, All File Systems Are Not Created Equal)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finish_files(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(folder.stat().st_mode & 0o666)  # safetensors' files are their owner's alone
        sync(file)
    sync(folder)


def recover(path: Path, *, alone: bool = False) -> None:
    """Clears what processes of this machine that were killed in `atomic_directory(path)` have left beside `path`, and
    puts back what one had moved aside.

    Args:
        alone: no other process writes here, so whatever is left, of any machine, is of one that was killed.
    """
    path = path.resolve()
    if not path.name or not path.parent.is_dir():
        return
    before, _, _ = _beside(path, 0, "").name.rpartition("-")
    for found in list(path.parent.iterdir()):
        if found.suffix not in (".part", ".old") or not found.name.startswith(f".{path.name}."):
            continue
        start, _, pid = found.stem.rpartition("-")
        is_ours = start == before and pid.isdecimal() and not _runs_elsewhere(int(pid))
        if alone or is_ours:
            _settle(found.with_suffix(".part"), found.with_suffix(".old"), path)


def _beside(path: Path, pid: int, suffix: str) -> Path:
    """The machine is in the name because others may share the disk, and number their processes by themselves."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{pid}{suffix}")


def _settle(folder: Path, aside: Path, path: Path) -> None:
    if aside.exists() and not path.exists():
        aside.rename(path)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def _runs_elsewhere(pid: int) -> bool:
    """Whether a process other than this one has the number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
