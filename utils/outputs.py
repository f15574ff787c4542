"""Files of records that are written whole or not at all.

Knows: writing beside the place and moving there at the end, so that an error or Ctrl-C leaves what was there before.
Does not know what is written, or why.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

ENDINGS = (".json", ".jsonl")


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
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
