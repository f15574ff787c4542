"""Rows of a mixture: what is read, what is held out, and the ledger that accounts for every row.

Knows: how parts become training and validation rows, by seed. Does not know file formats (`utils.readers`) or tokens.
The split is made before rows are repeated, and rows with the same prompt stay on one side of it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils import catalog
from utils.readers import Row, read_rows

DEFAULT_VALIDATION_ROWS = 2000
DEFAULT_VALIDATION_SHARE = 0.1


@dataclass
class Ledger:
    """Where every row went: `read + repeated = trained + validation + left_out + dropped`."""

    read: int = 0
    left_out: int = 0
    """Beyond the `:N` of a part."""
    repeated: int = 0
    """Copies that `*W` added."""
    validation: int = 0
    trained: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    truncated: Counter[str] = field(default_factory=Counter)
    """Kept rows by what was cut."""
    notes: list[str] = field(default_factory=list)
    """What was decided otherwise than asked."""

    def check(self) -> None:
        """`AssertionError` if a row is unaccounted for."""
        out = self.trained + self.validation + self.left_out + sum(self.dropped.values())
        assert self.read + self.repeated == out, f"the ledger does not add up: {self}"

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return {**vars(self), "dropped": dict(self.dropped), "truncated": dict(self.truncated)}

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"read {self.read:,} · trained on {self.trained:,} · validation {self.validation:,}"]
        if self.left_out:
            lines.append(f"left out by :N {self.left_out:,}")
        if self.repeated:
            lines.append(f"added by *W {self.repeated:,}")
        lines += [f"dropped {count:,}: {reason}" for reason, count in sorted(self.dropped.items())]
        lines += [f"truncated {count:,}: {what}" for what, count in sorted(self.truncated.items())]
        return [*lines, *self.notes]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A part as it was read, for the report and `run.json`."""

    name: str
    path: str
    rows: int
    shape: str
    sha256: str | None
    """Of the file; None for a folder."""


def read_part(part: catalog.Part, seed: int) -> tuple[list[Row], Source]:
    """The rows of one part, cut to its `:N` by a seeded draw that keeps the file's order; and what was read."""
    if not part.path.exists():
        raise FileNotFoundError(catalog.missing_file(part))
    rows, shape = read_rows(part.path)
    source = Source(name=part.name, path=str(part.path), rows=len(rows), shape=shape, sha256=file_sha256(part.path))
    if part.max_rows is not None and part.max_rows < len(rows):
        chosen = sorted(random.Random(f"{seed}:{part.name}").sample(range(len(rows)), part.max_rows))
        rows = [rows[i] for i in chosen]
    return [replace(row, source=part.name) for row in rows], source


def drop_empty(rows: Iterable[Row], ledger: Ledger) -> list[Row]:
    """The rows that ask something and answer it; the others are counted by reason."""
    kept = []
    for row in rows:
        turns = row.record.get("conversation")
        answers = [t["content"] for t in turns if t["role"] == "assistant"] if turns else [row.record["output"]]
        asked = any(t["content"].strip() for t in turns if t["role"] == "user") if turns else prompt_of(row).strip()
        if not all(answer.strip() for answer in answers):
            ledger.dropped["empty answer"] += 1
        elif not asked:
            ledger.dropped["empty instruction"] += 1
        else:
            kept.append(row)
    return kept


def load(
    parts: Sequence[catalog.Part], seed: int, val_set_size: float | None
) -> tuple[list[Row], list[Row], Ledger, list[Source]]:
    """Training rows (repeated as asked), validation rows, the ledger so far, and the sources.

    Args:
        val_set_size: rows to hold out, or a share below 1; None for 10 % and at most 2,000.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, broken or empty; no usable row in all of them.
    """
    ledger, sources, kept, repeats = Ledger(), [], [], {}
    for part in parts:
        rows, source = read_part(part, seed)
        sources.append(source)
        ledger.read += source.rows
        ledger.left_out += source.rows - len(rows)
        repeats[part.name] = max(repeats.get(part.name, 1), part.repeat)
        kept += drop_empty(rows, ledger)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.dropped.items())
        raise ValueError(f"all {ledger.read} rows were dropped ({reasons}); nothing is left to train on")
    num_validation = validation_rows(len(kept), val_set_size)
    if val_set_size is not None and val_set_size >= 1 and num_validation < val_set_size:
        ledger.notes.append(
            f"--val_set_size {val_set_size:g} would take more than half of the rows: {num_validation} are held out"
        )
    train, validation = split(kept, num_validation, seed)
    ledger.validation = len(validation)
    copies = [row for row in train for _ in range(repeats[row.source] - 1)]
    ledger.repeated = len(copies)
    ledger.trained = len(train) + len(copies)
    return train + copies, validation, ledger, sources


def validation_rows(num_rows: int, val_set_size: float | None) -> int:
    """How many of `num_rows` to hold out. A wish for more than half of them is lowered to a tenth: a small set would
    otherwise leave nothing to train on."""
    if val_set_size is None:
        return min(DEFAULT_VALIDATION_ROWS, int(num_rows * DEFAULT_VALIDATION_SHARE))
    wish = int(num_rows * val_set_size) if val_set_size < 1 else int(val_set_size)
    return wish if wish <= num_rows // 2 else int(num_rows * DEFAULT_VALIDATION_SHARE)


def split(rows: Sequence[Row], num_validation: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and validation rows, each in the order of `rows`. Rows that ask the same thing go the same way, so
    validation can fall short of `num_validation` by less than one such group, and never exceeds it."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(prompt_of(row), []).append(i)
    prompts = list(groups)
    random.Random(seed).shuffle(prompts)
    held: set[int] = set()
    for prompt in prompts:
        if len(held) + len(groups[prompt]) <= num_validation:
            held.update(groups[prompt])
    return [row for i, row in enumerate(rows) if i not in held], [row for i, row in enumerate(rows) if i in held]


def prompt_of(row: Row) -> str:
    """What a row asks first, as one string."""
    if "conversation" in row.record:
        return "\n".join(turn["content"] for turn in row.record["conversation"][:2] if turn["role"] != "assistant")
    return "\n".join(text for text in (row.record["instruction"], row.record["input"]) if text)


def file_sha256(path: Path) -> str | None:
    """Hex sha256 of a file; None for a folder."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
