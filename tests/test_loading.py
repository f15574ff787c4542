import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BASE

from utils.adapters import attach_lora, count_parameters, linear_names, load_adapter
from utils.loading import check_bits, choose, imagine
from utils.models import get_model


def base_of(path: Path, family: str = "llama", **options: Any) -> Any:
    return choose(str(path), get_model(family), **options)


def test_the_base_is_frozen_and_the_adapter_trains(llama_base: Path) -> None:
    model = attach_lora(base_of(llama_base).load(), ["q_proj", "v_proj"], r=2, alpha=4, dropout=0.0)
    assert {
        name.rpartition(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad
    } == {
        "q_proj",
        "v_proj",
    }
    trainable, total = count_parameters(model)
    assert trainable == 2 * 2 * (2 * 16 + 2 * 16)  # layers × targets × (A and B of rank 2)
    assert total > trainable


def test_all_linear_is_every_layer_but_the_head(llama_base: Path, bloom_base: Path) -> None:
    assert linear_names(base_of(llama_base).load()) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    model = attach_lora(base_of(bloom_base, "bloom").load(), ["all-linear"], r=2, alpha=4, dropout=0.0)
    assert not any("lm_head" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_wrong_target_names_those_that_exist(bloom_base: Path) -> None:
    model = base_of(bloom_base, "bloom").load()
    expected = (
        r"--lora_target_modules q_proj: no linear layer of this model has that name. It has: "
        r"dense, dense_4h_to_h, dense_h_to_4h, query_key_value \(or all-linear\)"
    )
    with pytest.raises(ValueError, match=expected):
        attach_lora(model, ["query_key_value", "q_proj"], r=2, alpha=4, dropout=0.0)


def test_an_empty_base_has_the_names_and_counts_of_the_loaded_one(llama_base: Path) -> None:
    base = base_of(llama_base)
    empty, loaded = base.empty(), base.load()
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in loaded.named_parameters()}
    assert next(empty.parameters()).is_meta


def test_the_fingerprint_tells_bases_apart(llama_base: Path, bloom_base: Path) -> None:
    one = base_of(llama_base).fingerprint()
    assert one == base_of(llama_base, "auto").fingerprint()
    assert one != base_of(bloom_base, "bloom").fingerprint() != base_of(TINY_BASE).fingerprint()


def test_the_pad_token_is_the_rows(llama_base: Path) -> None:
    pads = {family: base_of(llama_base, family).tokenizer().pad_token for family in ("tiny", "llama", "auto")}
    assert pads == {"tiny": "<pad>", "llama": "<unk>", "auto": "</s>"}


def test_a_checkpoint_of_another_family_says_which(llama_base: Path, bloom_base: Path) -> None:
    for load in (base_of(llama_base, "bloom").empty, base_of(llama_base, "bloom").load):
        with pytest.raises(
            ValueError, match="is a LlamaForCausalLM, and this --model_type is BloomForCausalLM: give .*llama.* or auto"
        ):
            load()
    with pytest.raises(ValueError, match="is a BloomForCausalLM, and .* give --model_type bloom or auto"):
        base_of(bloom_base).load()


def test_an_id_that_has_left_the_hub_is_explained() -> None:
    with pytest.raises(OSError, match="this id has left the hub, and huggyllama/llama-7b holds the same weights"):
        choose("decapoda-research/llama-7b-hf", get_model("llama")).tokenizer()


def test_a_model_that_transformers_does_not_know_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(ValueError, match="cannot load .*transformers has no class for it; --trust_remote_code"):
        base_of(tmp_path, "auto").config()


def test_missing_weights_say_what_to_do(tmp_path: Path, llama_base: Path) -> None:
    for file in llama_base.iterdir():
        if "safetensors" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        OSError, match="cannot load .*no file named model.safetensors.*Its files are not whole: download them again$"
    ):
        base_of(tmp_path).load()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_train_after_an_evaluation(bits: int, llama_base: Path, tmp_path: Path) -> None:
    """bitsandbytes repacks 4-bit weights at the first forward in eval mode on some CPUs, and adapters then get no
    gradient; this fails there without `keep_4bit_unpacked`."""
    model = attach_lora(base_of(llama_base, quantization_bit=bits).load(), ["all-linear"], r=2, alpha=4, dropout=0.0)
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
    for _ in range(2):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data -= 0.1 * (parameter.grad if parameter.grad is not None else 0)
    with torch.no_grad():
        after = model.eval()(input_ids=ids).logits
    assert not torch.equal(before, after)
    model.save_pretrained(tmp_path)
    reloaded = load_adapter(base_of(llama_base, quantization_bit=bits).load(), tmp_path)
    with torch.no_grad():
        assert torch.allclose(reloaded(input_ids=ids).logits, after, atol=1e-3)


def test_bits_that_a_family_does_not_take() -> None:
    import dataclasses

    spec = dataclasses.replace(get_model("llama"), quantization_bits=(16,))
    with pytest.raises(ValueError, match="--quantization_bit 4: this family's weights load in 16 bits"):
        check_bits(spec, 4)


def test_int8_layers_do_not_warn_at_every_call(llama_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from utils.loading import quiet_libraries

    model = base_of(llama_base, quantization_bit=8, precision="fp32").load()
    ids = torch.arange(5, 25).view(2, 10)
    library = logging.getLogger("bitsandbytes")
    library.addHandler(caplog.handler)
    try:
        library.setLevel(logging.WARNING)
        model(input_ids=ids)
        warned = len(caplog.records)
        quiet_libraries()
        model(input_ids=ids)
        assert len(caplog.records) == warned > 0
    finally:
        library.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"has no model\.layers\.2\..* and \d+ more: weights and config.json are not of one"),
        (
            {"num_hidden_layers": 1},
            r"has, and its config.json has no place for, model\.layers\.1\..*not of one checkpoint",
        ),
        (
            {"intermediate_size": 48},
            r"cannot load .*its weights cannot be read, or not as its config.json says .*download it again",
        ),
    ],
)
def test_weights_that_are_not_as_the_configuration_says_are_refused(
    change: Any, message: str, llama_base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(llama_base, tmp_path / "base")
    facts = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(ValueError, match=message):
        base_of(copy).load()


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", None])
def test_weights_that_are_no_weights_say_so(content: bytes | None, llama_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama_base, tmp_path / "base")
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match="cannot load .*its weights cannot be read.*download it again, and whole"):
        base_of(copy).load()


def test_an_imagined_base_is_empty_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.hub.require_reachable", lambda name: pytest.fail("the hub was asked"))
    base = imagine("decapoda-research/llama-7b-hf", get_model("llama"))
    assert (base.device.type, base.precision, base.quantization_bit) == ("cuda", "bf16", 8)
    assert sum(p.numel() for p in base.empty().parameters()) == 6_738_415_616
    assert base.empty().device.type == "meta"
    assert (
        type(imagine("zai-org/chatglm-6b", get_model("chatglm")).empty()).__name__ == "ChatGLMForConditionalGeneration"
    )


def test_which_models_must_be_told_where_padding_is() -> None:
    assert not imagine("huggyllama/llama-7b", get_model("llama")).needs_mask
    assert imagine("zai-org/chatglm-6b", get_model("chatglm")).needs_mask, "its prompt sees itself in both directions"
    assert replace(imagine("x/y", get_model("auto")), trust_remote_code=True).needs_mask, "nobody knows"
