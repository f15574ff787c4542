"""The rows of tables: CSV, TSV, Parquet and `datasets` folders.

Knows: headers, cells and columns. Does not know what a row means.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from utils.formats import faults
from utils.formats.faults import BadRow, RawRow, not_utf8
from utils.formats.opening import open_text

PARQUET_ROWS = 1024
"""Rows of a Parquet file in memory at a time."""


def read_table(path: Path, delimiter: str) -> Iterator[RawRow]:
    """The rows of a CSV file as column → text, without the cells that a short row lacks."""
    csv.field_size_limit(faults.LONGEST_ROW)  # csv's own 131,072 characters are fewer than some answers have
    number = 0
    with open_text(path, newline="", errors="surrogateescape") as file:
        try:
            table = csv.DictReader(_table_lines(file, path), delimiter=delimiter, strict=True)
            names = list(table.fieldnames or ())
            if bad := not_utf8(delimiter.join(names), "the line", f"{path} header"):
                raise ValueError(str(bad))
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{path}: the header names the column {twice!r} twice")
            for number, row in enumerate(table, start=1):
                yield f"row {number}", _table_row(row, f"{path} row {number}", delimiter)
        except csv.Error as error:
            raise ValueError(
                f"{path} row {number + 1}: broken table ({error}); look for a quote that is never closed"
            ) from error


def _table_lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(faults.LONGEST_ROW + 1):
        if len(line) > faults.LONGEST_ROW:
            raise ValueError(f"{path}: a line is longer than {faults.LONGEST_ROW:,} characters: is this a table?")
        yield line


def _table_row(row: dict[Any, Any], origin: str, delimiter: str) -> Any:
    """Column → text, or what is wrong with the row."""
    if None in row:
        problem = f"more cells than the header has columns; quote a cell that holds {delimiter!r}"
        return BadRow(origin, "too many cells", problem)
    cells = {name: text for name, text in row.items() if text is not None}
    bad = (not_utf8(text, repr(name), origin) for name, text in cells.items())
    return next(filter(None, bad), cells)


def read_parquet(path: Path) -> Iterator[RawRow]:
    """The rows of a Parquet file, a few pages in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in _batch_rows(batch):
                    number += 1
                    yield f"row {number}", row if row is not None else _bytes_in_text(f"{path} row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system; the others are pyarrow's words for damaged pages
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable Parquet file ({reason}); fetch it again") from error


def _batch_rows(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a Parquet batch; None for one whose text is not UTF-8, which Parquet does not prevent."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        return [row for i in range(batch.num_rows) for row in _batch_rows(batch.slice(i, 1))]


def _bytes_in_text(origin: str) -> BadRow:
    return BadRow(origin, "not UTF-8", "not UTF-8 (a column of text holds other bytes); write it as UTF-8")


def read_datasets_folder(path: Path) -> Iterator[RawRow]:
    """The rows of a folder that `datasets.save_to_disk` wrote."""
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
