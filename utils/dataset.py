"""From `--data` to rows that are ready to train on, each of them proved and every other one accounted for.

Knows: which rows of the encoded parts are dropped, held out and repeated, and the ledger of it. Does not know how a row is
encoded (`utils.encoding`), torch or models. Rows are known here by their hashes and lengths; their tokens stay on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils import catalog, hygiene, records
from utils.encode import Truncation
from utils.encoding import EncodedPart, Recipe, encode_part
from utils.ledger import Account, Ledger
from utils.overlap import EvaluationSets
from utils.store import Selection
from utils.templates import Template
from utils.tokens import Tokenizer

if TYPE_CHECKING:
    import numpy

NO_ROWS: Callable[[int], object] = lambda count: None  # noqa: E731


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Proved rows, and where all others went."""

    train: Selection
    validation: Selection
    ledger: Ledger
    sources: list[dict[str, Any]]
    """Name, path, rows, shape, sha256 and licence of each part."""


def build(
    parts: Sequence[catalog.Part],
    template: Template,
    tokenizer: Tokenizer,
    *,
    cutoff_len: int,
    truncation: Truncation,
    val_set_size: float | None,
    seed: int,
    drop: frozenset[str] | None = None,
    overlap: EvaluationSets | None = None,
    workers: int | None = None,
    on_rows: Callable[[int], object] = NO_ROWS,
) -> TrainingData:
    """The rows of a mixture, encoded, without those that are dropped, split and repeated.

    Args:
        val_set_size: rows to hold out, or a share below 1; None for 10 % and at most 2,000.
        drop: names of `hygiene.CHECKS`; None for those that are dropped by default.
        overlap: the evaluation sets that no row may repeat.
        workers, on_rows: see `encoding.encode_part`.

    Raises:
        FileNotFoundError, ValueError: data that is missing, broken or empty; nothing left to train on.
        MaskError: a row whose labels are wrong.
    """
    import numpy

    drop = hygiene.resolve() if drop is None else drop
    encoded = [
        encode_part(
            part,
            Recipe(
                template=template,
                tokenizer=tokenizer,
                cutoff_len=cutoff_len,
                truncation=truncation,
                overlap=overlap,
                languages=part.spec.lang if part.spec else (),
            ),
            seed=seed,
            workers=workers,
            on_rows=on_rows,
        )
        for part in parts
    ]
    ledger = Ledger(sources={part.name: Account() for part in parts})
    accounts = [ledger.sources[part.name] for part in parts]
    alive = [_sound(each, account, drop) for each, account in zip(encoded, accounts, strict=True)]
    if "duplicate" in drop:
        _drop_repeats(encoded, alive, accounts)
    if "near_duplicate" in drop:
        _drop_near_repeats(parts, seed, alive, accounts)
    for each, account, mine in zip(encoded, accounts, alive, strict=True):
        _describe_kept(each, account, mine)
    part_of = numpy.concatenate([numpy.full(mine.sum(), i) for i, mine in enumerate(alive)])
    row_of = numpy.concatenate([numpy.flatnonzero(mine) for mine in alive])
    if not len(row_of):
        raise ValueError(_nothing_left(ledger.total))
    wish = records.validation_rows(len(row_of), val_set_size)
    if val_set_size is not None and val_set_size >= 1 and wish < val_set_size:
        ledger.notes.append(
            f"--val_set_size {val_set_size:g} would take more than half of the rows: {wish} are held out"
        )
    prompts = numpy.concatenate([each.rows.column("prompt")[mine] for each, mine in zip(encoded, alive, strict=True)])
    held = records.held_out(prompts, wish, seed)
    files = [each.rows for each in encoded]
    copies = numpy.array([part.repeat for part in parts])[part_of[~held]]
    train = Selection(files, *_repeated(part_of[~held], row_of[~held], copies))
    data = TrainingData(
        train=train,
        validation=Selection(files, part_of[held], row_of[held]),
        ledger=ledger,
        sources=_sources(parts, encoded),
    )
    _account(data, accounts, copies, part_of[~held])
    ledger.notes += [*_changed(parts, encoded), *([_held_against(overlap)] if overlap else [])]
    ledger.check()
    return data


def _sound(each: EncodedPart, account: Account, drop: frozenset[str]) -> numpy.ndarray:
    """Which rows of a part stay (bool), by what is known of each alone; the others are counted."""
    import numpy

    account.read += each.read
    account.left_out += each.left_out
    alive = numpy.ones(len(each.rows), dtype=bool)
    flags = each.rows.column("flags")
    for name, check in hygiene.CHECKS.items():
        if name in drop and check.per_row:
            found = alive & (flags & hygiene.BITS[name] != 0)
            _count(account, check.what, int(found.sum()))
            alive &= ~found
    unencoded = alive & ~each.rows.column("kept")
    for what, count in each.rows.texts("what", unencoded):
        _count(account, what, count)
    return alive & ~unencoded


def _drop_repeats(encoded: Sequence[EncodedPart], alive: list[numpy.ndarray], accounts: Sequence[Account]) -> None:
    """Takes rows out of `alive` that an earlier row of the mixture equals."""
    import numpy

    hashes = numpy.concatenate([each.rows.column("record")[mine] for each, mine in zip(encoded, alive, strict=True)])
    first = numpy.zeros(len(hashes), dtype=bool)
    first[numpy.unique(hashes, return_index=True)[1]] = True
    _take_out(first, alive, accounts, "duplicate")


def _drop_near_repeats(
    parts: Sequence[catalog.Part], seed: int, alive: list[numpy.ndarray], accounts: Sequence[Account]
) -> None:
    """Takes rows out of `alive` that say nearly what an earlier row of the mixture says; their texts are read again."""
    import numpy

    from utils.near_duplicates import NearDuplicates

    near = NearDuplicates()
    for part, mine in zip(parts, alive, strict=True):
        rows = records.read_part(part, records.choose(part, seed)[1])
        for row, stays in zip(rows, mine, strict=True):
            if stays:
                near.add(hygiene.text_of(row.record))
    _take_out(numpy.asarray(near.duplicates()) < 0, alive, accounts, "near_duplicate")


def _take_out(stays: numpy.ndarray, alive: list[numpy.ndarray], accounts: Sequence[Account], check: str) -> None:
    """Narrows `alive` to where `stays` (bool, one for each living row of all parts) is true, and counts the others."""
    start = 0
    for mine, account in zip(alive, accounts, strict=True):
        count = int(mine.sum())
        mine[mine] = stays[start : start + count]
        _count(account, hygiene.CHECKS[check].what, count - int(mine.sum()))
        start += count


def _describe_kept(each: EncodedPart, account: Account, mine: numpy.ndarray) -> None:
    """Counts what was cut in the rows that stay, and what is noticeable about them."""
    account.truncated.update({what: count for what, count in each.rows.texts("what", mine) if what})
    flags = each.rows.column("flags")[mine]
    for name, check in hygiene.CHECKS.items():
        if found := int((flags & hygiene.BITS[name] != 0).sum()):
            account.reported[check.what] += found


def _repeated(
    part_of: numpy.ndarray, row_of: numpy.ndarray, copies: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Rows in their order, and after them the further copies of each."""
    import numpy

    return tuple(numpy.concatenate([of, numpy.repeat(of, copies - 1)]) for of in (part_of, row_of))  # pyright: ignore[reportReturnType]


def _account(data: TrainingData, accounts: Sequence[Account], copies: numpy.ndarray, part_of: numpy.ndarray) -> None:
    for i, account in enumerate(accounts):
        mine = data.train.parts == i
        account.trained += int(mine.sum())
        account.repeated += int((copies[part_of == i] - 1).sum())
        account.validation += int((data.validation.parts == i).sum())
        account.tokens += int(data.train.lengths[mine].sum())
        account.trained_tokens += int(data.train.targets[mine].sum())


def _count(account: Account, what: str, count: int) -> None:
    if count:
        account.dropped[what] += count


def _nothing_left(total: Account) -> str:
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in total.dropped.items())
    too_long = any(reason.startswith("longer than") for reason in total.dropped)
    advice = (
        "raise --cutoff_len, or choose another --truncation" if too_long else "--keep names what is not dropped"
    )
    return f"all {total.read - total.left_out:,} rows were dropped ({reasons}): {advice}"


def _sources(parts: Sequence[catalog.Part], encoded: Sequence[EncodedPart]) -> list[dict[str, Any]]:
    return [
        {
            "name": part.name,
            "path": str(part.path),
            "rows": each.read,
            "shape": each.shape,
            "sha256": each.sha256,
            "license": part.spec.license if part.spec else None,
        }
        for part, each in zip(parts, encoded, strict=True)
    ]


def _held_against(overlap: EvaluationSets) -> str:
    absent = f"; not on this machine: {', '.join(overlap.absent)}" if overlap.absent else ""
    return f"held against the questions of {', '.join(overlap.checked) or 'no evaluation set'}{absent}"


def _changed(parts: Sequence[catalog.Part], encoded: Sequence[EncodedPart]) -> list[str]:
    """A note for each file that is not the one the catalogue knows."""
    return [
        f"{part.path} is not the file that data/datasets.toml knows as {part.name}: its sha256 is {each.sha256}"
        for part, each in zip(parts, encoded, strict=True)
        if part.spec is not None and part.spec.sha256 not in ("", each.sha256)
    ]
