import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import pytest

from utils.models import (
    DEFAULT_MODEL,
    MODELS,
    MOVED,
    SIZED_MODEL,
    ModelSpec,
    TrainingDefaults,
    checkpoint_of,
    get_model,
    gone,
    require_runnable,
)
from utils.templates import TEMPLATES

# One line a family: a tiny configuration of each of its classes, to find its LoRA targets in.
TINY = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
GATED = {**TINY, "intermediate_size": 8, "num_key_value_heads": 1}
HEADS = {**GATED, "head_dim": 4}
CHATGLM = {"vocab_size": 60, "hidden_size": 32, "inner_hidden_size": 8, "num_layers": 1, "num_attention_heads": 2}
CHATGLM |= {"bos_token_id": 52, "eos_token_id": 53}
CODEGEN = {"vocab_size": 8, "n_embd": 16, "n_layer": 1, "n_head": 4, "rotary_dim": 2}
OPT = {**TINY, "ffn_dim": 8, "word_embed_proj_dim": 8}
FALCON_40B = {**TINY, "new_decoder_architecture": True, "num_kv_heads": 1}
Configuration = tuple[str, Mapping[str, Any]]
CONFIGURATIONS: Mapping[str, tuple[Configuration, ...]] = {
    "tiny": (("LlamaConfig", GATED),),
    "llama": (("LlamaConfig", GATED),),
    "llama2": (("LlamaConfig", GATED),),
    "llama3": (("LlamaConfig", GATED),),
    "bloom": (("BloomConfig", {"vocab_size": 8, "hidden_size": 8, "n_layer": 1, "n_head": 2}),),
    "chatglm": (("ChatGLMConfig", CHATGLM),),
    "chatglm2": (("GlmConfig", HEADS),),
    "chatglm3": (("GlmConfig", HEADS),),
    "glm4": (("GlmConfig", HEADS), ("Glm4Config", HEADS)),
    "moss": (("CodeGenConfig", CODEGEN),),
    "baichuan": (("LlamaConfig", GATED),),
    "baichuan2": (("LlamaConfig", GATED),),
    "internlm": (("LlamaConfig", {**GATED, "attention_bias": True}),),
    "internlm2": (("LlamaConfig", GATED),),
    "internlm3": (("InternLM3Config", GATED),),
    "qwen": (("Qwen2Config", GATED),),
    "qwen2": (("Qwen2Config", GATED),),
    "qwen3": (("Qwen3Config", HEADS),),
    "mistral": (("MistralConfig", HEADS),),
    "gemma": (("GemmaConfig", HEADS), ("Gemma2Config", HEADS), ("Gemma3TextConfig", HEADS)),
    "phi": (("PhiConfig", GATED),),
    "phi3": (("Phi3Config", GATED),),
    "pythia": (("GPTNeoXConfig", {**TINY, "intermediate_size": 8}),),
    "opt": (("OPTConfig", OPT),),
    "falcon": (("FalconConfig", TINY), ("FalconConfig", FALCON_40B)),
    "auto": (("Qwen2Config", GATED),),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REMOTE = next(name for name, spec in MODELS.items() if spec.remote_code)


def empty_model(config_class: str, values: Mapping[str, Any]) -> Any:
    """A model of random weights: of transformers, or our own ChatGLM."""
    import transformers

    from utils import chatglm

    if hasattr(chatglm, config_class):
        return chatglm.ChatGLMForConditionalGeneration(chatglm.ChatGLMConfig(**values))
    if not hasattr(transformers, config_class):
        pytest.skip(f"transformers {transformers.__version__} has no {config_class}")
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**values))


@pytest.mark.parametrize("name", MODELS)
def test_a_row_names_what_exists(name: str) -> None:
    import transformers

    spec = MODELS[name]
    assert spec.template in TEMPLATES
    assert hasattr(transformers, spec.model_class)
    assert hasattr(transformers, spec.tokenizer_class)
    assert spec.quantization_bits
    assert set(spec.quantization_bits) <= {4, 8, 16}
    assert spec.lora_target_modules
    assert spec.license


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_rows_lora_targets_are_layers_of_every_class_that_runs_it(name: str) -> None:
    from utils.adapters import attach_lora, count_parameters

    spec, built = MODELS[name], set()
    for config_class, values in CONFIGURATIONS[name]:
        model = empty_model(config_class, values)
        built.add(type(model).__name__)
        adapted = attach_lora(model, spec.lora_target_modules, r=2, alpha=4, dropout=0.0)
        names = {part for part, _ in adapted.named_parameters() if "lora_A" in part}
        targets = {part.split(".lora_A")[0].rpartition(".")[2] for part in names}
        assert count_parameters(adapted)[0] > 0
        assert spec.lora_target_modules == ("all-linear",) or targets == set(spec.lora_target_modules)
    assert not spec.native or built == set(spec.native)


def test_every_family_is_in_the_test_above_unless_its_own_code_runs_it() -> None:
    assert set(CONFIGURATIONS) == {name for name, spec in MODELS.items() if not spec.remote_code}
    for name, spec in MODELS.items():
        assert bool(spec.native) != bool(spec.remote_code) or name == "auto"


def test_a_row_whose_checkpoints_are_converted_names_the_class_that_they_become() -> None:
    from utils.architectures import ARCHITECTURES

    for name, architecture in ARCHITECTURES.items():
        assert architecture.model_class in MODELS[name].native, name


def test_hub_ids_are_well_formed_and_each_stands_once() -> None:
    ids = [c for name, spec in MODELS.items() if name != DEFAULT_MODEL for c in spec.checkpoints.values()]
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", checkpoint) for checkpoint in ids)
    assert len(set(ids)) == len(ids)
    assert not set(ids) & MOVED.keys()
    assert set(MOVED.values()) <= set(ids)


def test_a_size_is_what_checkpoint_of_looks_up() -> None:
    for name, spec in MODELS.items():
        for size, checkpoint in spec.checkpoints.items():
            assert checkpoint_of(name, spec, size) == checkpoint
            assert checkpoint_of(name, spec, size.upper()) == checkpoint


def test_the_original_projects_families_targets_and_sizes() -> None:
    """Its commands name these, and leave the rest to defaults."""
    targets = {"llama": ("q_proj", "v_proj"), "bloom": ("query_key_value",), "chatglm": ("query_key_value",)}
    assert {name: MODELS[name].lora_target_modules for name in targets} == targets
    assert {name: MODELS[name].template for name in targets} == {
        "llama": "alpaca",
        "bloom": "alpaca",
        "chatglm": "chatglm",
    }
    assert {MODELS[name].training for name in targets} == {TrainingDefaults()}
    assert list(MODELS["llama"].checkpoints) == ["7b", "13b", "30b", "65b"]
    assert MODELS["bloom"].default_checkpoint == "bigscience/bloomz-7b1-mt"
    assert {"chatglm2", "moss", "baichuan", "internlm"} <= MODELS.keys()
    assert SIZED_MODEL == "llama"


def test_a_chat_row_names_only_models_that_were_tuned_to_chat() -> None:
    assert {name for name, spec in MODELS.items() if spec.template == "chat"} == {"chatglm2", "internlm3", "phi3"}


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODELS["llama"].template = "chat"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        MODELS["llama"] = ModelSpec(checkpoints={}, lora_target_modules=("x",))  # pyright: ignore[reportIndexIssue]


def test_sizes() -> None:
    llama, qwen = get_model("llama"), get_model("qwen2")
    assert checkpoint_of("llama", llama, None) == "huggyllama/llama-7b"
    assert checkpoint_of("llama", llama, "13b") == "huggyllama/llama-13b"
    assert checkpoint_of("llama", llama, "7") == checkpoint_of("llama", llama, "7B")
    assert checkpoint_of("qwen2", qwen, "0.5") == "Qwen/Qwen2.5-0.5B"
    with pytest.raises(ValueError, match=r"unknown size '8b' in --size of --model_type llama.*13b, 30b, 65b, 7b"):
        checkpoint_of("llama", llama, "8")
    with pytest.raises(ValueError, match="--model_type auto has no default model: name one with --model_name_or_path"):
        checkpoint_of("auto", get_model("auto"), None)


@pytest.mark.parametrize(("name", "size", "kin"), [("baichuan", "13", "baichuan_13b"), ("llama", "8", "llama3")])
def test_a_size_of_another_generation_is_named_with_it(name: str, size: str, kin: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown size '{size}b'.* --model_type {kin} has it\.$"):
        checkpoint_of(name, get_model(name), size)


@pytest.mark.parametrize("size", ["", "七", "🦙", "-"])
def test_a_size_that_no_family_has_names_only_those_there_are(size: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown size '{size}' in --size of --model_type chatglm\..*Known: 6b\.$"):
        checkpoint_of("chatglm", get_model("chatglm"), size)


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown model type 'lama' in --model_type. Did you mean llama"):
        get_model("lama")


@pytest.mark.parametrize("size", ["7b", "13b", "30b", "65b"])
def test_the_original_projects_llama_ids_say_where_their_weights_are(size: str) -> None:
    said = gone(f"decapoda-research/llama-{size}-hf")
    assert MODELS["llama"].checkpoints[size] in said
    assert "has left the hub" in said
    assert MOVED[f"decapoda-research/llama-{size}-hf"] == MODELS["llama"].checkpoints[size]


def test_what_is_not_known_to_be_gone_says_nothing() -> None:
    assert {gone(name) for name in ("huggyllama/llama-7b", "羊驼/🦙", "", "models/decapoda-research/llama-7b-hf")} == {
        ""
    }


def test_a_native_family_runs_without_consent_and_with_any_revision() -> None:
    for name, spec in MODELS.items():
        if not spec.remote_code:
            require_runnable(name, spec.default_checkpoint or "a/b", trust_remote_code=False, revision="main")


def test_a_family_with_its_own_code_needs_consent_to_one_commit_of_it() -> None:
    checkpoint = checkpoint_of(REMOTE, MODELS[REMOTE], None)
    require_runnable(REMOTE, checkpoint, trust_remote_code=True, revision=COMMIT)
    wanted = r"--model_type \w+ runs only with the code .*ALiBi.*give --trust_remote_code and --revision COMMIT$"
    with pytest.raises(ValueError, match=wanted):
        require_runnable(REMOTE, checkpoint, trust_remote_code=False, revision=COMMIT)
    for revision, shown in (
        (None, r"\(not given\)"),
        ("main", "main"),
        (COMMIT[:8], COMMIT[:8]),
        (f"{COMMIT}0", COMMIT),
    ):
        with pytest.raises(ValueError, match=rf"--revision {shown}.* pins none: .*40 hex digits.*{checkpoint}"):
            require_runnable(REMOTE, checkpoint, trust_remote_code=True, revision=revision)


def test_remote_code_is_pinned_for_any_family() -> None:
    require_runnable("auto", "a/b", trust_remote_code=True, revision=COMMIT)
    with pytest.raises(ValueError, match=r"--trust_remote_code runs code that can change .*--revision main pins none"):
        require_runnable("auto", "a/b", trust_remote_code=True, revision="main")


def test_code_in_a_directory_is_pinned_by_lying_there_but_still_asked_for(tmp_path: Any) -> None:
    require_runnable(REMOTE, str(tmp_path), trust_remote_code=True, revision=None)
    with pytest.raises(ValueError, match="give --trust_remote_code"):
        require_runnable(REMOTE, str(tmp_path), trust_remote_code=False, revision=None)


def test_the_default_is_bundled() -> None:
    from pathlib import Path

    assert (Path(checkpoint_of(DEFAULT_MODEL, MODELS[DEFAULT_MODEL], None)) / "model.safetensors").is_file()
