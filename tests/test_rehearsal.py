from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from test_models import empty_model
from tiny_chatglm import tiny_model

from utils import rehearsal
from utils.adapters import attach
from utils.allocations import Watch
from utils.distributed import DTYPES, Precision
from utils.methods import choose, schedule
from utils.rehearsal import Rehearsal, decoder_layers

ROWS, LENGTH, LAYERS = 3, 24, 5
SIZES = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "vocab_size": 80, "pad_token_id": 0}
GATED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 1}
BLOOM = {"hidden_size": 32, "n_layer": LAYERS, "n_head": 2, "vocab_size": 80}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaConfig": GATED,
    "BloomConfig": BLOOM,
    "ChatGLMConfig": {},
    "Gemma2Config": {**GATED, "head_dim": 16},
    "GPTNeoXConfig": {**SIZES, "intermediate_size": 64},
    "GlmConfig": {**GATED, "head_dim": 16},
}


def make(config: str, method: str, device: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        made = (
            tiny_model(num_layers=LAYERS)
            if config == "ChatGLMConfig"
            else empty_model(config, {**FAMILIES[config], **changes})
        )
    made.requires_grad_(False)
    family = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "lora_target_modules": ["all-linear"]}
    with torch.device(device):
        return attach(made, schedule(choose(method, {}, family), 3000), total_steps=3000).model


class AllReal(Watch):
    """Counts a pass with numbers."""

    def __init__(self) -> None:
        super().__init__(2**61 - 1)  # a prime that divides no size: nothing counts as growing with the rows


@contextmanager
def really(model: Any, precision: Precision) -> Iterator[AllReal]:
    """`model` as `Rehearsal` takes it to be, with numbers."""
    watch = AllReal()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            watch.exclude(parameter.grad)
        else:
            parameter.data = parameter.data.to(DTYPES[precision])
    for tensor in (*model.parameters(), *model.buffers()):
        watch.exclude(tensor)
    with rehearsal._no_collection(), watch:
        yield watch


def measured(config: str, method: str, precision: Precision, *, checkpointing: bool) -> tuple[int, int, float, float]:
    """Bytes kept, bytes at the peak, FLOPs of products and of attention of a real pass."""
    model = make(config, method, "cpu")
    run = Rehearsal(model, precision=precision, quantization_bit=16, cuda=False, needs_mask=config == "ChatGLMConfig")
    with (
        rehearsal._training(model, checkpointing, nullcontext()),
        rehearsal._captured(model.get_output_embeddings()) as captured,
        really(model, precision) as watch,
    ):
        run._forward(ROWS, LENGTH)
        kept = watch.line[-1][0]
        rehearsal._backward(captured)
    return kept, max(size for size, _ in watch.line), watch.products, watch.attention


def foretold(config: str, method: str, precision: Precision, *, checkpointing: bool) -> tuple[int, int, float, float]:
    found = Rehearsal(
        make(config, method, "meta"),
        precision=precision,
        quantization_bit=16,
        cuda=False,
        needs_mask=config == "ChatGLMConfig",
    ).run(length=LENGTH, checkpointing=checkpointing)
    return found.kept_bytes(ROWS), found.peak_bytes(ROWS), ROWS * found.products, ROWS * found.attention


@pytest.mark.parametrize(("precision", "checkpointing"), [("fp32", False), ("bf16", True)])
@pytest.mark.parametrize("config", FAMILIES)
def test_a_pass_without_numbers_keeps_and_needs_what_a_real_one_does(
    config: str, precision: Precision, checkpointing: bool
) -> None:
    real = measured(config, "lora", precision, checkpointing=checkpointing)
    told = foretold(config, "lora", precision, checkpointing=checkpointing)
    assert told[:2] == pytest.approx(real[:2], rel=0.003)  # a few indices of eight bytes
    assert told[2:] == real[2:]


@pytest.mark.parametrize("method", ["full", "ia3", "adalora", "dora"])
def test_so_it_is_for_every_method(method: str) -> None:
    real = measured("LlamaConfig", method, "bf16", checkpointing=False)
    told = foretold("LlamaConfig", method, "bf16", checkpointing=False)
    assert told[:2] == pytest.approx(real[:2], rel=0.003)


@pytest.mark.parametrize(("method", "error"), [("prompt", 0.003), ("p_tuning", 0.003), ("prefix", 0.06)])
def test_virtual_tokens_are_rehearsed(method: str, error: float) -> None:
    real = measured("LlamaConfig", method, "fp32", checkpointing=False)
    told = foretold("LlamaConfig", method, "fp32", checkpointing=False)
    assert told[:2] == pytest.approx(real[:2], rel=error)


def test_few_layers_tell_of_many_and_the_model_is_left_as_it_was() -> None:
    model = make("LlamaConfig", "lora", "meta")
    before = {name: (id(p), p.dtype, p.device.type, p.grad) for name, p in model.named_parameters()}
    for bits, checkpointing in ((4, True), (8, False)):
        run = Rehearsal(model, precision="bf16", quantization_bit=bits, cuda=True)
        short = run.run(length=LENGTH, checkpointing=checkpointing)
        run._depth = LAYERS
        whole = run.run(length=LENGTH, checkpointing=checkpointing)
        for rows in (1, 4, 100):
            assert short.kept_bytes(rows) == pytest.approx(whole.kept_bytes(rows), rel=0.01)
            assert short.peak_bytes(rows) == pytest.approx(whole.peak_bytes(rows), rel=0.02)
        assert short.products == pytest.approx(whole.products)
    assert before == {name: (id(p), p.dtype, p.device.type, p.grad) for name, p in model.named_parameters()}
    assert len(decoder_layers(model)) == LAYERS
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_cuda_keeps_no_attention_matrix_and_one_byte_of_dropout() -> None:
    def kept(length: int, cuda: bool, **changes: Any) -> float:
        model = make("LlamaConfig", "lora", "meta", **changes)
        run = Rehearsal(model, precision="bf16", quantization_bit=16, cuda=cuda)
        return int(run.run(length=length, checkpointing=False).kept[1]) / length

    assert kept(64, cuda=True) == pytest.approx(kept(512, cuda=True), rel=1e-3)  # linear in the length
    assert kept(64, cuda=True) < kept(64, cuda=False)
    assert kept(512, cuda=True, attn_implementation="eager") > 2 * kept(64, cuda=True, attn_implementation="eager")


def test_attention_with_a_mask_on_cuda_is_rehearsed() -> None:
    run = Rehearsal(
        make("ChatGLMConfig", "lora", "meta"), precision="bf16", quantization_bit=16, cuda=True, needs_mask=True
    )
    assert run.run(length=LENGTH, checkpointing=True).kept_bytes(2) > 0


class Chooses(torch.nn.Module):
    """A layer that looks at what it computed."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.inner(hidden if hidden.sum().item() > 0 else -hidden)


def test_a_model_that_decides_by_its_numbers_is_refused_in_one_line() -> None:
    model = make("LlamaConfig", "lora", "meta")
    layer = decoder_layers(model)[0]
    layer.mlp = Chooses(layer.mlp)  # pyright: ignore[reportArgumentType]
    run = Rehearsal(model, precision="fp32", quantization_bit=16, cuda=False)
    with pytest.raises(ValueError, match="cannot be told without its weights \\(") as error:
        run.run(length=LENGTH, checkpointing=False)
    assert "\n" not in str(error.value)
    assert next(model.parameters()).is_meta


def test_the_rows_of_a_pass_are_a_prime() -> None:
    primes = rehearsal._PRIMES  # a product of two sizes is a multiple of a prime only where one of the two is
    assert all(number % divisor for number in primes for divisor in range(2, number))
    assert list(primes) == sorted(set(primes))
