"""One writer for a run's directory: whoever comes second is told who is there.

Knows: the lock and its owner's host and process. Does not know what is written.

The lock is the system's own (`flock`, by filelock), which ends with its process however that ends. Beside it lies who
holds it, for people, and for a disk that other machines share without sharing its locks.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOCK, OWNER = ".writer.lock", ".writer.json"
NAMES = (LOCK, OWNER)


@contextmanager
def held(directory: Path, say: Callable[[str], object]) -> Iterator[None]:
    """While it holds, no other process writes to `directory`.

    Args:
        say: told of an owner that has gone without a word.

    Raises:
        ValueError: another process is there; or one of another machine may be, which cannot be asked from here.
    """
    from filelock import FileLock, Timeout

    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{directory} is being written to by {_named(_owner(directory))}: wait for its end, or choose another "
            "--output_dir"
        ) from error
    try:
        _settle(directory, say)  # what another has left stays, where this raises
        try:
            _sign(directory)
            yield
        finally:
            (directory / OWNER).unlink(missing_ok=True)
    finally:
        # While it is held: one who has opened it by then finds it without a name (filelock looks), and is refused.
        (directory / LOCK).unlink(missing_ok=True)
        lock.release()


def _sign(directory: Path) -> None:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[:1]),
    }
    (directory / OWNER).write_text(json.dumps(owner) + "\n", encoding="utf-8")


def _settle(directory: Path, say: Callable[[str], object]) -> None:
    """Of an owner that has left its name although the lock is free."""
    owner = _owner(directory)
    if owner is None:
        return
    if owner.get("host") != socket.gethostname():
        raise ValueError(
            f"{directory} belongs to {_named(owner)}, which cannot be asked from {socket.gethostname()}: if it has "
            f"ended, delete {directory / OWNER} and run the command again"
        )
    say(f"{_named(owner)} wrote to {directory} and did not end by itself; what it left is looked through")


def _owner(directory: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((directory / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _named(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"
