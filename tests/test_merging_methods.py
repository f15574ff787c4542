"""Every method that can merge, on any layers, into any weights: the checkpoint answers as base + adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import METHODS, PROMPT_METHODS, make_origin
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils import adapters, equivalence, folding
from utils.merging import merge, require_mergeable


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[1, 40, 41, 300, 301, 77, 600]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def unmerged(origin: Any) -> torch.Tensor:
    return logits(adapters.load_adapter(origin.base.load(), origin.directory))


def merged(folder: Path, **options: Any) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, **options))


LLAMA = ["k_proj", "o_proj", "gate_proj", "down_proj"]


BLOOM = ["query_key_value", "dense_4h_to_h"]
CASES = [*((method, "llama", LLAMA) for method in METHODS), ("lora", "bloom", BLOOM), ("ia3", "bloom", BLOOM)]


@pytest.mark.parametrize(("method", "family", "targets"), CASES, ids=[f"{case[1]}-{case[0]}" for case in CASES])
def test_any_method_on_any_layers(
    method: str, family: str, targets: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(f"{family}_base")
    origin = make_origin(base, tmp_path / "run", method=method, targets=targets, family=family)
    facts = merge(origin, tmp_path / "merged")
    expected, alone = unmerged(origin), logits(AutoModelForCausalLM.from_pretrained(base))
    assert (expected - alone).abs().max() > 1e-3, "an adapter that changes nothing would prove nothing"
    assert torch.allclose(merged(tmp_path / "merged"), expected, atol=1e-5)
    assert facts["proof"]["layers"] == 2 * len(targets)
    assert facts["precision"] == "fp32"


def test_a_layer_of_one_block_and_all_linear_layers(llama_base: Path, tmp_path: Path) -> None:
    for number, targets in enumerate((["layers.1.self_attn.o_proj"], "all-linear")):
        origin = make_origin(llama_base, tmp_path / f"run{number}", targets=targets)
        facts = merge(origin, tmp_path / f"merged{number}")
        assert facts["proof"]["layers"] == (1, 14)[number]
        assert torch.allclose(merged(tmp_path / f"merged{number}"), unmerged(origin), atol=1e-5)


@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_virtual_tokens_cannot_merge_and_the_error_says_how_to_serve_them(
    method: str, llama_base: Path, tmp_path: Path
) -> None:
    origin = make_origin(llama_base, tmp_path / "run", method=method)
    with pytest.raises(
        ValueError, match="virtual tokens stand before a prompt .* Serve it unmerged: python3 generate.py"
    ):
        merge(origin, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_directory_without_an_adapter_has_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no adapter, so there is nothing to merge: a run that trained all"):
        require_mergeable(tmp_path, "full")
    with pytest.raises(ValueError, match=r"has no adapter_config.json, and was trained with dora: copy the run"):
        require_mergeable(tmp_path, "dora")


@pytest.mark.parametrize(("method", "precision"), [("lora", "bf16"), ("dora", "fp16"), ("ia3", "bf16")])
def test_sixteen_bits_round_once(method: str, precision: Any, llama_base: Path, tmp_path: Path) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    origin = make_origin(llama_base, tmp_path / "run", method=method, targets=LLAMA)
    facts = merge(origin, tmp_path / "merged", precision=precision)
    assert 0 < facts["proof"]["worst_layer"] <= 1
    exact = adapters.load_adapter(origin.base.load(), origin.directory)
    weights = {name: p.detach() for name, p in folding.merge_layers(exact).named_parameters()}
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert stored.dtype == dtype
    for name, parameter in stored.named_parameters():
        # The base itself was rounded to 16 bits first, then the sum: at most two halves of the last place.
        bound = torch.finfo(dtype).eps * (weights[name].abs() + 0.05) + 1e-6
        assert ((parameter.float() - weights[name]).abs() <= bound).all(), name


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_base_merges_both_ways_and_says_what_each_changes(
    bits: int, llama_base: Path, tmp_path: Path
) -> None:
    origin = make_origin(llama_base, tmp_path / "run", bits=bits)
    trained = unmerged(origin)
    found = {}
    for into in ("base", "trained"):
        facts = merge(origin, tmp_path / into, into=into)  # pyright: ignore[reportArgumentType]
        assert facts["from_trained"].keys() == {"base", "trained"}
        found[into] = merged(tmp_path / into)
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(tmp_path / "trained").parameters()} == {torch.float32}
    difference = {into: (given - trained).abs().max().item() for into, given in found.items()}
    assert difference["trained"] < difference["base"] or bits == 8  # LLM.int8 rounds activations, too
    assert difference["trained"] < 0.02 * trained.abs().max()
    figures = facts["from_trained"]
    assert figures["trained"]["mean_kl"] < 1e-4
    assert figures["base"]["max_logit_difference"] > 0


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_head_tied_to_the_embeddings_gets_weights_of_its_own(family: str, tmp_path: Path, request: Any) -> None:
    from transformers import AutoConfig

    source = request.getfixturevalue(f"{family}_base")
    config = AutoConfig.from_pretrained(source, tie_word_embeddings=True)
    torch.manual_seed(3)
    base: Any = AutoModelForCausalLM.from_config(config)
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "base")
    targets = ["lm_head", "down_proj" if family == "llama" else "dense"]
    origin = make_origin(tmp_path / "base", tmp_path / "run", targets=targets, family=family)
    merge(origin, tmp_path / "merged")
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(read.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert not torch.equal(read.get_output_embeddings().weight, read.get_input_embeddings().weight)
    assert torch.allclose(logits(read), unmerged(origin), atol=1e-5)


def test_a_tied_head_without_an_adapter_stays_tied(tmp_path: Path, bloom_base: Path) -> None:
    origin = make_origin(bloom_base, tmp_path / "run", targets=["dense"], family="bloom")
    merge(origin, tmp_path / "merged")
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert read.config.tie_word_embeddings
    assert read.get_output_embeddings().weight is read.get_input_embeddings().weight


def test_the_hook_computes_in_fp32_and_leaves_the_weights_as_they_were(llama_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.bfloat16)
    before = equivalence.checksums(model)
    with equivalence.computing_in_fp32(model):
        wide = logits(model)
    assert wide.dtype == torch.float32
    assert torch.allclose(wide, logits(AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.bfloat16).float()))
    assert logits(model).dtype == torch.bfloat16
    assert equivalence.checksums(model) == before
