"""Files as bytes and as text, unpacked where they are gzipped.

Knows: gzip, zip bombs, UTF-8 and its byte-order mark. Does not know rows.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

COMPRESSED = ".gz"
CHUNK = 1 << 20
"""Bytes read at a time."""
UNPACKED_ANYHOW, UNPACKED_TIMES = 100_000_000, 200
"""Bytes that a gzip file may unpack to whatever its own size; beyond them, how many times that. Records pack to a tenth
at best; deflate's limit, which zip bombs come close to, is 1,032 times."""


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it ends in .gz. Raises `ValueError` for a broken gzip file, or a zip bomb."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            if not path.name.lower().endswith(COMPRESSED):
                yield file
                return
            with gzip.open(file) as packed:
                yield io.BufferedReader(_Unpacked(packed, path), io.DEFAULT_BUFFER_SIZE * 16)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: broken gzip file ({error}); fetch it again") from error


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, until that is more than any text packs into so little."""

    def __init__(self, packed: gzip.GzipFile, path: Path) -> None:
        self._packed, self._path, self._size, self._count = packed, path, path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._packed.readinto(buffer)
        self._count += count
        if self._count > max(UNPACKED_ANYHOW, UNPACKED_TIMES * self._size):
            raise ValueError(
                f"{self._path}: unpacks to more than {UNPACKED_TIMES} times its {self._size:,} bytes, as a zip bomb "
                "does; unpack it yourself if that is meant"
            )
        return count


@contextmanager
def open_text(path: Path, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """The file as text, unpacked where it ends in .gz; a byte-order mark is skipped, or it sticks to the first key.

    Args:
        newline: as of `open`.
        errors: `surrogateescape` hands on bytes that are not UTF-8, for `faults.not_utf8` to find in their row.

    Raises:
        ValueError: bytes that are not UTF-8 (with their place), a broken gzip file, or a zip bomb.
    """
    try:
        with (
            open_bytes(path) as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline=newline) as text,
        ):
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(_where_not_utf8(path)) from error


def _where_not_utf8(path: Path) -> str:
    """The message for a file that is not UTF-8: a decoder knows its own chunk only, so the byte is looked for again."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(path) as file:
        while chunk := file.read(CHUNK):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                at = before - pending + error.start
                return f"{path} is not UTF-8: byte {at} is {error.object[error.start]:#04x}; save it as UTF-8"
            before += len(chunk)
    return f"{path} is not UTF-8: it ends in the middle of a character; it may have been cut"
