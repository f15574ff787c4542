import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_base
from safetensors.torch import load_file, save_file
from tiny_runs import make_origin

from utils import adapter_files
from utils.adapter_files import tensor_names
from utils.adapters import load_adapter, load_more
from utils.loading import choose
from utils.models import get_model
from utils.verification import probe_logits

IDS = torch.arange(10, 30).view(2, 10)
PROBE = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
# As peft 0.2 and 0.3 wrote it, for the weights that the original project published.
OLD_CONFIG = {
    "base_model_name_or_path": "decapoda-research/llama-7b-hf",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


@pytest.fixture
def adapter(llama_base: Path, tmp_path: Path) -> Path:
    """A LoRA of two kinds of layers, with safetensors."""
    return make_origin(llama_base, tmp_path / "适配器 🌏", targets=["q_proj", "v_proj"]).directory


def pickled(directory: Path, **options: Any) -> Path:
    """Puts `adapter_model.bin` in the place of the safetensors."""
    path = directory / "adapter_model.safetensors"
    torch.save(load_file(path), directory / "adapter_model.bin", **options)
    path.unlink()
    return directory / "adapter_model.bin"


def logits_of(directory: Path, base: Path, family: str = "llama") -> torch.Tensor:
    chosen = choose(str(base), get_model(family), precision="fp32")
    return probe_logits(load_adapter(chosen.load(), directory), PROBE)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.filterwarnings("error:Unexpected keyword arguments")
def test_an_old_adapter_answers_as_the_same_one_of_today(options: Any, adapter: Path, llama_base: Path) -> None:
    expected = logits_of(adapter, llama_base)
    names = tensor_names(adapter)
    pickled(adapter, **options)
    assert tensor_names(adapter) == names
    assert torch.equal(logits_of(adapter, llama_base), expected)
    (adapter / "adapter_config.json").write_text(json.dumps(OLD_CONFIG), encoding="utf-8")
    assert torch.equal(logits_of(adapter, llama_base), expected)
    assert not adapter_files.unknown_fields(adapter)
    model = load_adapter(choose(str(llama_base), get_model("llama"), precision="fp32").load(), adapter)
    load_more(model, "adapter_1", adapter)
    model.set_adapter("adapter_1", inference_mode=True)
    assert torch.equal(probe_logits(model, PROBE), expected)


def test_safetensors_come_before_a_pickle(adapter: Path, llama_base: Path) -> None:
    expected = logits_of(adapter, llama_base)
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Evil("never")))
    assert adapter_files.weights_file(adapter) == adapter / "adapter_model.safetensors"
    assert torch.equal(logits_of(adapter, llama_base), expected)


REMEDY = ": copy the adapter again"
MISFIT = "name the base that it was trained on with --model_name_or_path, or copy the adapter again"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    options: Any, adapter: Path, tmp_path: Path, llama_base: Path
) -> None:
    path = pickled(adapter)
    torch.save(torch.load(path) | {"a": Evil(str(tmp_path / "evil"))}, path, **options)
    for read in (tensor_names, lambda directory: logits_of(directory, llama_base)):
        with pytest.raises(ValueError, match="adapter_model.bin is ") as error:
            read(adapter)
        assert "\n" not in str(error.value)
        assert "weights_only" not in str(error.value), "torch's own words advise to let it run"
        if "pickle_protocol" not in options:
            assert "is refused: it is a pickle of more than tensors" in str(error.value)
            assert "convert it to adapter_model.safetensors: docs/adapters.md says how" in str(error.value)
    assert not (tmp_path / "evil").exists()
    with open(path, "rb") as file:
        torch.load(file, weights_only=False)
    assert (tmp_path / "evil").exists(), "read freely, it runs"


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not a whole file of tensors \(it begins with b''\)"),
        ("你好 👋".encode(), "is not a whole file of tensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'version https://'"),
        (saved({"a": torch.ones(999)})[:2000], r"is not a whole file of tensors \(it begins with b'PK"),
        (saved([torch.ones(2)]), "is no mapping of names to tensors"),
        (saved({"a": torch.ones(2), "b": 3}), "is no mapping of names to tensors"),
    ],
)
def test_files_that_are_no_tensors(content: bytes, message: str, adapter: Path, llama_base: Path) -> None:
    pickled(adapter).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        logits_of(adapter, llama_base)
    assert str(error.value).endswith(REMEDY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [lambda directory: None, pickled])
def test_an_adapter_of_another_base(write: Any, adapter: Path, bloom_base: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    write(adapter)
    name = adapter_files.weights_file(adapter).name
    with pytest.raises(
        ValueError, match="does not fit its base: Target modules .*_proj.* not found in the base model: name the base"
    ):
        logits_of(adapter, bloom_base, "bloom")
    shape: dict[str, Any] = {"intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 672}
    for size, layers, message in ((32, 2, "does not fit its base: size mismatch for "), (16, 3, "lacks 4 of the adapter's 12 tensors"), (16, 1, "has 4 tensors that no part of the adapter takes")):  # fmt: skip
        base = make_base(tmp_path / f"{size} {layers}")
        LlamaForCausalLM(LlamaConfig(hidden_size=size, num_hidden_layers=layers, **shape)).save_pretrained(base)
        with pytest.raises(
            ValueError, match=f"{name} {message}.*with --model_name_or_path, or copy the adapter again$"
        ) as error:
            logits_of(adapter, base)
        assert "\n" not in str(error.value)


def test_layers_of_several_matrices_at_once(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(OLD_CONFIG | {"enable_lora": [True, False, True]}))
    with pytest.raises(
        ValueError, match=r"matrices of a packed layer \(enable_lora \[True, False, True\]\), which peft gave up"
    ):
        tensor_names(adapter)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq"])
def test_a_base_that_training_changed(start: str, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": start}))
    with pytest.raises(
        ValueError, match=rf"changed its base as it began \(init_lora_weights {start}\), and fits no base"
    ):
        tensor_names(adapter)


def test_what_a_later_peft_wrote_is_named(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    facts = json.loads(path.read_text()) | {"quantum": 3, "nothing": None, "off": False, "empty": {}}
    path.write_text(json.dumps(facts))
    assert adapter_files.unknown_fields(adapter) == ["quantum"]
    assert adapter_files.config(adapter).r == 4


def test_neither_file_of_weights(adapter: Path) -> None:
    pickled(adapter).unlink()
    with pytest.raises(ValueError, match="adapter_model.safetensors cannot be read: No such file"):
        tensor_names(adapter)


def test_a_run_is_to_be_trained_again(adapter: Path) -> None:
    (adapter / "training_log.jsonl").write_text("")
    save_file({"a": torch.ones(1)}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name.*: copy the run's directory again, or train again"):
        tensor_names(adapter)


def test_the_empty_file_that_early_scripts_saved(adapter: Path, llama_base: Path) -> None:
    torch.save({}, pickled(adapter))
    with pytest.raises(ValueError, match=f"adapter_model.bin lacks 8 of the adapter's 8 tensors, .*: {MISFIT}$"):
        logits_of(adapter, llama_base)
