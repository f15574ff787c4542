from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from test_rehearsal import make, really
from torch import nn

from utils import loading, target_loss
from utils.adapters import attach
from utils.memory import FRAGMENTATION, MemoryModel, measured_flops, seconds
from utils.methods import choose
from utils.models import get_model
from utils.proof import IGNORED

GB = 1e9


@cache
def llama(
    checkpoint: str, bits: int = 16, targets: tuple[str, ...] = ("q_proj", "v_proj"), **options: Any
) -> MemoryModel:
    """LoRA of rank 8 on a LLaMA of the registry, in bf16 on CUDA."""
    base = loading.imagine(
        f"huggyllama/llama-{checkpoint}", get_model("llama"), precision="bf16", quantization_bit=bits
    )
    family = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": list(targets)}
    model = attach(base.empty(), choose("lora", {}, family), total_steps=1).model
    return MemoryModel(model, precision="bf16", quantization_bit=bits, device="cuda", **options)


def tiny(method: str = "lora", config: str = "LlamaConfig", **options: Any) -> MemoryModel:
    given: Mapping[str, Any] = {"precision": "fp32", "quantization_bit": 16, "device": "cpu", **options}
    return MemoryModel(make(config, method, "meta"), **given)


def shape(rows: int = 4, length: int = 512, **changes: Any) -> dict[str, Any]:
    return {"rows": rows, "length": length, "targets": rows * length, "checkpointing": False, **changes}


def test_the_parts_add_up_and_grow_with_the_rows() -> None:
    memory = tiny()
    one, two, many = (memory.footprint(**shape(rows, 32, targets=8)) for rows in (1, 2, 101))
    assert one.total == sum(vars(one).values())
    assert many.activations - one.activations == 100 * (two.activations - one.activations) > 0
    assert (one.weights, one.adapter, one.optimizer) == (many.weights, many.adapter, many.optimizer)
    assert one.overhead == 0
    cuda = tiny(device="cuda", precision="bf16").footprint(**shape(1, 32))
    assert cuda.overhead > FRAGMENTATION * cuda.activations


def test_the_original_projects_headline_fits_and_65b_in_bf16_does_not() -> None:
    seven, thirty = (llama(size, 8).footprint(**shape()) for size in ("7b", "30b"))
    assert seven.total < 30 * GB
    assert thirty.total < 80 * GB
    assert llama("65b").footprint(**shape()).total > 80 * GB


def test_bits_lower_the_weights() -> None:
    sizes = {bits: llama("7b", bits).footprint(**shape()).weights for bits in (16, 8, 4)}
    # 6,738,415,616 weights, of which embeddings and head (2 x 32,000 x 4,096) and norms stay in 16 bits.
    quantised = 6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096
    outputs = 32 * (4 * 4096 + 2 * 11008 + 4096)
    assert sizes[16] - sizes[8] == pytest.approx(quantised - 4 * outputs, rel=1e-3)
    assert sizes[8] - sizes[4] == pytest.approx(quantised * (0.5 - 0.0159) + 4 * outputs, rel=1e-3)


def test_checkpointing_keeps_less_and_computes_more() -> None:
    for bits in (16, 4):
        memory = llama("7b", bits)
        without, with_it = (memory.footprint(**shape(checkpointing=twice)) for twice in (False, True))
        assert with_it.activations < without.activations / 8
        assert with_it.total < without.total
        flops = [memory.flops(2048, 700, 512, checkpointing=twice) for twice in (False, True)]
        assert 1.3 < flops[1] / flops[0] < 1.6


def test_the_input_of_a_frozen_layer_without_an_adapter_is_not_kept() -> None:
    kept = llama("7b").footprint(**shape()).activations
    more = llama("7b", targets=("q_proj", "v_proj", "down_proj")).footprint(**shape()).activations
    # For A: its input in bf16, and one byte for what dropout left.
    assert more - kept == pytest.approx(3 * 2048 * 11008 * 32, rel=0.02)


def test_flops_are_those_of_the_products_that_are_computed() -> None:
    memory = llama("7b")
    weights = 6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096
    found = memory.flops(512, 0, 512, checkpointing=False)
    attention = 32 * 7 * 512 * 512 * 4096  # two products forward and five back, half of each masked away
    # Forward and back through frozen weights, but not below the first adapter: 4 for a weight and token.
    assert found == pytest.approx(512 * 4 * weights + attention, rel=0.03)
    assert memory.flops(512, 100, 512, checkpointing=False) - found == pytest.approx(100 * 4 * 32000 * 4096)
    assert memory.flops(1024, 0, 512, checkpointing=False) == pytest.approx(2 * found)
    assert memory.flops(512, 0, 256, checkpointing=False) == pytest.approx(found - attention / 2, rel=1e-3)


def test_full_fine_tuning_has_everything_in_four_bytes_and_no_adapter() -> None:
    model = make("LlamaConfig", "full", "meta")
    number = sum(p.numel() for p in model.parameters())
    found = tiny("full").footprint(**shape(1, 16))
    assert found.adapter == 0
    assert found.weights == pytest.approx(4 * number, rel=0.01)
    assert (found.gradients, found.optimizer) == (4 * number, 8 * number)
    several = tiny("full", world_size=2).footprint(**shape(1, 16))
    assert several.gradients == 2 * found.gradients


def test_a_sharded_base_keeps_its_share_and_two_layers() -> None:
    whole, shared = (llama("7b", sharded=sharded, world_size=4).footprint(**shape()) for sharded in (False, True))
    layer = 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert whole.weights - shared.weights == pytest.approx(32 * layer * 3 / 4 - 2 * layer, rel=1e-3)
    assert whole.adapter == shared.adapter


@pytest.mark.parametrize("config", ["BloomConfig", "ChatGLMConfig", "GPTNeoXConfig", "Gemma2Config"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_kind_of_family_in_all_bits_on_both_devices(config: str, bits: int) -> None:
    for device, precision in (("cuda", "bf16"), ("cpu", "fp32")):
        memory = tiny(config=config, quantization_bit=bits, device=device, precision=precision)
        found = memory.footprint(**shape(2, 32))
        assert found.activations > 0
        assert found.total > found.weights > 0


class Plain(nn.Module):
    """A head behind nothing."""

    def __init__(self, width: int, vocabulary: int, *, trained: bool) -> None:
        super().__init__()
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight.requires_grad_(trained)
        self.config = make("LlamaConfig", "lora", "meta").config

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.head(self.hidden * 1.0))

    hidden: torch.Tensor


@pytest.mark.parametrize("trained", [False, True])
def test_the_heads_part_is_what_the_loss_really_takes(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, length, width, vocabulary = 2, 64, 32, 4000
    monkeypatch.setitem(target_loss.CHUNK_BYTES, "cpu", 32 * 4 * vocabulary)
    monkeypatch.setattr(target_loss, "FEWEST_ROWS", 1)
    monkeypatch.setattr(target_loss, "TILE_ROWS", 64)
    model = Plain(width, vocabulary, trained=trained)
    model.hidden = torch.zeros(rows, length, width, requires_grad=True)
    batch = {"input_ids": torch.zeros(rows, length, dtype=torch.long), "labels": torch.full((rows, length), 7)}
    batch["labels"][:, 0] = IGNORED
    head = target_loss.HeadAtTargets(model, needs_mask=False)
    with really(model, "fp32") as watch:
        watch.exclude(model.hidden)
        loss = head.loss(model, batch)
        loss.backward()
    peak = max(size for size, _ in watch.line) - model.hidden.nbytes  # the gradient of what the model computed
    empty = make("LlamaConfig", "full" if trained else "lora", "meta", vocab_size=vocabulary, tie_word_embeddings=False)
    memory = MemoryModel(empty, precision="fp32", quantization_bit=16, device="cpu")
    found = memory.footprint(rows=rows, length=length, targets=rows * (length - 1), checkpointing=False)
    assert found.logits == pytest.approx(peak, rel=0.1)


def test_time_is_operations_by_speed() -> None:
    assert seconds(3e12, 1e12) == 3.0
    assert measured_flops("cpu", "fp32", most=64) > 1e6
