"""Which adapters can be over one base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import make_origin

from utils import identity, loading
from utils.identity import Identified, require_same_base


def found(origin: Any) -> Identified:
    return Identified(
        directory=origin.directory,
        place=str(origin.directory),
        run=origin.run,
        model_type="llama",
        method=origin.run.settings["peft_type"],
        description="",
        stop_token_ids=[2],
        base=origin.base,
        tokenizer=origin.tokenizer,
        template=origin.template,
    )


@pytest.fixture
def first(llama_base: Path, tmp_path: Path) -> Identified:
    return found(make_origin(llama_base, tmp_path / "first"))


def test_adapters_that_share_a_base(first: Identified, llama_base: Path, tmp_path: Path) -> None:
    other = found(make_origin(llama_base, tmp_path / "另一个 🌏", method="dora", targets=["q_proj"]))
    require_same_base(first, other)
    link = tmp_path / "link"
    link.symlink_to(llama_base)
    require_same_base(first, replace(other, base=replace(other.base, name=str(link))))
    old, new = (
        replace(first, base=replace(first.base, name=name))
        for name in ("decapoda-research/llama-7b-hf", "huggyllama/llama-7b")
    )
    require_same_base(old, new)


def test_adapters_that_do_not_share_a_base(first: Identified, llama_base: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_base, tmp_path / "copy")
    other = found(make_origin(tmp_path / "copy", tmp_path / "other"))
    place = f"{first.directory} of {first.base.name}: open each by itself, or, .* with --model_name_or_path"
    with pytest.raises(ValueError, match=f"other is an adapter of {tmp_path / 'copy'}, and {place}"):
        require_same_base(first, other)
    pinned = replace(first, base=replace(first.base, name="a/b", revision="v1"))
    with pytest.raises(ValueError, match="first is an adapter of a/b, and .*/first of a/b at v1: "):
        require_same_base(pinned, replace(first, base=replace(first.base, name="a/b")))
    eight = replace(first, base=replace(first.base, quantization_bit=8))
    with pytest.raises(ValueError, match="trained on weights of 8 bits, and .* on 16: .* with --quantization_bit"):
        require_same_base(first, eight)


@pytest.mark.parametrize("order", [1, -1])
def test_adapters_that_peft_cannot_switch_between(
    order: int, first: Identified, llama_base: Path, tmp_path: Path
) -> None:
    other = found(make_origin(llama_base, tmp_path / "virtual", method="prompt"))
    with pytest.raises(ValueError, match="virtual is an adapter of the kind PROMPT_TUNING, and .*/first of LORA: peft"):
        require_same_base(first, other)
    whole = replace(first, method="full")
    with pytest.raises(ValueError, match="holds all weights of its model, and no adapter to switch on"):
        require_same_base(*(whole, first)[::order])


def test_the_base_beside_a_whole_model(first: Identified, llama_base: Path) -> None:
    beside = replace(first.base, **identity.base_place(first))
    assert isinstance(beside, loading.Base)
    assert (beside.name, beside.revision) == (str(llama_base), None)
