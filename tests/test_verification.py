from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import make_origin

from utils.adapters import attach_lora, load_adapter, reopen
from utils.loading import choose
from utils.methods import METHODS
from utils.models import get_model
from utils.verification import (
    AdapterError,
    check_adapter_file,
    check_files,
    marks,
    probe_logits,
    require_moved,
    verify_adapter,
)

PROBE = {"input_ids": torch.arange(10, 22).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


@pytest.fixture
def trained(llama_base: Path, tmp_path: Path) -> tuple[Any, Path]:
    """A model whose adapter does something, and the directory it was saved to."""
    torch.manual_seed(0)
    model = attach_lora(choose(str(llama_base), get_model("llama")).load(), ["all-linear"], r=2, alpha=4, dropout=0.1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def fresh(llama_base: Path, directory: Path) -> Any:
    return load_adapter(choose(str(llama_base), get_model("llama")).load(), directory)


def change(directory: Path, edit: Any) -> None:
    path = directory / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path)


def test_a_saved_adapter_gives_the_trained_logits(trained: Any, llama_base: Path) -> None:
    model, directory = trained
    expected = probe_logits(model.train(), PROBE)
    assert expected.shape == (12, model.config.vocab_size)
    assert not model.training, "dropout would make the comparison meaningless"
    verified = verify_adapter(directory, fresh(llama_base, directory), PROBE, expected, precision="fp32")
    assert (verified.tensors, verified.max_logit_difference, verified.probe_tokens) == (28, 0.0, 12)


def test_padding_is_not_compared(trained: Any) -> None:
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    assert probe_logits(trained[0], {**PROBE, "attention_mask": mask}).shape[0] == 10


def test_another_adapter_is_found(trained: Any, llama_base: Path) -> None:
    model, directory = trained
    expected = probe_logits(model, PROBE)
    change(directory, lambda tensors: {n: t * 1.05 if "lora_B" in n else t for n, t in tensors.items()})
    with pytest.raises(AdapterError, match="does not reproduce the trained model: logits differ by .*Do not use it"):
        verify_adapter(directory, fresh(llama_base, directory), PROBE, expected, precision="fp32")


def test_not_a_number_is_never_close(trained: Any, llama_base: Path) -> None:
    model, directory = trained
    reloaded = fresh(llama_base, directory)
    with pytest.raises(AdapterError, match="does not reproduce"):
        verify_adapter(directory, reloaded, PROBE, probe_logits(model, PROBE) * float("nan"), precision="fp32")


def one(tensors: dict[str, Any], part: str, value: Any) -> dict[str, Any]:
    name = next(n for n in tensors if part in n)
    return {**tensors, name: value(tensors[name])}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: {}, "holds no tensors"),
        (
            lambda tensors: one(tensors, "lora_B", lambda t: t * 0),
            "lora_B.weight is all zeros: the adapter was not trained",
        ),
        (lambda tensors: one(tensors, "lora_A", lambda t: t * float("nan")), "lora_A.weight is not finite"),
        (lambda tensors: one(tensors, "lora_A", lambda t: t[:0]), "lora_A.weight is empty"),
    ],
)
def test_bad_files_are_named(trained: Any, edit: Any, message: str) -> None:
    change(trained[1], edit)
    with pytest.raises(AdapterError, match=message):
        check_adapter_file(trained[1])


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:99])])
def test_missing_and_cut_files(trained: Any, damage: Any) -> None:
    damage(trained[1] / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        check_adapter_file(trained[1])


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("model.layers", "model.层🙂"): tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: {}, r"lacks 28 of the adapter's 28 tensors, .*down_proj.lora_A.weight and 27 more: .* again"),
        (lambda tensors: {n: t for n, t in tensors.items() if "1.mlp.down_proj.lora_B" not in n}, r"lacks 1 of the adapter's 28 tensors, base_model.model.model.layers.1.mlp.down_proj.lora_B.weight: "),
        (renamed, r"lacks 28 of the adapter's 28 tensors, "),
        (lambda tensors: tensors | renamed(tensors), r"has 28 tensors that no part of the adapter takes, .*层🙂.* and 27 more: "),
        (lambda tensors: one(tensors, "lora_B", lambda t: t[:, :1].contiguous()), "does not fit its base: size mismatch for .*lora_B"),
    ],
)  # fmt: skip
def test_tensors_of_another_adapter_do_not_load(trained: Any, edit: Any, message: str, llama_base: Path) -> None:
    change(trained[1], edit)
    with pytest.raises(ValueError, match=f"adapter_model.safetensors {message}") as error:
        fresh(llama_base, trained[1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", None, "cannot be read: .*No such file"),
        ("adapter_config.json", "{", "is not the JSON of an adapter: Expecting property name"),
        ("adapter_config.json", "", "is not the JSON of an adapter: Expecting value"),
        ("adapter_config.json", "\udcff", "is not the JSON of an adapter: 'utf-8' codec"),
        ("adapter_config.json", '["你好 👋"]', "names no method of peft"),
        ("adapter_config.json", '{"peft_type": "MAGIC"}', "names no method of peft"),
        ("adapter_model.safetensors", None, "cannot be read: .*No such file"),
        ("adapter_model.safetensors", "x" * 100, "cannot be read: "),
        ("adapter_model.safetensors", "", "cannot be read: "),
    ],
)
def test_a_directory_that_is_not_whole(
    trained: Any, name: str, content: str | None, message: str, llama_base: Path
) -> None:
    path = trained[1] / name
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        ValueError,
        match=f"{name} {message}.*: copy the adapter again$",
    ) as error:
        fresh(llama_base, trained[1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"full"}))
def test_the_files_are_looked_at_before_the_base_is_loaded(method: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapter_config.json cannot be read"):
        reopen(None, METHODS[method], tmp_path)


def test_virtual_tokens_and_saved_embeddings(llama_base: Path, tmp_path: Path) -> None:
    origin = make_origin(llama_base, tmp_path / "prompt", method="prompt")
    change(origin.directory, lambda tensors: {"foreign": tensors["prompt_embeddings"]})
    with pytest.raises(ValueError, match="lacks the tensor prompt_embeddings: "):
        load_adapter(origin.base.load(), origin.directory)
    change(origin.directory, lambda tensors: {"prompt_embeddings": tensors["foreign"][:2]})
    with pytest.raises(ValueError, match="does not fit its base: size mismatch"):
        load_adapter(origin.base.load(), origin.directory)
    origin = make_origin(llama_base, tmp_path / "lora")
    model = load_adapter(origin.base.load(), origin.directory)
    expected = probe_logits(model, PROBE)
    model.save_pretrained(tmp_path / "embeddings", save_embedding_layers=True)
    assert check_adapter_file(tmp_path / "embeddings") == 30, "the embeddings and the head are there, too"
    assert torch.equal(probe_logits(load_adapter(origin.base.load(), tmp_path / "embeddings"), PROBE), expected)


def test_what_must_move_is_named_if_it_did_not(trained: Any) -> None:
    model, _ = trained
    before = marks(model)
    with pytest.raises(AdapterError, match=r"LoRA was not trained: .* as before it: .*lora_B.* and 13 more of 14"):
        require_moved(model, before, METHODS["lora"])
    with torch.no_grad():
        matrices = [p for name, p in model.named_parameters() if "lora_B" in name]
        for matrix in matrices[1:]:
            matrix.mul_(-1)
    with pytest.raises(AdapterError, match=r"lora_B.default.weight and 0 more of 14"):
        require_moved(model, before, METHODS["lora"])
    assert require_moved(model, before, METHODS["full"]) == 13, "of all weights, one that moved is enough"
    with torch.no_grad():
        matrices[0][0, 0] += 1e-6
    assert require_moved(model, before, METHODS["lora"]) == 14


def test_another_methods_parameters_are_missed(trained: Any) -> None:
    with pytest.raises(AdapterError, match="prompt tuning was not trained: .*: nothing"):
        require_moved(trained[0], marks(trained[0]), METHODS["prompt"])


def test_files_of_all_weights_are_checked_shard_by_shard(llama_base: Path, tmp_path: Path) -> None:
    model = choose(str(llama_base), get_model("llama")).load()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert check_files(tmp_path, METHODS["full"]) == len(model.state_dict())
    tensors = load_file(shards[-1])
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("nan")}, shards[-1])
    with pytest.raises(AdapterError, match=f"{name} is not finite"):
        check_files(tmp_path, METHODS["full"])
    for shard in shards:
        shard.unlink()
    with pytest.raises(AdapterError, match="holds no model"):
        check_files(tmp_path, METHODS["full"])
