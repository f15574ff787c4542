"""What a file of records holds, row by row: findings, languages, lengths; and a mixture written as one file.

Knows: how rows are gone through once, keeping 24 bytes of each. Does not know tokens, or how its numbers are shown.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cache, catalog, conversion, hygiene, outputs, records
from utils.ledger import Ledger
from utils.overlap import EvaluationSets
from utils.sieve import nothing_left, sieve
from utils.templates import last_answer

if TYPE_CHECKING:
    import numpy

EXAMPLES = 3
"""Rows that are named for each finding."""
CODE = ("formats", "hygiene", "outputs", "overlap", "readers", "records", "sieve", "survey")
"""The modules on which a mixture depends."""
TYPES = {"flags": "uint32", "record": "uint64", "prompt": "uint64", "characters": "uint32"}


@dataclass(kw_only=True)
class Survey:
    """The rows of a part. It has the columns that `sieve` asks for."""

    rows: int = 0
    """Rows of the file."""
    left_out: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    dialogues: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    """Of the answers, as `hygiene.language_of` names them."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Check → the first rows with that finding."""
    values: dict[str, array[int]] = field(
        default_factory=lambda: {name: array("Q" if kind == "uint64" else "I") for name, kind in TYPES.items()}
    )

    def __len__(self) -> int:
        return len(self.values["flags"])

    def column(self, name: str) -> numpy.ndarray:
        """Flags, hashes or characters of each row; `kept` is true throughout."""
        import numpy

        if name == "kept":
            return numpy.ones(len(self), dtype=bool)
        return numpy.array(self.values[name], dtype=TYPES[name])

    def texts(self, name: str, rows: numpy.ndarray) -> list[tuple[str, int]]:
        """No row was cut or left unencoded."""
        return []

    def counts(self) -> Counter[str]:
        """Rows by finding, exact repeats included."""
        import numpy

        flags = self.column("flags")
        found = Counter({name: int((flags & bit != 0).sum()) for name, bit in hygiene.BITS.items()})
        found["duplicate"] = len(self) - len(numpy.unique(self.column("record")))
        return +found


def survey(
    part: catalog.Part,
    *,
    seed: int = 0,
    overlap: EvaluationSets | None = None,
    on_rows: Callable[[int], object] = lambda count: None,
) -> Survey:
    """Goes through the rows of a part.

    Raises:
        FileNotFoundError, ValueError: as `records.read_part`.
    """
    found = Survey()
    count, chosen = records.choose(part, seed)
    examiner = hygiene.Examiner(overlap, part.spec.lang if part.spec else ())
    for row in records.read_part(part, chosen):
        bits = examiner.examine(row.record)
        text = hygiene.text_of(row.record)
        for name in hygiene.names(bits):
            examples = found.examples.setdefault(name, [])
            if len(examples) < EXAMPLES:
                examples.append(row.origin.removeprefix(f"{part.path} "))
        found.shapes[row.shape] += 1
        found.dialogues += "conversation" in row.record
        found.languages[hygiene.language_of(last_answer(row.record), hygiene.ENOUGH_TO_COUNT)] += 1
        values = {"flags": bits, "characters": len(text)}
        values |= {"record": hygiene.record_hash(row.record), "prompt": hygiene.prompt_hash(row.record)}
        for name, value in values.items():
            found.values[name].append(value)
        on_rows(1)
    found.rows = len(found) if count is None else count
    found.left_out = found.rows - len(found)
    return found


def near_repeats(parts: Sequence[catalog.Part], seed: int, on_rows: Callable[[int], object]) -> int:
    """How many rows of all parts say nearly what an earlier one says."""
    from utils.near_duplicates import NearDuplicates

    near = NearDuplicates()
    for part in parts:
        for row in records.read_chosen(part, seed):
            near.add(hygiene.text_of(row.record))
            on_rows(1)
    return int((near.duplicates() >= 0).sum())


def write_mixture(
    parts: Sequence[catalog.Part],
    out: Path,
    *,
    seed: int,
    drop: frozenset[str],
    overlap: EvaluationSets | None = None,
    on_rows: Callable[[int], object] = lambda count: None,
) -> Ledger:
    """Writes the rows of a mixture that stay into one file, in order, repeated as asked; and beside it, in
    `OUT.source.json`, where they came from.

    Raises:
        FileNotFoundError, ValueError: data that is missing or broken, or of which nothing stays; nothing is written.
    """
    import numpy

    outputs.require_ending(out)
    if any(part.path.resolve() == out.resolve() for part in parts):
        raise ValueError(f"{out}: the output would replace one of its parts; name another")
    surveys = [survey(part, seed=seed, overlap=overlap, on_rows=on_rows) for part in parts]
    ledger, accounts = Ledger.of([part.name for part in parts])
    for found, account in zip(surveys, accounts, strict=True):
        account.read += found.rows
        account.left_out += found.left_out
    alive = sieve(
        surveys,
        accounts,
        drop,
        repeats=[part.repeat for part in parts],
        texts=lambda i: enumerate(hygiene.text_of(row.record) for row in records.read_chosen(parts[i], seed)),
    )
    if not numpy.concatenate(alive).any():
        raise ValueError(nothing_left(ledger.total))

    def rows() -> Iterator[dict[str, Any]]:
        for part, account, mine in zip(parts, accounts, alive, strict=True):
            for repeat in range(part.repeat):
                for row, stays in zip(records.read_chosen(part, seed), mine, strict=True):
                    if stays:
                        account.trained += 1
                        account.repeated += repeat > 0
                        yield dict(row.record)

    with outputs.atomic(out) as file:
        outputs.write_records(rows(), file, array=out.suffix == ".json")
        ledger.check()
    source = mixture_source(parts, seed=seed, drop=drop, overlap=overlap)
    document = source | {"ledger": ledger.as_dict(), "sha256": cache.content_hash(out)}
    with outputs.atomic(conversion.provenance_path(out)) as file:
        file.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    return ledger


def repeats(surveys: Sequence[Survey]) -> int:
    """How many rows of all parts another row equals that comes before."""
    import numpy

    hashes = numpy.concatenate([found.column("record") for found in surveys])
    return len(hashes) - len(numpy.unique(hashes))


def mixture_source(
    parts: Sequence[catalog.Part], *, seed: int, drop: frozenset[str], overlap: EvaluationSets | None
) -> dict[str, Any]:
    """What a mixture is made of, for its provenance file: equal for mixtures that are written alike."""
    for part in parts:
        if not part.path.exists():
            raise FileNotFoundError(catalog.missing_file(part))
    return {
        "mixture": [
            {
                "name": part.name,
                "sha256": cache.content_hash(part.path),
                "max_rows": part.max_rows,
                "repeat": part.repeat,
                "license": part.spec.license if part.spec else None,
            }
            for part in parts
        ],
        "seed": seed,
        "dropped for": sorted(drop),
        "evaluation sets": overlap.fingerprint if overlap else None,
        "code": cache.code_hash(CODE),
    }


def is_written(source: dict[str, Any], out: Path) -> bool:
    """Whether `out` is what `write_mixture` wrote from this source."""
    try:
        found = json.loads(conversion.provenance_path(out).read_text(encoding="utf-8"))
        return {key: found[key] for key in source} == source and found["sha256"] == cache.content_hash(out)
    except (OSError, ValueError, KeyError, TypeError):
        return False
