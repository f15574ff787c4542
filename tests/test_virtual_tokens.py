"""Methods that train positions before the prompt, on every family of the registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import CASE_NAMES, batch_of
from test_models import HEADS, OPT, TINY, empty_model
from tiny_families import CASES, make_family

from utils import generation
from utils.adapters import attach, count_parameters, load_adapter, virtual_tokens
from utils.generation import Answer
from utils.loading import choose
from utils.methods import METHODS
from utils.methods import choose as choose_method
from utils.models import get_model
from utils.stopping import Ends
from utils.target_loss import HeadAtTargets

VIRTUAL = [name for name, row in METHODS.items() if "num_virtual_tokens" in row.options]
FOUR = {"hidden_size": 16, "num_attention_heads": 4, "vocab_size": 40, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, int]], Path]:
    """A case's checkpoint, made once."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda case: make_family(case[0], root / f"{case[0]}-{case[1]}", case[1]))


def with_virtual_tokens(model: Any, method: str, number: int = 3) -> Any:
    return attach(model, choose_method(method, {"num_virtual_tokens": number}, {}), total_steps=8).model


@pytest.mark.parametrize("method", VIRTUAL)
@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_every_family_trains_every_virtual_token(case: tuple[str, int], method: str, base_of: Any) -> None:
    base = choose(str(base_of(case)), get_model(case[0]), precision="fp32", quantization_bit=16)
    model = with_virtual_tokens(base.load(), method)
    HeadAtTargets(model).loss(model.train(), batch_of(base)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients
    assert all(g is not None and g.any() and g.isfinite().all() for g in gradients.values()), gradients
    assert count_parameters(with_virtual_tokens(base.empty(), method)) == count_parameters(model)


CACHES = {  # in what shape each caches keys and values
    "one head for all queries": (("FalconConfig", {}), (2, 1, 4)),
    "groups that are spread before the cache": (
        ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        (2, 4, 4),
    ),
    "as many as queries": (("FalconConfig", {"multi_query": False, "alibi": True}), (2, 4, 4)),
    "GPT-2's names": (("GPTBigCodeConfig", {"n_embd": 16, "n_head": 4, "n_layer": 2}), (2, 1, 4)),
    "two groups": (("GlmConfig", {**HEADS, **FOUR, "num_key_value_heads": 2, "head_dim": 8}), (2, 2, 8)),
}


@pytest.mark.parametrize("shape", CACHES)
def test_a_prefix_has_the_shape_of_the_models_cache(shape: str, tmp_path: Path) -> None:
    (config_class, values), (layers, heads, width) = CACHES[shape]
    base = empty_model(config_class, {**TINY, **FOUR, **values}).requires_grad_(False).eval()
    model = with_virtual_tokens(base, "prefix").eval()
    config = model.peft_config["default"]
    assert (config.num_layers, config.num_attention_heads, config.token_dim) == (layers, heads, heads * width)
    ids = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones((1, 3), dtype=torch.long)}
    logits = model(**ids).logits
    assert (logits - base(**ids).logits).abs().max() > 1e-4, "it does something"
    model.save_pretrained(tmp_path)
    assert torch.equal(load_adapter(model.get_base_model(), tmp_path)(**ids).logits, logits)


@pytest.mark.parametrize("config_class", ["MambaConfig", "RwkvConfig"])
def test_a_model_without_keys_and_values_has_no_prefix(config_class: str) -> None:
    base = empty_model(config_class, {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2})
    with pytest.raises(ValueError, match=f"{type(base).__name__} does not keep keys and values .* --peft_type prompt"):
        with_virtual_tokens(base, "prefix")


def opt(positions: int, vocabulary: int = 300) -> Any:
    """Positions are looked up, so one too many is an error in the middle of an answer."""
    torch.manual_seed(0)
    base = empty_model("OPTConfig", {**OPT, "vocab_size": vocabulary, "max_position_embeddings": positions})
    return base.requires_grad_(False).eval()


@pytest.mark.parametrize("method", VIRTUAL)
def test_an_answer_may_fill_what_virtual_tokens_leave_and_no_more(method: str, tokenizer: Any) -> None:
    model = with_virtual_tokens(opt(80), method, 20).eval()
    assert virtual_tokens(model) == 20
    prompt, said = tokenizer("你好 🌏", add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("a")
    room = 80 - 20 - len(prompt)
    settings = {"do_sample": False, "max_new_tokens": room, "prefix_allowed_tokens_fn": lambda *_: [said]}
    for decode, asked in ((generation.generate, [prompt]), (generation.stream, prompt)):
        found = decode(model, tokenizer, asked, ends=Ends(ids=[2]), settings=settings)
        answer = "".join(each.text if isinstance(each, Answer) else each for each in found)
        assert answer == tokenizer.decode([said] * room)
        settings["max_new_tokens"] = room + 1
        refused = f"{len(prompt)} tokens and 20 virtual tokens before it; .*{room + 1} .*context of 80: shorten"
        with pytest.raises(ValueError, match=refused):
            list(decode(model, tokenizer, asked, ends=Ends(ids=[2]), settings=settings))
        settings["max_new_tokens"] = room


@pytest.mark.parametrize("method", VIRTUAL)
def test_virtual_tokens_leave_room_for_a_prompt(method: str) -> None:
    assert virtual_tokens(with_virtual_tokens(opt(12), method, 11)) == 11
    for number in (12, 10**12):
        with pytest.raises(ValueError, match=f"--num_virtual_tokens {number}: the model has 12 positions, .*: lower"):
            with_virtual_tokens(opt(12), method, number)


def test_where_positions_have_no_limit_virtual_tokens_have_none() -> None:
    base = empty_model("BloomConfig", {"vocab_size": 8, "hidden_size": 8, "n_layer": 1, "n_head": 2})
    assert virtual_tokens(with_virtual_tokens(base, "prompt", 5000)) == 5000
