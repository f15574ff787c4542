"""The bundled tiny base is what its script makes, and encodes any text."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TINY_BASE
from safetensors import safe_open

from utils import puzzles, templates

sys.path.insert(0, str(REPOSITORY / "assets"))
import make_tiny_base


def test_it_is_small_and_safetensors() -> None:
    files = {path.name: path.stat().st_size for path in TINY_BASE.iterdir()}
    assert sum(files.values()) < 8_000_000
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    with safe_open(TINY_BASE / "model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    facts = json.loads((TINY_BASE / "pretraining.json").read_text())
    assert facts["parameters"] == parameters
    assert f"{parameters:,} parameters" in (TINY_BASE / "README.md").read_text()


def test_the_card_is_what_the_script_writes() -> None:
    facts = json.loads((TINY_BASE / "pretraining.json").read_text())
    assert make_tiny_base.card(facts) == (TINY_BASE / "README.md").read_text()


def test_the_script_makes_the_same_base_again(tmp_path: Path) -> None:
    losses = []
    for name in ("one", "two"):
        arguments = ["--out", str(tmp_path / name), "--steps", "3", "--batch_size", "4", "--threads", "1"]
        assert make_tiny_base.main(arguments) == 0
        losses.append(json.loads((tmp_path / name / "pretraining.json").read_text())["loss"])
        assert (tmp_path / name / "tokenizer.json").read_bytes() == (TINY_BASE / "tokenizer.json").read_bytes()
    assert losses[0] == losses[1]
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "text", ["", " ", "dial 3.", "转盘指着3。", "龘𠮷 🌏👩‍👩‍👧", "\n\n  x\t", "ÀÉ ñ עברית", "\x00\ufeff", "a" * 500]
)
def test_any_text_comes_back(text: str, tokenizer: Any) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.unk_token_id not in ids


def test_digits_and_chinese_characters_are_single_tokens_of_the_sample(tokenizer: Any) -> None:
    for text in [*"0123456789", *"转盘指着圆桌座位所以答案是", "→"]:
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1, text


def test_the_base_never_sees_the_reasoning_format() -> None:
    rng = random.Random(0)
    for step in range(3000):
        document = "".join(text for text, _ in make_tiny_base.make_document(rng, step, ("dial", "→")))
        assert "So the answer" not in document
        assert "所以答案" not in document
        if "### Response:" in document:
            response = document.partition("### Response:")[2]
            assert response.count("→") <= 1 or "Repeat" in document or "重复" in document


def test_it_asks_in_the_prompt_that_is_trained() -> None:
    rng = random.Random(1)
    puzzle = puzzles.make_puzzle(rng, "en", 1)
    prompt = make_tiny_base.prompt(puzzle.question)
    (segment,) = templates.render_prompt(
        {"instruction": puzzle.question, "input": ""},
        templates.TEMPLATES["alpaca"],
        None,  # pyright: ignore[reportArgumentType]
    )
    assert segment.text == prompt
