"""Rows of a mixture: which are read, and which are held out.

Knows: the `:N` of a part, and the split by seed. Does not know file formats (`utils.formats`), shapes (`utils.readers`)
or tokens. Rows that ask the same thing stay on one side of the split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from utils import catalog, formats
from utils.formats import BadRow
from utils.readers import Row, outcomes

if TYPE_CHECKING:
    import numpy

DEFAULT_VALIDATION_ROWS = 2000
DEFAULT_VALIDATION_SHARE = 0.1


def read_part(part: catalog.Part, chosen: numpy.ndarray | None = None) -> Iterator[Row]:
    """The rows of one part, one at a time, in the file's order.

    Args:
        chosen: bool, whether to read each row; None for all.

    Raises:
        FileNotFoundError: no such file; the message says where it can be had.
        ValueError: as `readers.read_rows`; what is wrong with a row that is not chosen may go unseen.
    """
    row = None
    for row in outcomes(scan(part, chosen), part.path, source=part.name):
        if isinstance(row, BadRow):
            raise row
        yield row
    if row is None:
        raise ValueError(f"{part.path} holds no records: the file is empty")


def scan(part: catalog.Part, chosen: numpy.ndarray | None = None) -> Iterator[formats.RawRow]:
    """The raw rows of one part, as `formats.scan` gives them; arguments and errors are those of `read_part`, but for
    bad rows."""
    if not part.path.exists():
        raise FileNotFoundError(catalog.missing_file(part))
    for number, raw in enumerate(formats.scan(part.path)):
        if chosen is None or chosen[number]:
            yield raw


def read_chosen(part: catalog.Part, seed: int) -> Iterator[Row]:
    """The rows of one part that its `:N` takes by `seed`, as `read_part` reads them."""
    return read_part(part, choose(part, seed)[1])


def outcomes_chosen(part: catalog.Part, seed: int) -> Iterator[Row | BadRow]:
    """As `read_chosen`, with what is wrong with a bad row in its place."""
    return outcomes(scan(part, choose(part, seed)[1]), part.path, source=part.name)


def choose(part: catalog.Part, seed: int) -> tuple[int | None, numpy.ndarray | None]:
    """For a part with `:N`: how many rows its file has, and which of them a seeded draw takes (bool). (None, None): all
    are taken, and nothing was counted."""
    import numpy

    if part.max_rows is None:
        return None, None
    count = sum(1 for _ in formats.scan(part.path))
    if part.max_rows >= count:
        return count, None
    draw = numpy.random.default_rng(random.Random(f"{seed}:{part.name}").getrandbits(64))
    chosen = numpy.zeros(count, dtype=bool)
    chosen[draw.choice(count, part.max_rows, replace=False, shuffle=False)] = True
    return count, chosen


def validation_rows(num_rows: int, val_set_size: float | None) -> int:
    """How many of `num_rows` to hold out. A wish for more than half of them is lowered to a tenth: a small set would
    otherwise leave nothing to train on.

    Args:
        val_set_size: rows, or a share below 1; None for 10 % and at most 2,000.
    """
    if val_set_size is None:
        return min(DEFAULT_VALIDATION_ROWS, int(num_rows * DEFAULT_VALIDATION_SHARE))
    wish = int(num_rows * val_set_size) if val_set_size < 1 else int(val_set_size)
    return wish if wish <= num_rows // 2 else int(num_rows * DEFAULT_VALIDATION_SHARE)


def held_out(prompts: numpy.ndarray, num_validation: int, seed: int) -> numpy.ndarray:
    """Which rows are held out: bool, as long as `prompts`.

    Rows with the same prompt go the same way, so the result can fall short of `num_validation` by less than one such
    group, and never exceeds it. Which groups are held out depends on the seed and on what they ask, not on their order.

    Args:
        prompts: uint64, a hash of what each row asks.
    """
    import numpy

    groups, group_of_row, sizes = numpy.unique(prompts, return_inverse=True, return_counts=True)
    order = numpy.argsort(_mixed(groups, seed), kind="stable")
    chosen = numpy.zeros(len(groups), dtype=bool)
    room = num_validation
    first = int(numpy.searchsorted(numpy.cumsum(sizes[order]), num_validation, side="right"))
    chosen[order[:first]] = True
    room -= int(sizes[order[:first]].sum())
    for group in order[first:] if room else ():
        if sizes[group] <= room:
            chosen[group] = True
            room -= int(sizes[group])
            if not room:
                break
    return chosen[group_of_row]


def _mixed(values: numpy.ndarray, seed: int) -> numpy.ndarray:
    """uint64 values in an order that depends on the seed alone (the finaliser of splitmix64; Steele, Lea and Flood
    2014, doi:10.1145/2660193.2660195)."""
    import numpy

    mixed = values ^ numpy.uint64(random.Random(f"split:{seed}").getrandbits(64))
    with numpy.errstate(over="ignore"):
        mixed = (mixed ^ (mixed >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> numpy.uint64(31))
