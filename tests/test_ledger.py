import pytest

from utils.ledger import Account, Ledger, table


def test_a_ledger_that_does_not_add_up_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="does not add up"):
        Ledger(sources={"a": Account(read=3, trained=3), "b": Account(read=3, trained=2)}).check()


def test_the_ledger_adds_up_and_speaks() -> None:
    one = Account(read=1000, trained=996, validation=1, left_out=2, repeated=1, tokens=9960, trained_tokens=1234)
    one.dropped["too long"] = 2
    one.truncated["prompt cut"] = 1
    two = Account(read=5, trained=4)
    two.dropped.update({"too long": 1})
    two.reported["echo"] = 3
    ledger = Ledger(sources={"one": one, "数据": two}, notes=["a note"])
    ledger.check()
    assert ledger.total.dropped == {"too long": 3}
    assert (ledger.total.read, ledger.total.trained) == (1005, 1000)
    assert ledger.lines() == [
        "source   read  left out  dropped  validation  repeated  trained  tokens  trained tokens",
        "one     1,000         2        2           1         1      996   9,960           1,234",
        "数据        5         0        1           0         0        4       0               0",
        "all     1,005         2        3           1         1    1,000   9,960           1,234",
        "dropped 2 of one: too long",
        "dropped 1 of 数据: too long",
        "truncated 1 of one: prompt cut",
        "noticed 3 of 数据: echo",
        "a note",
    ]
    found = ledger.as_dict()
    assert found["dropped"] == {"too long": 3}
    assert found["sources"]["数据"]["reported"] == {"echo": 3}
    assert found["notes"] == ["a note"]


def test_a_single_source_needs_no_sum() -> None:
    assert len(Ledger(sources={"a": Account(read=1, trained=1)}).lines()) == 2


def test_a_table_of_no_rows_is_its_header() -> None:
    assert table(["a", "b"], []) == ["a  b"]
