"""Where every row went, by source and by reason.

Knows: how to count, to add up and to say it. Does not know why a row was dropped.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Account:
    """The rows of one source: `read + split + repeated = trained + validation + left_out + dropped`."""

    read: int = 0
    left_out: int = 0
    """Beyond the `:N` of a part."""
    split: int = 0
    """Further rows of dialogues, where a row has one answer: each answer makes a row."""
    repeated: int = 0
    """Copies that `*W` added."""
    validation: int = 0
    trained: int = 0
    tokens: int = 0
    """Of the rows that are trained on, copies included."""
    trained_tokens: int = 0
    """Those among them that carry loss."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    truncated: Counter[str] = field(default_factory=Counter)
    """Kept rows by what was cut."""
    reported: Counter[str] = field(default_factory=Counter)
    """Kept rows by what is noticeable about them; one row may be in several."""

    def check(self) -> None:
        """`AssertionError` if a row is unaccounted for."""
        out = self.trained + self.validation + self.left_out + sum(self.dropped.values())
        assert self.read + self.split + self.repeated == out, f"the ledger does not add up: {self}"

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


@dataclass
class Ledger:
    """The accounts of all sources, and what was decided otherwise than asked."""

    sources: dict[str, Account] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, names: Sequence[str]) -> tuple[Ledger, list[Account]]:
        """A ledger with an empty account for each name, and the accounts in that order; equal names share one."""
        ledger = cls(sources={name: Account() for name in names})
        return ledger, [ledger.sources[name] for name in names]

    @property
    def total(self) -> Account:
        """The accounts added up."""
        total = Account()
        for account in self.sources.values():
            for name, value in vars(account).items():
                setattr(total, name, getattr(total, name) + value)
        return total

    def check(self) -> None:
        """`AssertionError` if a row of any source is unaccounted for."""
        for account in self.sources.values():
            account.check()

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`: the total, the accounts by source, and the notes."""
        sources = {name: account.as_dict() for name, account in self.sources.items()}
        return {**self.total.as_dict(), "sources": sources, "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """For people: a table by source, then what was dropped, cut and noticed, by source and reason."""
        columns = ("read", "left out", "dropped", "validation", "repeated", "trained", "tokens", "trained tokens")
        rows = [[name, *_figures(account)] for name, account in self.sources.items()]
        if len(rows) != 1:
            rows.append(["all", *_figures(self.total)])
        lines = table(["source", *columns], rows)
        lines += [
            f"split: {account.split:,} more rows of {name}: each answer of a dialogue is a row, for this tokenizer's "
            "prompt ends with the place of one answer"
            for name, account in self.sources.items()
            if account.split
        ]
        for title, field_name in (("dropped", "dropped"), ("truncated", "truncated"), ("noticed", "reported")):
            for name, account in self.sources.items():
                counts = sorted(getattr(account, field_name).items())
                lines += [f"{title} {count:,} of {name}: {reason}" for reason, count in counts]
        return [*lines, *self.notes]


def _figures(account: Account) -> list[str]:
    figures = (account.read, account.left_out, sum(account.dropped.values()), account.validation, account.repeated)
    return [f"{value:,}" for value in (*figures, account.trained, account.tokens, account.trained_tokens)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal: the first column to the left, the others to the right."""
    widths = [max(_width(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for first, *others in (header, *rows):
        cells = [first + " " * (widths[0] - _width(first))]
        cells += [" " * (width - _width(cell)) + cell for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """Columns of a terminal: a Chinese character takes two (Unicode Annex 11)."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
