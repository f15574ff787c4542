"""From `--data` to rows that are ready to train on, each of them proved and every other one accounted for.

Knows: the split, the repeats, and the ledger of a mixture. Does not know how a row is encoded (`utils.encoding`),
which are dropped (`utils.sieve`), torch or models. Rows are known here by their hashes and lengths; their tokens stay
on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from utils import catalog, hygiene, records
from utils.encode import Encoder, Truncation
from utils.encoding import EncodedPart, Recipe, encode_part
from utils.formats import BadRow
from utils.ledger import Account, Ledger
from utils.overlap import EvaluationSets
from utils.settings import Settings
from utils.sieve import nothing_left, sieve
from utils.store import Selection
from utils.templates import Template, get_template
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
    bad_rows: Literal["error", "drop"] = "error",
    workers: int | None = None,
    on_rows: Callable[[int], object] = NO_ROWS,
) -> TrainingData:
    """The rows of a mixture, encoded, without those that are dropped, split and repeated.

    Args:
        val_set_size: rows to hold out, or a share below 1; None for 10 % and at most 2,000.
        drop: names of `hygiene.CHECKS`; None for those that are dropped by default.
        overlap: the evaluation sets that no row may repeat.
        bad_rows: whether a row that cannot be read is an error, or is dropped and counted.
        workers, on_rows: see `encoding.encode_part`.

    Raises:
        FileNotFoundError, ValueError: data that is missing, broken or empty; nothing left to train on.
        MaskError: a row whose labels are wrong.
    """
    drop = hygiene.resolve() if drop is None else drop
    encoded = []
    for part in parts:
        recipe = Recipe(
            template=template,
            tokenizer=tokenizer,
            cutoff_len=cutoff_len,
            truncation=truncation,
            overlap=overlap,
            languages=part.spec.lang if part.spec else (),
            bad_rows=bad_rows,
        )
        with _bad_rows_can_be_dropped():
            encoded.append(encode_part(part, recipe, seed=seed, workers=workers, on_rows=on_rows))
    ledger, accounts = Ledger.of([part.name for part in parts])
    for each, account in zip(encoded, accounts, strict=True):
        account.read += each.read
        account.left_out += each.left_out
        account.split += each.split
    encoder = Encoder(template, tokenizer, cutoff_len=cutoff_len, truncation=truncation)
    alive = sieve(
        [each.rows for each in encoded],
        accounts,
        drop,
        repeats=[part.repeat for part in parts],
        texts=lambda i: _texts(parts[i], seed, encoder),
    )
    data = _divided(parts, encoded, alive, ledger, accounts, val_set_size=val_set_size, seed=seed)
    bad = [note for each in encoded for note in each.bad_rows]
    ledger.notes += [*bad, *_changed(parts, encoded), *([overlap.described()] if overlap else [])]
    ledger.check()
    return data


def of_settings(chosen: Settings, tokenizer: Tokenizer, *, on_rows: Callable[[int], object] = NO_ROWS) -> TrainingData:
    """The rows that a run with these settings is trained on; errors as `build` and `catalog.parse_mixture`."""
    drop = hygiene.resolve(chosen.drop, chosen.keep)
    return build(
        catalog.parse_mixture(chosen.data),
        get_template(chosen.template),
        tokenizer,
        cutoff_len=chosen.cutoff_len,
        truncation=chosen.truncation,
        val_set_size=chosen.val_set_size,
        seed=chosen.seed,
        bad_rows=chosen.bad_rows,
        drop=drop,
        overlap=hygiene.local_evaluation_sets() if "evaluation_overlap" in drop else None,
        workers=chosen.preprocessing_num_workers,
        on_rows=on_rows,
    )


@contextmanager
def _bad_rows_can_be_dropped() -> Iterator[None]:
    """Names the flag beside what is wrong with a row."""
    try:
        yield
    except BadRow as bad:
        raise ValueError(f"{bad}. Mend it, or drop and count such rows with --bad_rows drop") from bad


def _texts(part: catalog.Part, seed: int, encoder: Encoder) -> Iterator[tuple[int, str]]:
    """For each encoded row of a part, the number of its record and what that says."""
    for number, row in enumerate(records.outcomes_chosen(part, seed)):
        if isinstance(row, BadRow):
            yield number, ""
        else:
            yield from [(number, hygiene.text_of(row.record))] * len(encoder.examples(row))


def _divided(
    parts: Sequence[catalog.Part],
    encoded: Sequence[EncodedPart],
    alive: Sequence[numpy.ndarray],
    ledger: Ledger,
    accounts: Sequence[Account],
    *,
    val_set_size: float | None,
    seed: int,
) -> TrainingData:
    """The rows that stay, split and repeated, and accounted for."""
    import numpy

    part_of = numpy.concatenate([numpy.full(mine.sum(), i) for i, mine in enumerate(alive)])
    row_of = numpy.concatenate([numpy.flatnonzero(mine) for mine in alive])
    if not len(row_of):
        raise ValueError(nothing_left(ledger.total))
    wish = records.validation_rows(len(row_of), val_set_size)
    if val_set_size is not None and val_set_size >= 1 and wish < val_set_size:
        ledger.notes.append(
            f"--val_set_size {val_set_size:g} would take more than half of the rows: {wish} are held out"
        )
    prompts = numpy.concatenate([each.rows.column("prompt")[mine] for each, mine in zip(encoded, alive, strict=True)])
    held = records.held_out(prompts, wish, seed)
    files = [each.rows for each in encoded]
    copies = numpy.array([part.repeat for part in parts])[part_of[~held]]
    data = TrainingData(
        train=Selection(files, *_repeated(part_of[~held], row_of[~held], copies)),
        validation=Selection(files, part_of[held], row_of[held]),
        ledger=ledger,
        sources=_sources(parts, encoded),
    )
    _account(data, accounts, copies, part_of[~held])
    return data


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


def _changed(parts: Sequence[catalog.Part], encoded: Sequence[EncodedPart]) -> list[str]:
    """A note for each file that is not the one the catalogue knows."""
    return [
        f"{part.path} is not the file that data/datasets.toml knows as {part.name}: its sha256 is {each.sha256}"
        for part, each in zip(parts, encoded, strict=True)
        if part.spec is not None and part.spec.sha256 not in ("", each.sha256)
    ]
