from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trained_methods import attached, base_of

from utils.targets import ia3_layers
from utils.verification import marks


def test_ia3_scales_keys_values_and_the_second_layer(llama_base: Path, bloom_base: Path) -> None:
    assert ia3_layers(base_of(llama_base).empty()) == (["k_proj", "v_proj"], ["down_proj"])
    assert ia3_layers(base_of(bloom_base, "bloom").empty()) == (["query_key_value"], ["mlp.dense_4h_to_h"])
    unheard = base_of(llama_base).empty()
    unheard.config.model_type = "unheard_of"
    assert ia3_layers(unheard) == (["k_proj", "v_proj"], ["down_proj"])
    made = attached(
        base_of(llama_base), "ia3", ia3_target_modules=["v_proj", "up_proj"], ia3_feedforward_modules=["up_proj"]
    )
    assert sorted(n.split(".")[-3] for n in marks(made.model)) == ["up_proj"] * 2 + ["v_proj"] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ia3_target_modules": ["k_proj"]}, "belong together: give both or none"),
        ({"ia3_target_modules": ["wk"], "ia3_feedforward_modules": []}, "--ia3_target_modules wk: no linear layer .* It has: down_proj.*v_proj$"),
        ({"ia3_target_modules": ["k_proj"], "ia3_feedforward_modules": ["up_proj"]}, "up_proj must be among --ia3_target_modules"),
        ({"ia3_target_modules": ["k_proj", "all-linear"], "ia3_feedforward_modules": []}, "--ia3_target_modules all-linear: no linear layer .* v_proj$"),
    ],
)  # fmt: skip
def test_wrong_layers_for_ia3(given: dict[str, Any], message: str, llama_base: Path) -> None:
    with pytest.raises(ValueError, match=message):
        attached(base_of(llama_base), "ia3", **given)


@pytest.mark.parametrize("targets", [["all-linear", "q_proj"], ["q_proj", "all-linear"], ["all-linear", "all-linear"]])
def test_all_linear_beside_another_name_is_refused(targets: list[str], llama_base: Path) -> None:
    with pytest.raises(
        ValueError, match="--lora_target_modules all-linear stands for every linear layer: give it alone"
    ):
        attached(base_of(llama_base), "lora", lora_target_modules=targets)


def test_ia3_asks_where_it_cannot_tell() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11))
    assert ia3_layers(model)[0] == ["c_attn"]
    model.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match="name them with --ia3_target_modules, .* of: c_attn, c_fc, c_proj"):
        ia3_layers(model)
