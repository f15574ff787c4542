"""Encoded rows on disk: written chunk by chunk, read in place.

Knows: the file (Apache Arrow's IPC format, mapped into memory, so that a row costs memory only while it is used), and
selections of rows from several files. Does not know how a row was encoded, or why one is selected.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from utils.proof import IGNORED, Encoded, Outcome

if TYPE_CHECKING:
    import numpy

CHUNK_ROWS = 2048
"""Rows of a chunk: enough for the tokenizer's threads, and some 10 MB while it is made."""

COLUMNS = {
    "input_ids": ("int32 list", "the tokens; none for a row that was dropped"),
    "spans": ("int32 list", "[start, end) of each run of trained tokens, one after the other"),
    "length": ("int32", "tokens"),
    "targets": ("int32", "tokens that carry loss"),
    "number": ("int64", "which row or line of its file, from 1"),
    "flags": ("uint32", "bit i is the i-th check of utils.hygiene"),
    "prompt": ("uint64", "hash of what the row asks"),
    "record": ("uint64", "hash of the whole row"),
    "what": ("string", "why it was dropped, or what was cut"),
    "kept": ("bool", "whether it was encoded"),
}
"""Name → (type, meaning)."""


class Examined(NamedTuple):
    """What is known of a row besides its tokens; see `COLUMNS`."""

    number: int
    flags: int
    prompt: int
    record: int


def write(path: Path, chunks: Iterator[Any]) -> None:
    """Writes what `chunk` made, in order."""
    import pyarrow

    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, _schema()) as writer:
        for made in chunks:
            writer.write_batch(made)


def chunk(outcomes: Sequence[Outcome], examined: Sequence[Examined]) -> Any:
    """Rows as a `pyarrow.RecordBatch`."""
    import pyarrow

    rows = [outcome.encoded for outcome in outcomes]
    ids = [row.input_ids if row else [] for row in rows]
    values = {
        "input_ids": _lists(ids),
        "spans": _lists([outcome.spans for outcome in outcomes]),
        "length": [len(row) for row in ids],
        "targets": [row.num_targets if row else 0 for row in rows],
        "what": [outcome.what for outcome in outcomes],
        "kept": [row is not None for row in rows],
    }
    values |= dict(zip(Examined._fields, zip(*examined, strict=True), strict=True))
    return pyarrow.RecordBatch.from_arrays(
        [pyarrow.array(values[field.name], field.type) for field in _schema()], schema=_schema()
    )


class EncodedFile:
    """A file that `write` wrote.

    Args:
        origin: what stands before a row's number in messages, such as `data/alpaca.json row`.
    """

    def __init__(self, path: Path, *, origin: str, source: str) -> None:
        import pyarrow

        self.source, self._origin = source, origin
        self._table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        self._ids, self._spans = self._table["input_ids"].chunks, self._table["spans"].chunks
        self._numbers = self._table["number"].chunks
        self._starts = list(itertools.accumulate((len(chunk) for chunk in self._numbers), initial=0))

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> numpy.ndarray:
        """One of the columns of numbers or truths, whole."""
        return self._table[name].to_numpy()

    def texts(self, name: str, rows: numpy.ndarray) -> list[tuple[str, int]]:
        """The different texts of a column in the rows where `rows` (bool) is true, with their counts."""
        import pyarrow
        from pyarrow import compute

        chosen = self._table[name].filter(pyarrow.array(rows))
        counts = compute.value_counts(chosen)  # pyright: ignore[reportAttributeAccessIssue]
        return [(each["values"], each["counts"]) for each in counts.to_pylist()]

    def row(self, index: int) -> Encoded:
        """The row with its labels."""
        at = bisect.bisect_right(self._starts, index) - 1
        offset = index - self._starts[at]
        ids = self._ids[at][offset].values.to_pylist()
        spans = self._spans[at][offset].values.to_pylist()
        labels = [IGNORED] * len(ids)
        for start, end in zip(spans[::2], spans[1::2], strict=True):
            labels[start:end] = ids[start:end]
        origin = f"{self._origin} {self._numbers[at][offset].as_py()}"
        return Encoded(input_ids=ids, labels=labels, origin=origin, source=self.source)


class Selection(Sequence[Encoded]):
    """Rows of several files, in an order; each is read when it is asked for.

    Args:
        parts: int, which file each row is of.
        rows: int, which of its rows; a row may be there several times.
    """

    def __init__(self, files: Sequence[EncodedFile], parts: numpy.ndarray, rows: numpy.ndarray) -> None:
        import numpy

        self._files, self.parts, self.rows = files, parts.astype(numpy.int32), rows.astype(numpy.int64)
        self.lengths, self.targets = self._gathered("length"), self._gathered("targets")

    def _gathered(self, name: str) -> numpy.ndarray:
        """int32: a column's value for each row."""
        import numpy

        values = numpy.zeros(len(self.rows), dtype=numpy.int32)
        for part, file in enumerate(self._files):
            mine = self.parts == part
            values[mine] = file.column(name)[self.rows[mine]]
        return values

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._files[self.parts[index]].row(int(self.rows[index]))


def lengths(rows: Sequence[Encoded]) -> Sequence[int] | numpy.ndarray:
    """How many tokens each row has."""
    return rows.lengths if isinstance(rows, Selection) else [len(row.input_ids) for row in rows]


def targets(rows: Sequence[Encoded]) -> Sequence[int] | numpy.ndarray:
    """How many tokens of each row carry loss."""
    return rows.targets if isinstance(rows, Selection) else [row.num_targets for row in rows]


def _schema() -> Any:
    import pyarrow

    def type_of(name: str) -> Any:
        element = pyarrow.type_for_alias(name.removesuffix(" list"))
        return pyarrow.list_(element) if name.endswith(" list") else element

    return pyarrow.schema([(name, type_of(kind)) for name, (kind, _) in COLUMNS.items()])


def _lists(rows: Sequence[Sequence[int]]) -> Any:
    import numpy
    import pyarrow

    offsets = numpy.zeros(len(rows) + 1, dtype=numpy.int32)
    numpy.cumsum([len(row) for row in rows], out=offsets[1:])
    values = numpy.fromiter(itertools.chain.from_iterable(rows), dtype=numpy.int32, count=int(offsets[-1]))
    return pyarrow.ListArray.from_arrays(offsets, values)
