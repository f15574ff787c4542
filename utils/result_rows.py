"""The file of predictions: whole lines in the input's order, whatever killed its writer.

Knows: lines, groups of rows, torn tails, and the parts that several processes write. Does not know models or questions.

Each group of rows is written at once and flushed to the disk; a group that is not whole is as good as not there, so
what goes on after a kill decodes the same batches, and the file becomes the same to the byte.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from utils import outputs

NAME = "predictions.jsonl"
PART = "predictions.part-{:05d}.jsonl"
"""What each of several processes writes, by rank."""
PARTS = "predictions.part-*.jsonl"
ROW = "row_id"
FAILED = "error"
"""The finish_reason of a row that failed."""
OURS = ("generate", "finish_reason", "prompt_tokens", "new_tokens", "cut_tokens", "loglikelihoods", "error", ROW)
"""Fields that are put beside a record's own."""


@contextmanager
def writable(directory: Path) -> Iterator[None]:
    """While it holds, `directory` is there; afterwards it is gone again if nothing was put into it.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(f"--result_dir {directory} cannot be written to ({error.strerror}): choose another") from error
    with outputs.gone_if_empty(directory):
        yield


def row_id(number: int, content: str) -> str:
    """A row's name: its number in the input, from 0, and what is in it."""
    return f"{number:06d}-{content}"


def number_of(name: str) -> int:
    """The number in a `row_id`."""
    return int(name.partition("-")[0])


@dataclass(frozen=True, kw_only=True)
class Place:
    """A line of a file."""

    file: Path
    start: int
    length: int


@dataclass(kw_only=True)
class Results:
    """Which rows of `directory` are done, and where."""

    directory: Path
    places: dict[int, Place] = field(default_factory=dict)
    """Row number → its line."""

    @property
    def path(self) -> Path:
        """The file of predictions."""
        return self.directory / NAME

    @classmethod
    def found(cls, directory: Path) -> Results:
        """What is in `directory`, without what is torn.

        Raises:
            ValueError: a line in the middle of a file that is none of ours.
        """
        results = cls(directory=directory)
        for file in [directory / NAME, *sorted(directory.glob(PARTS))]:
            if file.exists():
                results.places.update((number_of(line[ROW]), place) for place, line in _lines(file))
        return results

    def keep(self, rows: Iterable[int]) -> None:
        """Forgets all but these rows."""
        wanted = set(rows)
        self.places = {row: place for row, place in self.places.items() if row in wanted}

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines in the order of their rows, as values."""
        return (json.loads(line) for line in self._raw_lines())

    def rewrite(self) -> None:
        """Makes the file of predictions of the rows that are known, in order, and removes the parts. Whole or not at
        all."""
        parts = list(self.directory.glob(PARTS))
        places, start = {}, 0
        if parts or not self._is_file():
            with outputs.atomic(self.path) as file:
                for row, line in zip(sorted(self.places), self._raw_lines(), strict=True):
                    file.write(line.decode("utf-8"))
                    places[row] = Place(file=self.path, start=start, length=len(line))
                    start += len(line)
            self.places = places
            for part in parts:
                part.unlink()

    def _is_file(self) -> bool:
        """Whether the file holds the known rows in order, and nothing else."""
        end = 0
        for row in sorted(self.places):
            place = self.places[row]
            if place.file != self.path or place.start != end:
                return False
            end += place.length
        return self.path.exists() and self.path.stat().st_size == end

    def _raw_lines(self) -> Iterator[bytes]:
        with ExitStack() as opened:
            names = {place.file for place in self.places.values()}
            files = {name: opened.enter_context(name.open("rb")) for name in names}
            for row in sorted(self.places):
                place = self.places[row]
                files[place.file].seek(place.start)
                yield files[place.file].read(place.length)


class Writer:
    """Appends groups of lines to an open file, unbuffered."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """One write for all of them, flushed to the disk."""
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines).encode("utf-8")
        while text:
            text = text[self._file.write(text) :]
        os.fsync(self._file.fileno())


@contextmanager
def appending(directory: Path, *, rank: int, world_size: int) -> Iterator[Writer]:
    """Writes to the file of predictions, or to a process's own part of it.

    Raises:
        OSError: the directory cannot be written to.
    """
    path = directory / (NAME if world_size == 1 else PART.format(rank))
    with FileIO(path, "ab") as file:
        yield Writer(file)


def _lines(file: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    start = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.endswith(b"\n"):
                return  # its writer was killed
            try:
                value = json.loads(line)
                number_of(value[ROW])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file} line {number} is no prediction of this program: delete the file, or choose another "
                    "--result_dir"
                ) from error
            yield Place(file=file, start=start, length=len(line)), value
            start += len(line)
