"""Files as raw rows: opening, decoding and cutting each format, one row at a time.

Knows: JSON arrays, JSON Lines, CSV/TSV with a header, Parquet, `datasets` folders, plain lines, and gzip around the
text formats. Does not know what a row means. Memory does not grow with the file: a row is read, handed on, forgotten.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

RawRow = tuple[str, Any]
"""Where it is in the file ("row 3", "line 3"; from 1), and what stands there."""

ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSED = ".gz"
PROVENANCE = ".source.json"
"""Ends the name of what lies beside a file that was fetched, converted or mixed, and tells where that came from."""
TEXT_ENDINGS = tuple(ending for ending in ENDINGS if ending != ".parquet")
CHUNK = 1 << 20
"""Characters read at a time from a JSON array."""
PARQUET_ROWS = 1024
"""Rows of a Parquet file in memory at a time."""
NEAR_THE_END = 16
"""An error this close to the end of what was read may only mean that more must be read: the longest literal or escape
(`\\ud83c\\udf0f`, 12 characters) is shorter."""


def stem(name: str) -> str:
    """A file's name without its known ending."""
    bare = name[: -len(COMPRESSED)] if name.lower().endswith(COMPRESSED) else name
    return bare.rpartition(".")[0] if has_known_ending(name) else name


def has_known_ending(name: str) -> bool:
    """Whether `name` ends like a file that `read` can read."""
    lower = name.lower()
    return lower.endswith(ENDINGS) or lower.endswith(tuple(ending + COMPRESSED for ending in TEXT_ENDINGS))


def read(path: Path) -> Iterator[RawRow]:
    """The rows of a file or `datasets` folder, in order.

    Raises (while it is read):
        FileNotFoundError: no such file.
        ValueError: an unknown ending; broken JSON, table, Parquet or gzip; text that is not UTF-8. The message names
            the file and, where there is one, the row or line.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.name.endswith(PROVENANCE):
        raise ValueError(f"{path} tells where the file beside it came from; it holds no data: leave it out")
    if path.is_dir():
        yield from _read_datasets_folder(path)
        return
    name = path.name.lower().removesuffix(COMPRESSED)
    match Path(name).suffix:
        case ".parquet" if not path.name.lower().endswith(COMPRESSED):
            yield from _read_parquet(path)
        case ".csv" | ".tsv" as suffix:
            yield from _read_table(path, "," if suffix == ".csv" else "\t")
        case ".json" | ".jsonl":
            yield from _read_json(path)
        case _:
            raise ValueError(
                f"{path}: the ending {path.suffix!r} is not one of .json, .jsonl, .csv, .tsv (each also .gz), "
                ".parquet, or a datasets folder"
            )


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 text file: ("line 3", text without its end). Only a newline ends a line."""
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield f"line {number}", line.removesuffix("\n").removesuffix("\r")


def document(path: Path) -> Any:
    """A file that is one JSON value. Raises as `read` does."""
    with open_text(path) as file:
        text = file.read()
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON ({error})") from error


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """The file as text, unpacked where it ends in .gz; a byte-order mark is skipped, or it sticks to the first key.

    Raises:
        ValueError: bytes that are not UTF-8 (with their place), or a broken gzip file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    compressed = path.name.lower().endswith(COMPRESSED)
    try:
        with (
            gzip.open(path, "rb") if compressed else path.open("rb") as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline) as text,  # pyright: ignore[reportArgumentType]
        ):
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(path, compressed=compressed)) from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: broken gzip file ({error}); fetch it again") from error


def _not_utf8(path: Path, *, compressed: bool) -> str:
    """The message for a file that is not UTF-8: a decoder knows its own chunk only, so the byte is looked for again."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with gzip.open(path, "rb") if compressed else path.open("rb") as file:
        while chunk := file.read(CHUNK):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                at = before - pending + error.start
                return f"{path} is not UTF-8: byte {at} is {error.object[error.start]:#04x}; save it as UTF-8"
            before += len(chunk)
    return f"{path} is not UTF-8: it ends in the middle of a character; it may have been cut"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys without a word; we do not."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_duplicates)


def undecoded(path: Path) -> Iterator[tuple[str, str]] | None:
    """The rows of a JSON Lines file as text, for `decoded` to finish, in another process perhaps; None for a file of
    another format. Raises as `read` does, but for broken JSON."""
    if not path.is_file() or Path(path.name.lower().removesuffix(COMPRESSED)).suffix not in (".json", ".jsonl"):
        return None
    return None if _begins_array(path) else _json_lines(path)


def decoded(rows: Iterable[tuple[str, str]], path: Path) -> Iterator[RawRow]:
    """What `undecoded` gave as `read` gives it. Raises `ValueError` for broken JSON, with file and line."""
    for where, text in rows:
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            hint = "; one object over several lines belongs in [ ]" if text == "{" else ""
            raise ValueError(f"{path} {where}: broken JSON ({error}){hint}") from error
        yield where, value


def _read_json(path: Path) -> Iterator[RawRow]:
    """A JSON array, or one JSON object a line (some sets call JSON Lines `.json`)."""
    if not _begins_array(path):
        yield from decoded(_json_lines(path), path)
        return
    with open_text(path) as file:
        yield from _read_array(file, _start(file), path)


def _begins_array(path: Path) -> bool:
    with open_text(path) as file:
        return _start(file).startswith("[")


def _start(file: TextIO) -> str:
    """The first chunk of a file that is not all white space, from its first character that is none."""
    start = file.read(CHUNK).lstrip()
    while not start and (more := file.read(CHUNK)):
        start = more.lstrip()
    return start


def _json_lines(path: Path) -> Iterator[tuple[str, str]]:
    with open_text(path, newline="\n") as file:  # other line ends can stand inside a string (U+2028)
        for number, line in enumerate(file, start=1):
            if text := line.strip():
                yield f"line {number}", text


def _read_array(file: TextIO, text: str, path: Path) -> Iterator[RawRow]:
    """Element by element, so that an error knows its row; `text` is what was read of `file` so far."""
    array = _ArrayText(file, text)
    array.skip(1)
    row = 0
    while array.next_character() != "]":
        row += 1
        try:
            value = array.value()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} row {row}: broken JSON ({error})") from error
        yield f"row {row}", value
        after = array.next_character()
        if after == ",":
            array.skip(1)
            if array.next_character() == "]":
                raise ValueError(f"{path} row {row}: broken JSON (a comma follows the last row)")
        elif after != "]":
            what = f"found {after!r}" if after else "the file ends here"
            raise ValueError(f"{path} row {row}: broken JSON (after it a comma or ] was expected, {what})")
    array.skip(1)
    if array.next_character():
        raise ValueError(f"{path}: broken JSON (text follows the closing ] after row {row})")


class _ArrayText:
    """A place in the text of a JSON array, of which only the part around it is in memory."""

    def __init__(self, file: TextIO, text: str) -> None:
        self._file, self._text, self._at, self._ended = file, text, 0, False

    def skip(self, count: int) -> None:
        self._at += count

    def next_character(self) -> str:
        """The next character that is no white space, where the place then is; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def value(self) -> Any:
        """The value that begins here. Raises ValueError: it is broken, or the file ends inside it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - NEAR_THE_END
                if self._ended or not unfinished:
                    raise
            else:
                # Only a number may go on where it seems to end: 12 may be the beginning of 123, or of 12.5.
                if self._ended or type(value) not in (int, float) or self._text[end : end + 1] in tuple(" \t\r\n,]"):
                    self._at = end
                    return value
            self._read_on()

    def _read_on(self) -> bool:
        """Reads at least as much again as is held, so that a long value is decoded few times over; False at the end."""
        held = self._text[self._at :]
        more = "" if self._ended else self._file.read(max(CHUNK, len(held)))
        self._ended = not more
        self._text, self._at = held + more, 0
        return bool(more)


def _read_table(path: Path, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # csv's own 131,072 characters are fewer than some answers have
    with open_text(path, newline="") as file:
        try:
            table = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = list(table.fieldnames or ())
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{path}: the header names the column {twice!r} twice")
            for number, row in enumerate(table, start=1):
                if None in row:
                    raise ValueError(
                        f"{path} row {number}: more cells than the header has columns; quote a cell that holds "
                        f"{delimiter!r}"
                    )
                yield f"row {number}", {key: value for key, value in row.items() if value is not None}
        except csv.Error as error:
            raise ValueError(f"{path}: broken table ({error})") from error


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system; the others are pyarrow's words for damaged pages
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable Parquet file ({reason}); fetch it again") from error


def _read_datasets_folder(path: Path) -> Iterator[RawRow]:
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is a folder, but not one that datasets.save_to_disk wrote") from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = [str(name) for name in loaded]
        raise ValueError(f"{path} holds several splits ({', '.join(splits)}): name one, such as {path / splits[0]}")
    for number, row in enumerate(loaded, start=1):
        yield f"row {number}", row
