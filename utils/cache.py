"""Work that is kept: folders under a key that says what they were made from.

Knows: where the cache lies, how an entry is made once and whole, and what a file's content is. Does not know what is in
an entry. An entry is made in a temporary folder and renamed, so a folder that is there is complete; processes that want
the same entry wait for the first.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parent
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
LARGE_FILE = 64 * 1024 * 1024
"""Bytes from which a file's hash is remembered with its size and time of change; smaller ones take under 0.1 s."""
FORGET_AFTER_DAYS = 30
PATIENCE_SECONDS = 2.0
"""How long a lock is waited for in silence."""
LOG = logging.getLogger(__name__)


def directory() -> Path:
    """Where entries are kept: `ALPACA_COT_CACHE`, or `~/.cache/alpaca_cot`."""
    return Path(os.environ.get("ALPACA_COT_CACHE") or Path.home() / ".cache" / "alpaca_cot")


def key_of(made_from: Mapping[str, Any]) -> str:
    """The key (32 hex digits) of what an entry is made from; values are JSON."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def entry(key: str, make: Callable[[Path], None]) -> Path:
    """The folder kept under `key`; `make` fills an empty one where there is none.

    Raises:
        OSError: the cache cannot be written; the message says how to place it elsewhere.
    """
    home = directory()
    found = home / key
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / f"{key}.lock"):
            if not found.is_dir():
                _forget(home)
                for leftover in home.glob(
                    f"{key}.*.tmp"
                ):  # of a process that was killed: under the lock it is no one's
                    shutil.rmtree(leftover)
                temporary = home / f"{key}.{os.getpid()}.tmp"
                temporary.mkdir()
                try:
                    make(temporary)
                    _to_disk(temporary)
                    temporary.rename(found)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
            os.utime(found)
    except OSError as error:
        # Without a name it comes from a library that writes, and it writes here; reading the data names the file.
        if error.errno in UNWRITABLE and str(error.filename or home).startswith(str(home)):
            raise OSError(
                f"the cache {home} cannot be written ({error}): make room, or name another folder with ALPACA_COT_CACHE"
            ) from error
        raise
    return found


def discard(entry: Path) -> None:
    """Deletes a damaged entry, so that the next call makes it anew."""
    with _locked(entry.with_name(f"{entry.name}.lock")):
        shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock among processes, and says so if it has to wait for it."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except filelock.Timeout:
        LOG.warning("waiting for another process that makes the same (%s)", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _to_disk(folder: Path) -> None:
    """What is renamed into place is whole after a power loss, too."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def stamp(path: Path) -> list[Any]:
    """What changes when a file does: its place, size, time of change and inode; of a folder, those of its files."""
    if path.is_dir():
        return [stamp(file) for file in sorted(path.rglob("*")) if file.is_file()]
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino]


def content_hash(path: Path) -> str:
    """Hex sha256 of a file, or of a folder's files with their names.

    A large file is hashed once: afterwards its size, its time of change and its inode stand for its content, as in
    git's index.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        named = {file.relative_to(path).as_posix(): content_hash(file) for file in files}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    if path.stat().st_size < LARGE_FILE:
        return _sha256(path)
    # A file that changes while it is hashed has another time of change, and so another key, the next time.
    remembered = entry(key_of({"content of": stamp(path)}), lambda folder: _write(folder / "sha256", _sha256(path)))
    return (remembered / "sha256").read_text(encoding="ascii")


def code_hash(modules: Iterable[str]) -> str:
    """Hex sha256 of the source of modules and packages of `utils`, by name."""
    files = [file for name in modules for file in sorted((CODE / name).rglob("*.py")) or [CODE / f"{name}.py"]]
    sources = {file.relative_to(CODE).as_posix(): _sha256(file) for file in files}
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")


def _forget(home: Path) -> None:
    """Deletes entries that were not used for a month, and what interrupted work left behind. Locks stay: they are
    empty, and someone may hold them."""
    oldest = time.time() - FORGET_AFTER_DAYS * 24 * 3600
    for path in home.iterdir():
        with suppress(FileNotFoundError):  # another process may be quicker
            if path.suffix != ".lock" and path.stat().st_mtime < oldest:
                shutil.rmtree(path)
