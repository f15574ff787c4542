from typing import Any

import numpy
import pytest

from utils import hygiene
from utils.ledger import Account, Ledger
from utils.sieve import nothing_left, sieve


class Rows:
    """Columns as given."""

    def __init__(self, flags: list[int], record: list[int], what: list[str] | None = None) -> None:
        self.columns: dict[str, Any] = {
            "flags": numpy.array(flags, dtype=numpy.uint32),
            "record": numpy.array(record, dtype=numpy.uint64),
            "kept": numpy.array([not text for text in what] if what else [True] * len(flags)),
        }
        self.what = numpy.array(what or [""] * len(flags))

    def __len__(self) -> int:
        return len(self.what)

    def column(self, name: str) -> Any:
        return self.columns[name]

    def texts(self, name: str, rows: Any) -> list[tuple[str, int]]:
        assert name == "what"
        return [
            (str(text), int(count))
            for text, count in zip(*numpy.unique(self.what[rows], return_counts=True), strict=True)
        ]


def sieved(
    parts: list[Rows], drop: frozenset[str], texts: Any = None, repeats: Any = None
) -> tuple[list[list[bool]], list[Account]]:
    _, accounts = Ledger.of([str(i) for i in range(len(parts))])
    alive = sieve(parts, accounts, drop, repeats=repeats or [1] * len(parts), texts=lambda i: enumerate(texts(i)))
    for part, account, mine in zip(parts, accounts, alive, strict=True):
        assert len(part) == account.dropped.total() + mine.sum(), "every row is somewhere"
    return [mine.tolist() for mine in alive], accounts


EMPTY, REFUSAL = hygiene.BITS["empty_answer"], hygiene.BITS["refusal"]


def test_each_row_goes_for_its_first_reason_alone() -> None:
    rows = Rows([EMPTY | REFUSAL, REFUSAL, 0, 0], [1, 2, 3, 3], ["empty", "", "", "too long"])
    alive, (account,) = sieved([rows], hygiene.resolve(["refusal"]))
    assert alive == [[False, False, True, False]]
    what = {name: check.what for name, check in hygiene.CHECKS.items()}
    assert account.dropped == {what["empty_answer"]: 1, what["refusal"]: 1, "too long": 1}


def test_the_first_of_equal_rows_stays_whichever_part_it_is_in() -> None:
    alive, accounts = sieved([Rows([0, 0], [5, 6]), Rows([0, REFUSAL, 0], [6, 7, 7])], hygiene.resolve())
    assert alive == [[True, True], [False, True, False]]
    assert [account.dropped.total() for account in accounts] == [0, 2]
    assert accounts[1].reported == {hygiene.CHECKS["refusal"].what: 1}


def test_of_equal_rows_the_one_that_is_repeated_most_stays() -> None:
    alive, _ = sieved(
        [Rows([0, 0, 0], [5, 6, 7]), Rows([0], [6]), Rows([0], [7])], hygiene.resolve(), repeats=[1, 3, 3]
    )
    assert alive == [[True, False, False], [True], [True]]


def test_a_dropped_row_is_not_the_first_of_its_kind() -> None:
    alive, _ = sieved([Rows([0, 0], [5, 5], ["too long", ""])], hygiene.resolve())
    assert alive == [[False, True]]


def test_near_repeats_are_sought_among_rows_that_stay() -> None:
    long = " ".join(f"word{i}" for i in range(80))
    texts = [[long, f"{long} end", "another text altogether", long]]
    alive, (account,) = sieved(
        [Rows([EMPTY, 0, 0, 0], [1, 2, 3, 4])], hygiene.resolve(["near_duplicate"]), lambda i: texts[i]
    )
    assert alive == [[False, True, True, False]]
    assert account.dropped[hygiene.CHECKS["near_duplicate"].what] == 1


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("longer than --cutoff_len 8", "raise --cutoff_len"),
        (hygiene.CHECKS["evaluation_overlap"].what, "--keep evaluation_overlap trains on these, and spoils"),
        ("empty", "give --data other rows"),
    ],
)
def test_when_nothing_is_left_the_way_out_is_named(reason: str, advice: str) -> None:
    account = Account(read=3, left_out=1)
    account.dropped[reason] = 2
    message = nothing_left(account)
    assert message.startswith(f"all 2 rows were dropped (2: {reason}): ")
    assert advice in message
