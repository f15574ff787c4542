"""Rows that join and leave a running batch say what they say alone."""

from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS
from tiny_families import CASES, make_family

from utils.decoding import Batch, Row
from utils.encode import encode_prompt
from utils.loading import choose
from utils.models import get_model
from utils.stopping import Ends
from utils.templates import TEMPLATES

GREEDY = {"do_sample": False, "num_beams": 1}
# Without top_k: a random model's probabilities are so alike that rounding decides which is the fortieth.
SAMPLED = {**GREEDY, "do_sample": True, "top_p": 1.0, "temperature": 2.0, "repetition_penalty": 1.8}


@pytest.fixture(scope="module")
def model(llama_base: Path) -> Any:
    return choose(str(llama_base), get_model("llama")).load().eval()


def rows_of(prompts: list[list[int]], longest: list[int], ends: Ends) -> list[Row]:
    return [
        Row(prompt=ids, ends=ends, max_new_tokens=count, seed=seed)
        for seed, (ids, count) in enumerate(zip(prompts, longest, strict=True))
    ]


def alone(model: Any, tokenizer: Any, rows: list[Row], settings: Any) -> list[list[int]]:
    found = []
    for row in rows:
        fresh = Row(prompt=row.prompt, ends=row.ends, max_new_tokens=row.max_new_tokens, seed=row.seed)
        batch = Batch(model, tokenizer, settings)
        batch.add([fresh])
        while batch.rows:
            batch.run()
        found.append(fresh.new)
    return found


def joining(model: Any, tokenizer: Any, rows: list[Row], settings: Any, every: int) -> int:
    """One row more every few tokens; returns how many were on their way at most."""
    batch, waiting, most, seen = Batch(model, tokenizer, settings), list(rows), 0, 0

    def pauses() -> bool:
        nonlocal seen
        seen += 1
        return bool(waiting) and seen % every == 0

    while batch.rows or waiting:
        if waiting and batch.can_be_joined:
            batch.add([waiting.pop(0)])
        most = max(most, len(batch.rows))
        if batch.rows:
            batch.run(pauses)
    return most


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("every", [1, 3])
def test_who_joins_late_says_what_it_says_alone(every: int, settings: Any, model: Any, tokenizer: Any) -> None:
    prompts = [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in RECORDS]
    prompts += [[1, 7], [1] * 150]  # much shorter and much longer than those that are on their way
    rows = rows_of(prompts, [12, 3, 20, 1, 9, 30, 5, 7, 16, 11], Ends(ids=[2, 300], texts=("ee", "你")))
    expected = alone(model, tokenizer, rows, settings)
    assert joining(model, tokenizer, rows, settings, every) > 2
    assert [row.new for row in rows] == expected


@pytest.mark.parametrize(("name", "number"), CASES, ids=lambda value: str(value))
def test_every_family_can_be_joined_or_says_that_it_cannot(name: str, number: int, tmp_path: Path) -> None:
    chosen = choose(str(make_family(name, tmp_path / "模型", number)), get_model(name), precision="fp32")
    model, tokenizer = chosen.load().eval(), chosen.tokenizer()
    template = TEMPLATES[get_model(name).template]
    prompts = [encode_prompt(record, template, tokenizer) for record in RECORDS[:4]]
    rows = rows_of(prompts, [6, 4, 7, 3], Ends(ids=[10**6]))
    expected = alone(model, tokenizer, rows, GREEDY)
    joining(model, tokenizer, rows, GREEDY, 2)
    assert [row.new for row in rows] == expected


def test_who_is_cancelled_leaves_at_the_next_token(model: Any, tokenizer: Any) -> None:
    rows = rows_of([[1, 5, 6], [1, 7]], [50, 8], Ends(ids=[10**6]))
    expected = alone(model, tokenizer, rows, GREEDY)
    told: list[int] = []

    def stop(token: int) -> None:
        told.append(token)
        rows[0].cancelled = len(told) == 3

    rows[0].on_token = stop
    batch = Batch(model, tokenizer, GREEDY)
    batch.add(rows)
    assert batch.run() == [rows[0]]
    assert (rows[0].new, told) == (expected[0][:3], expected[0][:3])
    while batch.rows:
        batch.run()
    assert rows[1].new == expected[1]


def test_every_token_is_told_once(model: Any, tokenizer: Any) -> None:
    rows = rows_of([[1, 5, 6], [1, 7], [1, 9, 9, 9]], [9, 4, 6], Ends(ids=[10**6]))
    told: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number, row in enumerate(rows):
        row.on_token = told[number].append
    joining(model, tokenizer, rows, GREEDY, 2)
    assert [told[number] for number in range(3)] == [row.new for row in rows]


def test_padding_that_nobody_needs_is_dropped(model: Any, tokenizer: Any) -> None:
    rows = rows_of([[1] * 200, [1, 7]], [2, 9], Ends(ids=[10**6]))
    expected = alone(model, tokenizer, rows, GREEDY)
    batch = Batch(model, tokenizer, GREEDY)
    batch.add(rows)
    batch.run()
    assert batch._width == len(rows[1].ids) < 20
    while batch.rows:
        batch.run()
    assert [row.new for row in rows] == expected


def test_rows_that_end_otherwise_are_not_decoded_together(model: Any, tokenizer: Any) -> None:
    batch = Batch(model, tokenizer, GREEDY)
    batch.add([*rows_of([[1]], [1], Ends(ids=[2])), *rows_of([[1]], [1], Ends(ids=[3]))])
    with pytest.raises(ValueError, match="must end at the same ids"):
        batch.run()
