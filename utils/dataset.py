"""From `--data` to rows that are ready to train on, each of them proved and every other one accounted for.

Knows: the order of things: read, split, render, encode, prove, count. Does not know torch or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from utils import catalog, records
from utils.encode import Encoded, Tokenizer, Truncation, encode_rows
from utils.records import Ledger, Source
from utils.templates import Template


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Proved rows, and where all others went."""

    train: list[Encoded]
    validation: list[Encoded]
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
) -> TrainingData:
    """Reads, splits and encodes the parts (see `records.load` and `encode.encode_rows` for the arguments).

    Raises:
        FileNotFoundError, ValueError: data that is missing, broken or empty; nothing left to train on.
        MaskError: a row whose labels are wrong.
    """
    train_rows, validation_rows, ledger, sources = records.load(parts, seed, val_set_size)
    train, dropped, truncated = encode_rows(
        train_rows, template, tokenizer, cutoff_len=cutoff_len, truncation=truncation
    )
    validation, dropped_too, truncated_too = encode_rows(
        validation_rows, template, tokenizer, cutoff_len=cutoff_len, truncation=truncation
    )
    ledger.dropped += dropped + dropped_too
    ledger.truncated += truncated + truncated_too
    ledger.trained, ledger.validation = len(train), len(validation)
    ledger.check()
    if not train:
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in ledger.dropped.items())
        raise ValueError(
            f"all {ledger.read:,} rows were dropped ({reasons}): raise --cutoff_len, or choose another --truncation"
        )
    return TrainingData(train=train, validation=validation, ledger=ledger, sources=_describe(sources, parts))


def _describe(sources: Sequence[Source], parts: Sequence[catalog.Part]) -> list[dict[str, Any]]:
    licenses = {part.name: part.spec.license if part.spec else None for part in parts}
    return [asdict(source) | {"license": licenses[source.name]} for source in sources]
