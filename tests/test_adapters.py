"""Several adapters over one base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import make_origin
from trained_methods import PROBE, VIRTUAL, base_of

from utils.adapters import load_adapter, load_more, virtual_tokens
from utils.loading import choose
from utils.models import get_model
from utils.verification import probe_logits


def logits_of(directory: Path, base: Path) -> torch.Tensor:
    return probe_logits(load_adapter(base_of(base).load(), directory), PROBE)


def contents(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("methods", [("lora", "dora"), ("dora", "rslora"), ("ia3", "ia3"), ("adalora", "adalora"),
                                     ("prompt", "prompt"), ("p_tuning", "p_tuning"), ("prefix", "prefix")])  # fmt: skip
def test_several_adapters_answer_each_as_if_alone(methods: tuple[str, str], llama_base: Path, tmp_path: Path) -> None:
    virtual = methods[0] in VIRTUAL
    first = make_origin(llama_base, tmp_path / "first", method=methods[0])
    targets: Any = {"targets": ["q_proj", "v_proj", "up_proj"]}
    second = make_origin(llama_base, tmp_path / "第二 🌏", method=methods[1], seed=2, virtual=5, **targets)
    alone = [logits_of(origin.directory, llama_base) for origin in (first, second)]
    plain = probe_logits(base_of(llama_base).load(), PROBE)
    assert not torch.equal(*alone)
    model = load_adapter(base_of(llama_base).load(), first.directory)
    load_more(model, "adapter_1", second.directory)
    assert torch.equal(probe_logits(model, PROBE), alone[0]), "the first one stays on"
    assert not any(p.requires_grad for p in model.parameters())
    for name, expected, tokens in (("adapter_1", alone[1], 5), ("default", alone[0], 3), ("adapter_1", alone[1], 5)):
        model.set_adapter(name, inference_mode=True)
        assert torch.equal(probe_logits(model, PROBE), expected)
        assert virtual_tokens(model) == (tokens if virtual else 0)
        with model.disable_adapter():
            assert torch.equal(probe_logits(model, PROBE), plain)


@pytest.mark.parametrize("bits", [16, 8])
def test_layers_that_only_the_second_adapter_has_return_what_their_base_does(
    bits: int, llama_base: Path, tmp_path: Path
) -> None:
    base = choose(str(llama_base), get_model("llama"), precision="bf16", quantization_bit=bits)
    first = make_origin(llama_base, tmp_path / "first", method="ia3", targets=["k_proj"])
    second = make_origin(llama_base, tmp_path / "second", method="ia3", targets=["k_proj", "up_proj"], seed=2)
    alone = probe_logits(load_adapter(base.load(), second.directory), PROBE)
    model = load_adapter(base.load(), first.directory)
    load_more(model, "adapter_1", second.directory)
    model.set_adapter("adapter_1", inference_mode=True)
    assert torch.equal(probe_logits(model, PROBE), alone)


def with_config(directory: Path, **facts: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def cut(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "1.mlp.down_proj.lora_B" not in name}, path)


def with_embeddings(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.embed_tokens.weight": torch.zeros(672, 16)}, path)


@pytest.mark.parametrize(
    ("method", "damage", "message"),
    [
        ("ia3", None, "second is IA3, and beside LORA peft takes no other kind of adapter: open it by itself"),
        ("prefix", None, "second is PREFIX_TUNING, and beside LORA peft takes no other kind"),
        ("lora", cut, "second.adapter_model.safetensors lacks 1 of the adapter's 28 tensors"),
        ("lora", lambda d: with_config(d, r=3), "second.adapter_model.safetensors does not fit its base: size mismatch"),
        ("lora", lambda d: with_config(d, bias="all"), r"the two trained the base's biases \(bias all\), so the base"),
        ("lora", lambda d: with_config(d, init_lora_weights="olora"), "changed its base as it began .init_lora_weights olora"),
        ("lora", with_embeddings, "one of the two brings base_model.model.model.embed_tokens.weight, so the base that"),
        ("lora", lambda d: (d / "adapter_model.safetensors").unlink(), "adapter_model.safetensors cannot be read"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_beside_another_leaves_the_model_as_it_was(
    method: str, damage: Any, message: str, llama_base: Path, tmp_path: Path
) -> None:
    first = make_origin(llama_base, tmp_path / "first")
    second = make_origin(llama_base, tmp_path / "second", method=method, seed=2)
    model = load_adapter(base_of(llama_base).load(), first.directory)
    if damage:
        damage(second.directory)
    before = contents(model)
    with pytest.raises(ValueError, match=message) as error:
        load_more(model, "adapter_1", second.directory)
    assert "\n" not in str(error.value)
    after = contents(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert list(model.peft_config) == ["default"]


def test_nothing_goes_beside_an_adapter_that_brought_embeddings(llama_base: Path, tmp_path: Path) -> None:
    first, second = (make_origin(llama_base, tmp_path / name) for name in ("first", "second"))
    with_embeddings(first.directory)
    model = load_adapter(base_of(llama_base).load(), first.directory)
    with pytest.raises(ValueError, match=r"one of the two brings base_model.model.model.embed_tokens.weight"):
        load_more(model, "adapter_1", second.directory)


def test_factors_on_the_other_side_of_a_layer_cannot_be_beside_another(llama_base: Path, tmp_path: Path) -> None:
    first = make_origin(llama_base, tmp_path / "first", method="ia3", targets=["k_proj", "down_proj"])
    second = make_origin(llama_base, tmp_path / "second", method="ia3")
    for one, two, message in (
        (
            first,
            second,
            "second scales no layer at the input, and the adapter beside it down_proj: open each by itself",
        ),
        (second, first, "first scales down_proj at the input, and the adapter beside it none: open each by itself"),
    ):
        with pytest.raises(ValueError, match=message):
            load_more(load_adapter(base_of(llama_base).load(), one.directory), "adapter_1", two.directory)
