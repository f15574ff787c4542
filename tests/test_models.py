import dataclasses

import pytest

from utils.models import DEFAULT_MODEL, MODELS, ModelSpec, checkpoint_of, get_model
from utils.templates import TEMPLATES

# One line a family: a tiny configuration of its class, to find its LoRA targets in.
TINY = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGURATIONS = {
    "tiny": ("LlamaConfig", {**TINY, "intermediate_size": 8}),
    "llama": ("LlamaConfig", {**TINY, "intermediate_size": 8}),
    "bloom": ("BloomConfig", {"vocab_size": 8, "hidden_size": 8, "n_layer": 1, "n_head": 2}),
    "auto": ("Qwen2Config", {**TINY, "intermediate_size": 8, "num_key_value_heads": 2}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_row_names_what_exists(name: str) -> None:
    import transformers

    spec = MODELS[name]
    assert spec.template in TEMPLATES
    assert hasattr(transformers, spec.model_class)
    assert hasattr(transformers, spec.tokenizer_class)
    assert set(spec.quantization_bits) <= {4, 8, 16}
    assert spec.lora_target_modules


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_rows_lora_targets_are_layers_of_its_family(name: str) -> None:
    import transformers

    from utils.loading import attach_lora, count_parameters

    config_class, values = CONFIGURATIONS[name]
    config = getattr(transformers, config_class)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    adapted = attach_lora(model, MODELS[name].lora_target_modules, r=2, alpha=4, dropout=0.0)
    assert count_parameters(adapted)[0] > 0


def test_every_causal_family_is_in_the_test_above() -> None:
    assert set(CONFIGURATIONS) == {name for name, spec in MODELS.items() if spec.attention == "causal"}


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODELS["llama"].template = "chat"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        MODELS["llama"] = ModelSpec(checkpoints={}, lora_target_modules=("x",))  # pyright: ignore[reportIndexIssue]


def test_sizes() -> None:
    llama = get_model("llama")
    assert checkpoint_of("llama", llama, None) == "decapoda-research/llama-7b-hf"
    assert checkpoint_of("llama", llama, "13b") == "decapoda-research/llama-13b-hf"
    assert checkpoint_of("llama", llama, "7") == checkpoint_of("llama", llama, "7B")
    with pytest.raises(ValueError, match=r"unknown size '8b' in --size of --model_type llama.*13b, 30b, 65b, 7b"):
        checkpoint_of("llama", llama, "8")
    with pytest.raises(ValueError, match="--model_type auto has no default model: name one with --model_name_or_path"):
        checkpoint_of("auto", get_model("auto"), None)


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown model type 'lama' in --model_type. Did you mean llama"):
        get_model("lama")


def test_the_default_is_bundled() -> None:
    from pathlib import Path

    assert (Path(checkpoint_of(DEFAULT_MODEL, MODELS[DEFAULT_MODEL], None)) / "model.safetensors").is_file()
