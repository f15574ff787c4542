"""The sizes of every checkpoint, held against what its authors publish, in models without memory or weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from utils import targets
from utils.models import MODELS, MOVED, ModelSpec
from utils.models.configurations import CONFIGURATIONS, configuration

BILLION = 10**9
EXACT = {
    "huggyllama/llama-7b": 6_738_415_616,
    "huggyllama/llama-13b": 13_015_864_320,
    "huggyllama/llama-30b": 32_528_943_616,
    "huggyllama/llama-65b": 65_285_660_672,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "bigscience/bloomz-7b1-mt": 7_069_016_064,
    "bigscience/bloomz-3b": 3_002_557_440,
    "bigscience/bloomz-1b7": 1_722_408_960,
    "bigscience/bloomz-560m": 559_214_592,
    "bigscience/bloom-7b1": 7_069_016_064,
    "bigscience/bloom-3b": 3_002_557_440,
    "bigscience/bloom-560m": 559_214_592,
    "zai-org/chatglm-6b": 6_173_286_400,
    "zai-org/chatglm2-6b": 6_243_584_000,
    "zai-org/chatglm3-6b-base": 6_243_584_000,
    "zai-org/chatglm3-6b": 6_243_584_000,
    "zai-org/glm-4-9b-hf": 9_399_951_360,
    "zai-org/glm-4-9b-chat-hf": 9_399_951_360,
    "zai-org/GLM-4-9B-0414": 9_400_279_040,
    "zai-org/GLM-4-32B-Base-0414": 32_566_081_536,
    "zai-org/GLM-4-32B-0414": 32_566_081_536,
    "baichuan-inc/Baichuan-7B": 7_000_559_616,
    "baichuan-inc/Baichuan2-7B-Base": 7_505_973_248,
    "baichuan-inc/Baichuan2-7B-Chat": 7_505_973_248,
    "baichuan-inc/Baichuan-13B-Base": 13_264_901_120,
    "baichuan-inc/Baichuan2-13B-Base": 13_896_668_160,
    "internlm/internlm2-7b": 7_737_708_544,
    "internlm/internlm2-1_8b": 1_889_110_016,
    "internlm/internlm2-20b": 19_861_149_696,
    "internlm/internlm2-chat-7b": 7_737_708_544,
    "internlm/internlm2_5-1_8b": 1_889_110_016,
    "internlm/internlm2_5-7b": 7_737_708_544,
    "internlm/internlm2_5-7b-chat": 7_737_708_544,
    "internlm/internlm2_5-20b": 19_861_149_696,
    "Qwen/Qwen-7B": 7_721_324_544,
    "Qwen/Qwen-1_8B": 1_836_828_672,
    "Qwen/Qwen-14B": 14_167_290_880,
    "Qwen/Qwen-72B": 72_287_920_128,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2-7B": 7_615_616_512,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-14B-Base": 14_768_307_200,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "microsoft/phi-4": 14_659_507_200,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-13b": 12_853_473_280,
    "facebook/opt-30b": 29_974_540_288,
    "tiiuae/falcon-7b": 6_921_720_704,
    "tiiuae/falcon-40b": 41_303_293_952,
}
"""Hub id → parameters, as model cards, the hub's page and the indices of weights have them: to the last one."""
ROUNDED = {
    # Its README: fp16 takes 31 GB, which are units of 2^30 bytes.
    "OpenMOSS-Team/moss-moon-003-base": (30.5 * 2**30 / 2, 31.5 * 2**30 / 2),
    "OpenMOSS-Team/moss-moon-003-sft": (30.5 * 2**30 / 2, 31.5 * 2**30 / 2),
    "internlm/internlm-7b": (6.5 * BILLION, 7.5 * BILLION),
    "internlm/internlm-20b": (19.5 * BILLION, 20.5 * BILLION),
    # The card says 8B; its files, in 16 bits, are said to be of about 17.5 GB.
    "internlm/internlm3-8b-instruct": (8.7 * BILLION, 8.9 * BILLION),
    "facebook/opt-66b": (65.5 * BILLION, 66.5 * BILLION),
}
"""Hub id → (lowest, highest) number of parameters that rounds to the published one, where only that is known."""
LAYERS = {"bloom": "n_layer", "codegen": "n_layer", "chatglm": "num_layers"}
STAND_INS = {"baichuan_13b"}


def checkpoints() -> Iterator[tuple[str, ModelSpec, str]]:
    for family, row in MODELS.items():
        yield from ((family, row, name) for name in row.checkpoints.values() if not Path(name).is_absolute())


def native(facts: dict[str, Any]) -> Any:
    """The configuration of the class that runs it."""
    from transformers import AutoConfig

    from utils.chatglm import ChatGLMConfig

    rest = {key: value for key, value in facts.items() if key != "model_type"}
    return (
        ChatGLMConfig(**rest) if facts["model_type"] == "chatglm" else AutoConfig.for_model(facts["model_type"], **rest)
    )


def empty(facts: dict[str, Any]) -> nn.Module:
    from transformers import AutoModelForCausalLM

    from utils.chatglm import ChatGLMForConditionalGeneration

    with torch.device("meta"):
        if facts["model_type"] == "chatglm":
            return ChatGLMForConditionalGeneration(native(facts))
        return AutoModelForCausalLM.from_config(native(facts))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def shallow(facts: str) -> tuple[nn.Module, nn.Module]:
    """The model with one layer and with two; `facts` as JSON, for checkpoints of one shape are built once."""
    fields = json.loads(facts)
    key = LAYERS.get(fields["model_type"], "num_hidden_layers")
    return empty({**fields, key: 1}), empty({**fields, key: 2})


def facts_of(checkpoint: str) -> dict[str, Any]:
    found = configuration(checkpoint)
    assert found is not None, checkpoint
    return found


def parameters(checkpoint: str) -> int:
    """All layers of a checkpoint are alike, so one and two say how many all have."""
    facts = facts_of(checkpoint)
    one, two = map(size, shallow(json.dumps(facts)))
    return one + (facts[LAYERS.get(facts["model_type"], "num_hidden_layers")] - 1) * (two - one)


def test_every_checkpoint_of_the_registry_is_in_the_table_and_nothing_else() -> None:
    named = {name for _, _, name in checkpoints()}
    assert set(CONFIGURATIONS) == named
    assert set(EXACT) | set(ROUNDED) == named
    assert not set(EXACT) & set(ROUNDED)


@pytest.mark.parametrize("checkpoint", CONFIGURATIONS)
def test_the_number_of_parameters_is_the_published_one(checkpoint: str) -> None:
    found = parameters(checkpoint)
    if checkpoint == "zai-org/chatglm-6b":
        # The published code uses the embedding as its head, and counts it once; ours keeps both.
        facts = facts_of(checkpoint)
        found -= facts["vocab_size"] * facts["hidden_size"]
    lowest, highest = ROUNDED.get(checkpoint) or (EXACT[checkpoint], EXACT[checkpoint])
    assert lowest <= found <= highest


@pytest.mark.parametrize(
    "checkpoint", ["google/gemma-3-1b-pt", "facebook/opt-350m", "bigscience/bloom-560m", "EleutherAI/pythia-160m", "Qwen/Qwen3-0.6B-Base"]
)  # fmt: skip
def test_a_whole_model_has_as_many_parameters_as_its_first_two_layers_say(checkpoint: str) -> None:
    assert size(empty(facts_of(checkpoint))) == parameters(checkpoint)


@pytest.mark.parametrize(
    ("row", "checkpoint"), [(row, name) for family, row, name in checkpoints() if family not in STAND_INS]
)
def test_the_rows_class_has_the_layers_that_lora_is_put_on(row: ModelSpec, checkpoint: str) -> None:
    model = shallow(json.dumps(facts_of(checkpoint)))[0]
    assert type(model).__name__ in row.native
    targets.check_targets(model, row.lora_target_modules)


@pytest.mark.parametrize("checkpoint", CONFIGURATIONS)
def test_every_field_is_a_word_of_the_class_that_runs_it(checkpoint: str) -> None:
    """A misspelt field would be kept beside the real one, which would keep its default."""
    facts = facts_of(checkpoint)
    assert next(iter(facts)) == "model_type"
    config = native(facts)
    fields = {name for kind in type(config).__mro__ for name in getattr(kind, "__annotations__", {})}
    assert facts.keys() <= fields | {"model_type"}
    assert {key: getattr(config, key) for key in facts} == facts


def test_heads_divide_what_they_share() -> None:
    for checkpoint in CONFIGURATIONS:
        config = native(facts_of(checkpoint))
        heads = config.num_attention_heads
        assert getattr(config, "head_dim", None) or config.hidden_size % heads == 0, checkpoint
        assert heads % (getattr(config, "num_key_value_heads", None) or 1) == 0, checkpoint


def test_an_id_that_has_moved_has_the_sizes_of_the_one_that_holds_its_weights() -> None:
    for old, new in MOVED.items():
        assert configuration(old) == configuration(new) == CONFIGURATIONS[new]


@pytest.mark.parametrize("name", ["", "/models/你好", "gpt2", "HuggyLLaMA/llama-7b", "🦙"])
def test_what_is_not_in_the_table_has_no_configuration(name: str) -> None:
    assert configuration(name) is None


def test_what_is_given_can_be_changed_without_changing_the_table() -> None:
    facts_of("huggyllama/llama-7b")["num_hidden_layers"] = 1
    assert facts_of("huggyllama/llama-7b")["num_hidden_layers"] == 32
