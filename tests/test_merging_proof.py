"""What the proof of a merged checkpoint finds. Each case does one thing to the adapter's effect in memory, or to the file
on disk.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import make_origin
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from utils import equivalence, folding, merged_card, merging
from utils.distributed import DTYPES


@pytest.fixture
def origin(llama_base: Path, tmp_path: Path) -> merging.Origin:
    return make_origin(llama_base, tmp_path / "run", targets=["o_proj", "up_proj"])


def prove_after(origin: merging.Origin, folder: Path, harm: Any, *, on_disk: bool, precision: Any = "fp32") -> Any:
    """Merges, harms, and proves."""
    plain = merging.storage(origin.base, precision)
    merged = merging.merge_in_memory(origin, plain, "base")
    if not on_disk:
        harm(merged.model)
    sums = merging.save(merged, origin, plain, folder, "4GB")
    if on_disk:
        harm(folder / "model.safetensors")
    return merging.prove(folder, replace(merged, model=None), plain, type(merged.model), sums)


def test_an_unharmed_checkpoint_passes(origin: merging.Origin, tmp_path: Path) -> None:
    proof = prove_after(origin, tmp_path / "out", lambda model: None, on_disk=False)
    assert (proof.layers, proof.tensors, proof.logits.argmax_agreement) == (4, 21, 1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("share", [-1.0, 1.0], ids=["dropped", "doubled"])
def test_a_layer_whose_change_is_dropped_or_doubled_is_found(
    share: float, precision: str, origin: merging.Origin, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj"
    exact: Any = folding.adapted_layers(merging.adapters.load_adapter(origin.base.load(), origin.directory))[name]

    def harm(model: Any) -> None:
        model.get_submodule(name).weight.data.add_(share * exact.get_delta_weight("default"))

    with pytest.raises(merging.MergeError, match=rf"the merged layer {name} is not layer \+ adapter: it differs by \d"):
        prove_after(origin, tmp_path / "out", harm, on_disk=False, precision=precision)


def test_one_changed_bit_of_a_layer_without_adapter_is_found(origin: merging.Origin, tmp_path: Path) -> None:
    def harm(path: Path) -> None:
        tensors = load_file(path)
        tensors["model.layers.0.self_attn.q_proj.weight"][3, 3] *= 1 + 2**-23
        save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(merging.MergeError, match=r"q_proj.weight on disk is not the one that was written"):
        prove_after(origin, tmp_path / "out", harm, on_disk=True)


def test_a_nan_and_a_lost_tensor_and_half_a_file_are_found(origin: merging.Origin, tmp_path: Path) -> None:
    def nan(path: Path) -> None:
        tensors = load_file(path)
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})

    def lost(path: Path) -> None:
        tensors = load_file(path)
        del tensors["model.norm.weight"]
        save_file(tensors, path, metadata={"format": "pt"})

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:20_000])

    for number, (harm, message) in enumerate(
        ((nan, "up_proj is not layer"), (lost, "missing keys: model.norm.weight"), (cut, "cannot be read back"))
    ):
        with pytest.raises(merging.MergeError, match=message):
            prove_after(origin, tmp_path / f"{number}", harm, on_disk=True)


def test_other_logits_are_found_where_every_layer_and_byte_is_right(
    origin: merging.Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(model: Any) -> None:
        model.model.norm.weight.data.mul_(1.01)

    with pytest.raises(merging.MergeError, match=r"does not answer as base \+ adapter: largest logit difference"):
        prove_after(origin, tmp_path / "out", harm, on_disk=False)


def test_a_tokenizer_that_encodes_otherwise_is_found(origin: merging.Origin, tmp_path: Path) -> None:
    prompts = equivalence.probe_prompts(origin.template, origin.tokenizer)
    origin.tokenizer.save_pretrained(tmp_path / "same")
    origin.base.config().save_pretrained(tmp_path / "same")
    merging.require_same_prompts(tmp_path / "same", origin, prompts)
    with pytest.raises(merging.MergeError, match="the saved tokenizer encodes 'Name three fruits"):
        merging.require_same_prompts(tmp_path / "same", origin, [[*prompts[0], 1], *prompts[1:]])


def test_an_adapter_that_changes_nothing_is_refused_before_anything_is_written(
    origin: merging.Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = origin.directory / "adapter_model.safetensors"
    zeroed = {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in load_file(path).items()}
    save_file(zeroed, path, metadata={"format": "pt"})
    monkeypatch.setattr(merging, "save", lambda *_: pytest.fail("it was written"))
    with pytest.raises(ValueError, match=rf"the adapter in {origin.directory} changes nothing: train it longer"):
        merging.merge(origin, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 2])
def test_where_config_json_names_no_precision_the_weights_do(
    dtype: torch.dtype, shards: int, llama_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(llama_base, dtype=dtype)
    model.save_pretrained(base, max_shard_size="4GB" if shards == 1 else "40KB")
    assert (base / "model.safetensors").is_file() == (shards == 1)
    AutoTokenizer.from_pretrained(llama_base).save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    assert config.pop("dtype")
    (base / "config.json").write_text(json.dumps(config))
    origin = make_origin(base, tmp_path / "run")
    assert DTYPES[merging.storage(origin.base, None).precision] == dtype
    for path in base.glob("*.safetensors"):
        path.write_bytes(b"")
    assert merging.own_precision(origin.base) is None
    assert merging.storage(origin.base, None).precision == "bf16"


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_precision_of_a_checkpoint_that_is_read_as_another_class(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base: Any = SimpleNamespace(facts=lambda: {key: "float16"}, config=lambda: LlamaConfig())
    assert merging.own_precision(base) == "fp16"


def test_weights_that_lose_precision_are_said_to(origin: merging.Origin, tmp_path: Path) -> None:
    said = {}
    for precision in ("fp32", "fp16", "bf16"):
        facts = merging.merge(origin, tmp_path / precision, precision=precision)
        said[precision] = [line for line in merged_card.result_lines(facts, tmp_path) if "stored in" in line]
    assert said["fp32"] == []
    assert said["bf16"] == ["stored in bf16, the base's own is fp32: rounding it is in none of the figures"]
    assert said["fp16"]
    unknown = merged_card.result_lines(facts | {"own_precision": None}, tmp_path)
    assert "stored in bf16, the base's own is unknown: rounding it is in none of the figures" in unknown
    assert not any(
        "stored in" in line for line in merged_card.result_lines(facts | {"own_precision": "bf16"}, tmp_path)
    )


def test_a_sampling_temperature_without_sampling_can_be_saved(origin: merging.Origin, tmp_path: Path) -> None:
    def harm(model: Any) -> None:
        model.generation_config.temperature, model.generation_config.do_sample = 0.6, False

    prove_after(origin, tmp_path / "out", harm, on_disk=False)
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (read.do_sample, read.temperature, read.eos_token_id) == (True, 0.6, [2, 5])
