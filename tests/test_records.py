import json
from pathlib import Path
from typing import Any

import pytest

from utils import records
from utils.catalog import parse_mixture
from utils.readers import Row
from utils.records import Ledger, load, prompt_of, split, validation_rows


def file_of(path: Path, rows: list[Any]) -> str:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


def numbered(count: int, prefix: str = "q") -> list[dict[str, str]]:
    return [{"instruction": f"{prefix}{i}", "input": "", "output": f"a{i}"} for i in range(count)]


def row(instruction: str, output: str = "x") -> Row:
    return Row(record={"instruction": instruction, "input": "", "output": output}, origin=f"f {instruction}")


@pytest.mark.parametrize(
    ("rows", "wish", "expected"),
    [
        (4000, None, 400),
        (100_000, None, 2000),
        (9, None, 0),
        (100, 20, 20),
        (100, 0, 0),
        (100, 0.25, 25),
        (100, 2000, 10),  # the seeds' default would leave nothing to train on
        (5, 2000, 0),
        (1, 1, 0),
    ],
)
def test_validation_rows_leave_something_to_train_on(rows: int, wish: float | None, expected: int) -> None:
    assert validation_rows(rows, wish) == expected


def test_the_split_is_seeded_and_complete() -> None:
    rows = [row(str(i)) for i in range(50)]
    train, validation = split(rows, 10, seed=1)
    assert len(validation) == 10
    assert sorted(r.origin for r in train + validation) == sorted(r.origin for r in rows)
    assert split(rows, 10, seed=1) == (train, validation)
    assert split(rows, 10, seed=2) != (train, validation)


def test_the_same_question_stays_on_one_side() -> None:
    rows = [row(str(i % 5), output=str(i)) for i in range(50)]
    train, validation = split(rows, 20, seed=3)
    assert len(validation) == 20
    assert not {prompt_of(r) for r in train} & {prompt_of(r) for r in validation}


def test_a_mixture_is_cut_repeated_and_accounted_for(tmp_path: Path) -> None:
    one = file_of(tmp_path / "one.json", numbered(40, "one"))
    two = file_of(tmp_path / "two.json", [*numbered(20, "two"), {"instruction": "z", "output": " \n"}])
    train, validation, ledger, sources = load(parse_mixture([f"{one}:10", f"{two}*3"]), 0, 0.2)
    assert (ledger.read, ledger.left_out, ledger.dropped["empty answer"]) == (61, 30, 1)
    assert (ledger.validation, ledger.repeated, ledger.trained) == (len(validation), len(train) - (30 - 6), len(train))
    ledger.check()
    repeated = [r.record["instruction"] for r in train if r.source == two]
    assert all(repeated.count(question) == 3 for question in repeated)
    assert not set(repeated) & {r.record["instruction"] for r in validation}, "validation is held out before repeating"
    assert [(s.rows, s.shape) for s in sources] == [(40, "instruction/input/output"), (21, "instruction/input/output")]
    assert all(len(s.sha256 or "") == 64 for s in sources)


def test_the_cut_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    parts = parse_mixture([file_of(tmp_path / "a.json", numbered(100)) + ":10"])
    chosen = [r.record["instruction"] for r in load(parts, 7, 0)[0]]
    assert chosen == sorted(chosen, key=lambda q: int(q[1:]))
    assert chosen == [r.record["instruction"] for r in load(parts, 7, 0)[0]]
    assert chosen != [r.record["instruction"] for r in load(parts, 8, 0)[0]]


def test_empty_questions_and_answers_are_dropped_by_reason(tmp_path: Path) -> None:
    rows = [
        {"instruction": "", "input": " ", "output": "a"},
        {"instruction": "a", "input": "", "output": ""},
        {"instruction": "a", "input": "", "output": "b"},
    ]
    train, _, ledger, _ = load(parse_mixture([file_of(tmp_path / "a.json", rows)]), 0, 0)
    assert len(train) == 1
    assert dict(ledger.dropped) == {"empty answer": 1, "empty instruction": 1}


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.json", [{"instruction": "a", "output": ""}] * 3)
    with pytest.raises(ValueError, match=r"all 3 rows were dropped \(3 empty answer\); nothing is left to train on"):
        load(parse_mixture([path]), 0, None)


def test_a_missing_catalogue_file_says_where_to_get_it() -> None:
    with pytest.raises(FileNotFoundError, match="dataset 'cot' is not on this machine.*Download it from"):
        load(parse_mixture(["cot"]), 0, None)


def test_a_ledger_that_does_not_add_up_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="does not add up"):
        Ledger(read=3, trained=2).check()


def test_a_lowered_validation_set_is_said(tmp_path: Path) -> None:
    parts = parse_mixture([file_of(tmp_path / "a.json", numbered(100))])
    assert (
        load(parts, 0, 2000)[2].lines()[-1]
        == "--val_set_size 2000 would take more than half of the rows: 10 are held out"
    )
    assert load(parts, 0, 20)[2].notes == []


def test_the_ledger_speaks() -> None:
    ledger = Ledger(read=10, trained=6, validation=1, left_out=2, repeated=1)
    ledger.dropped["too long"] = 2
    ledger.truncated["prompt cut"] = 1
    ledger.check()
    assert ledger.lines() == [
        "read 10 · trained on 6 · validation 1",
        "left out by :N 2",
        "added by *W 1",
        "dropped 2: too long",
        "truncated 1: prompt cut",
    ]


def test_jsonl_round_trip(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "a.jsonl", [{"a": "你"}, {"a": "b\n"}])
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["a"] for line in lines] == ["你", "b\n"]
