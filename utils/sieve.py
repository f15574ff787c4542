"""Which rows of a mixture stay: those with findings that are dropped go, and those that repeat an earlier row.

Knows: what was found in each row (`utils.hygiene`), and the ledger. Does not know where rows are kept; it sees columns
of numbers, so a mixture of many millions of rows fits into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from utils import hygiene
from utils.formats import BAD_ROW
from utils.ledger import Account

if TYPE_CHECKING:
    import numpy


class Columns(Protocol):
    """The rows of one part; `utils.store.COLUMNS` says what each column holds."""

    def __len__(self) -> int: ...
    def column(self, name: str) -> numpy.ndarray:
        """`flags` (uint32), `record` (uint64) or `kept` (bool), an element a row."""
        ...

    def texts(self, name: str, rows: numpy.ndarray) -> list[tuple[str, int]]:
        """The different texts of the column `what` where `rows` (bool) is true, with their counts."""
        ...


def sieve(
    parts: Sequence[Columns],
    accounts: Sequence[Account],
    drop: frozenset[str],
    *,
    repeats: Sequence[int],
    texts: Callable[[int], Iterable[tuple[int, str]]],
) -> list[numpy.ndarray]:
    """For each part, which of its rows stay (bool); all others are counted in its account, by reason.

    Args:
        drop: names of `hygiene.CHECKS`.
        repeats: how often each part will be repeated. Of equal rows the one in the part that is repeated most stays, or
            the first: a subset that is given again to weigh more would otherwise weigh nothing.
        texts: reads a part again, the number of the record and its text for each row; asked only where near duplicates
            are dropped. Rows of one record stay or go together.
    """
    alive = [_sound(part, account, drop) for part, account in zip(parts, accounts, strict=True)]
    if "duplicate" in drop:
        _take_out(_first_of_its_kind(parts, alive, repeats), alive, accounts, "duplicate")
    if "near_duplicate" in drop:
        _take_out(_unlike_the_earlier(alive, texts), alive, accounts, "near_duplicate")
    for part, account, mine in zip(parts, accounts, alive, strict=True):
        _describe_kept(part, account, mine)
    return alive


def nothing_left(total: Account) -> str:
    """What to say when no row stays: why, and what can be done."""
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in total.dropped.items())
    if any(reason.startswith("longer than") for reason in total.dropped):
        advice = "raise --cutoff_len, or choose another --truncation"
    elif hygiene.CHECKS["evaluation_overlap"].what in total.dropped:
        advice = "train on other rows; --keep evaluation_overlap trains on these, and spoils the evaluation"
    elif any(reason.startswith(BAD_ROW) for reason in total.dropped):
        advice = "mend them; without --bad_rows drop, the first is named with its place"
    else:
        names = [name for name, check in hygiene.CHECKS.items() if check.what in total.dropped]
        advice = "give --data other rows" + (f"; --keep {' '.join(names)} keeps these" if names else "")
    return f"all {total.read - total.left_out:,} rows were dropped ({reasons}): {advice}"


def _sound(part: Columns, account: Account, drop: frozenset[str]) -> numpy.ndarray:
    """Which rows of a part stay (bool), by what is known of each alone."""
    import numpy

    alive = numpy.ones(len(part), dtype=bool)
    flags = part.column("flags")
    for name, check in hygiene.CHECKS.items():
        if name in drop and check.per_row:
            found = alive & (flags & hygiene.BITS[name] != 0)
            _count(account, check.what, int(found.sum()))
            alive &= ~found
    unencoded = alive & ~part.column("kept")
    for what, count in part.texts("what", unencoded):
        _count(account, what, count)
    return alive & ~unencoded


def _first_of_its_kind(
    parts: Sequence[Columns], alive: Sequence[numpy.ndarray], repeats: Sequence[int]
) -> numpy.ndarray:
    """Of the living rows of all parts, which none equals that is in a part repeated more often, or earlier (bool)."""
    import numpy

    order = sorted(range(len(parts)), key=lambda i: -repeats[i])
    hashes = numpy.concatenate([parts[i].column("record")[alive[i]] for i in order])
    first = numpy.zeros(len(hashes), dtype=bool)
    first[numpy.unique(hashes, return_index=True)[1]] = True
    ends = numpy.cumsum([int(alive[i].sum()) for i in order])
    pieces = dict(zip(order, numpy.split(first, ends[:-1]), strict=True))
    return numpy.concatenate([pieces[i] for i in range(len(parts))])


def _unlike_the_earlier(
    alive: Sequence[numpy.ndarray], texts: Callable[[int], Iterable[tuple[int, str]]]
) -> numpy.ndarray:
    """Of the living rows of all parts, whose record says nothing that an earlier one nearly says (bool)."""
    import numpy

    from utils.near_duplicates import NearDuplicates

    near, record_of_row, last = NearDuplicates(), [], (-1, -1)
    for i, mine in enumerate(alive):
        for (record, text), stays in zip(texts(i), mine, strict=True):
            if not stays:
                continue
            if (i, record) != last:
                near.add(text)
                last = (i, record)
                record_of_row.append(record_of_row[-1] + 1 if record_of_row else 0)
            else:
                record_of_row.append(record_of_row[-1])
    return (near.duplicates() < 0)[numpy.array(record_of_row, dtype=int)]


def _take_out(stays: numpy.ndarray, alive: list[numpy.ndarray], accounts: Sequence[Account], check: str) -> None:
    """Narrows `alive` to where `stays` (bool, one for each living row of all parts) is true, and counts the others."""
    start = 0
    for mine, account in zip(alive, accounts, strict=True):
        count = int(mine.sum())
        mine[mine] = stays[start : start + count]
        _count(account, hygiene.CHECKS[check].what, count - int(mine.sum()))
        start += count


def _describe_kept(part: Columns, account: Account, mine: numpy.ndarray) -> None:
    """Counts what was cut in the rows that stay, and what is noticeable about them."""
    for what, count in part.texts("what", mine):
        if what:
            account.truncated[what] += count
    flags = part.column("flags")[mine]
    for name, check in hygiene.CHECKS.items():
        if found := int((flags & hygiene.BITS[name] != 0).sum()):
            account.reported[check.what] += found


def _count(account: Account, what: str, count: int) -> None:
    if count:
        account.dropped[what] += count
