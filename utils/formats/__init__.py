"""Files as raw rows: opening, decoding and cutting each format, one row at a time.

Knows: JSON arrays, JSON Lines, CSV/TSV with a header, Parquet, `datasets` folders, plain lines, and gzip around the
text formats. Does not know what a row means. Memory does not grow with the file: a row is read, handed on, forgotten.

What is wrong with one row is a `BadRow`, and the rows after it can be read; what is wrong with a file is a plain
`ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from utils.formats import json_rows, tables
from utils.formats.faults import BAD_ROW, LONGEST_ROW, BadRow, RawRow, not_utf8, too_long
from utils.formats.json_rows import decoded, document
from utils.formats.opening import COMPRESSED, open_text

__all__ = ["BAD_ROW", "LONGEST_ROW", "BadRow", "RawRow", "decoded", "document", "not_utf8", "open_text", "too_long"]

ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
PROVENANCE = ".source.json"
"""Ends the name of what lies beside a file that was fetched, converted or mixed, and tells where that came from."""
TEXT_ENDINGS = tuple(ending for ending in ENDINGS if ending != ".parquet")


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
        BadRow: the first row that cannot be read.
        ValueError: an unknown ending; a broken array, table, Parquet or gzip file. The message names the file and,
            where there is one, the row or line.
    """
    for where, value in decoded(scan(path), path):
        if isinstance(value, BadRow):
            raise value
        yield where, value


def scan(path: Path) -> Iterator[RawRow]:
    """The rows as far as they must be read to be told apart, for `decoded` to finish, in another process perhaps: a
    line of JSON as bytes; a value; or, for a row that cannot be read, its `BadRow`. Raises as `read`, but for that."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.name.endswith(PROVENANCE):
        raise ValueError(f"{path} tells where the file beside it came from; it holds no data: leave it out")
    if path.is_dir():
        yield from tables.read_datasets_folder(path)
        return
    name = path.name.lower().removesuffix(COMPRESSED)
    match Path(name).suffix:
        case ".parquet" if not path.name.lower().endswith(COMPRESSED):
            yield from tables.read_parquet(path)
        case ".csv" | ".tsv" as suffix:
            yield from tables.read_table(path, "," if suffix == ".csv" else "\t")
        case ".json" | ".jsonl":  # some sets call JSON Lines `.json`
            yield from json_rows.read_array(path) if json_rows.begins_array(path) else json_rows.json_lines(path)
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
