import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from utils.catalog import parse_mixture
from utils.records import choose, held_out, read_part, validation_rows


def file_of(path: Path, rows: list[Any]) -> str:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


def numbered(count: int, prefix: str = "q") -> list[dict[str, str]]:
    return [{"instruction": f"{prefix}{i}", "input": "", "output": f"a{i}"} for i in range(count)]


@pytest.mark.parametrize(
    ("rows", "wish", "expected"),
    [
        (4000, None, 400),
        (100_000, None, 2000),
        (9, None, 0),
        (100, 20, 20),
        (100, 0, 0),
        (100, 0.25, 25),
        (100, 2000, 10),  # the original project's default would leave nothing to train on
        (5, 2000, 0),
        (1, 1, 0),
    ],
)
def test_validation_rows_leave_something_to_train_on(rows: int, wish: float | None, expected: int) -> None:
    assert validation_rows(rows, wish) == expected


def hashes(count: int, groups: int) -> numpy.ndarray:
    return numpy.random.default_rng(0).integers(0, 2**64, groups, dtype=numpy.uint64)[numpy.arange(count) % groups]


def test_the_split_is_seeded_and_does_not_depend_on_the_order() -> None:
    prompts = hashes(50, 50)
    held = held_out(prompts, 10, seed=1)
    assert held.sum() == 10
    assert (held_out(prompts, 10, seed=1) == held).all()
    assert (held_out(prompts, 10, seed=2) != held).any()
    assert (held_out(prompts[::-1], 10, seed=1)[::-1] == held).all()


@pytest.mark.parametrize("wish", [0, 1, 19, 20, 49, 50, 60])
def test_the_same_question_stays_on_one_side(wish: int) -> None:
    prompts = hashes(50, 5)
    held = held_out(prompts, wish, seed=3)
    assert held.sum() == min(wish, 50) // 10 * 10
    assert not set(prompts[held]) & set(prompts[~held])


def test_groups_of_any_size_fill_the_room_that_is_left() -> None:
    prompts = numpy.array([7] * 30 + list(range(100, 120)), dtype=numpy.uint64)
    for seed in range(5):
        assert held_out(prompts, 12, seed=seed).sum() == 12
        assert not held_out(prompts, 12, seed=seed)[:30].any(), "the group of 30 does not fit"


def test_the_split_of_nothing_is_nothing() -> None:
    assert len(held_out(numpy.array([], dtype=numpy.uint64), 3, seed=0)) == 0


def test_the_cut_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    (part,) = parse_mixture([file_of(tmp_path / "a.json", numbered(100)) + ":10"])

    def chosen(seed: int) -> list[str]:
        count, numbers = choose(part, seed)
        assert count == 100
        return [row.record["instruction"] for row in read_part(part, numbers)]

    assert len(chosen(7)) == 10
    assert chosen(7) == sorted(chosen(7), key=lambda question: int(question[1:]))
    assert chosen(7) == chosen(7) != chosen(8)


def test_a_cut_beyond_the_file_takes_all_of_it(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.json", numbered(3))
    (part,) = parse_mixture([path + ":10"])
    assert choose(part, 0) == (3, None)
    (whole,) = parse_mixture([path])
    assert choose(whole, 0) == (None, None)
    assert [row.source for row in read_part(whole)] == [path] * 3


def test_a_missing_catalogue_file_says_where_to_get_it() -> None:
    with pytest.raises(FileNotFoundError, match="dataset 'cot' is not on this machine.*prepare_data.py fetch cot"):
        list(read_part(parse_mixture(["cot"])[0]))
