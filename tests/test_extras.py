"""An extra stays on where it computes what the plain model does, and otherwise leaves no trace."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import RECORDS
from tiny_chatglm import EOP, row, tiny_model
from torch import nn
from transformers.models.llama import modeling_llama

from utils import distributed
from utils.adapters import attach_lora
from utils.batching import Batch, pad
from utils.encode import encode_rows
from utils.extras import ATTENTION, EXTRAS, TOLERANCES, Extra, compile_layers, enable, use_liger
from utils.loading import choose
from utils.models import get_model
from utils.proof import IGNORED, Encoded
from utils.readers import Row
from utils.rehearsal import decoder_layers
from utils.target_loss import token_loss
from utils.templates import TEMPLATES

FAMILIES = ["llama", "bloom", "chatglm"]
COMPILED = Extra(
    flag="--torch_compile",
    does="what `torch_compile` does, without the part of the compiler that takes a minute",
    needs="nothing",
    switch_on=partial(compile_layers, backend="eager"),
)


@pytest.fixture(scope="module")
def probe(tokenizer: Any) -> Batch:
    """Rows of different length, with Chinese, emoji and an empty input."""
    rows = [Row(record=record, origin=f"records row {i}") for i, record in enumerate(RECORDS, start=1)]
    return pad(encode_rows(rows, TEMPLATES["alpaca"], tokenizer, cutoff_len=512, truncation="drop")[0][:4], 3)


@pytest.fixture
def make(llama_base: Path, bloom_base: Path) -> Callable[..., Any]:
    """A tiny model of a family with a fresh LoRA, the same at every call."""

    def made(family: str = "llama", dropout: float = 0.5) -> Any:
        torch.manual_seed(0)
        if family == "chatglm":
            base = tiny_model().requires_grad_(False)
            base.config.use_cache = False
        else:
            base = choose(str({"llama": llama_base, "bloom": bloom_base}[family]), get_model(family)).load()
        return attach_lora(base, get_model(family).lora_target_modules, r=2, alpha=4, dropout=dropout)

    return made


def probe_of(family: str, probe: Batch) -> Batch:
    if family != "chatglm":
        return probe
    rows = [row([5, 6, 7, 8], [9, 10, EOP]), row([11], [12, EOP])]
    labels = [[IGNORED] * (len(ids) - 2) + ids[-2:] for ids in rows]
    made = [Encoded(input_ids=ids, labels=own, origin="", source="") for ids, own in zip(rows, labels, strict=True)]
    return pad(made, 3)


def loss(model: Any, batch: Batch) -> torch.Tensor:
    """The mean over trained tokens; causal models are not told of padding that stands behind a row."""
    names = ["input_ids", *(["attention_mask"] if model.config.model_type in ("bloom", "chatglm") else [])]
    return token_loss(model(**{name: batch[name] for name in names}).logits, batch["labels"]) / 10


def trained(model: Any, batch: Batch, steps: int = 2) -> list[torch.Tensor]:
    """The adapter after some steps with dropout: any random number that was drawn before changes it."""
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(steps):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [weight.detach().clone() for weight in weights]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def only(switch_on: Callable[[Any], None]) -> Mapping[str, Extra]:
    return {"fake": Extra(flag="--fake", does="nothing good", needs="nothing", switch_on=switch_on)}


def a_layer(model: Any) -> Any:
    """The last norm, whose values count in the loss of a random model, too."""
    return model.get_base_model().model.norm


def wrong_values(model: Any) -> None:
    layer, plain = a_layer(model), a_layer(model).forward
    layer.forward = lambda hidden: plain(hidden) * 1.1


def wrong_gradients(model: Any) -> None:
    """The right loss, and half the gradient."""
    layer, plain = a_layer(model), a_layer(model).forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return (plain(hidden) + plain(hidden).detach()) / 2

    layer.forward = forward


def not_finite(model: Any) -> None:
    layer, plain = a_layer(model), a_layer(model).forward
    layer.forward = lambda hidden: plain(hidden) * float("nan")


def wrong_globals(model: Any) -> None:
    modeling_llama.apply_rotary_pos_emb = lambda q, k, *_, **__: (q, k)


def half_done(model: Any) -> None:
    wrong_values(model)
    wrong_globals(model)
    a_layer(model).impl = "new"
    raise RuntimeError("0 active drivers ([]). There should only be one.\nmore lines")


@pytest.mark.parametrize(
    ("switch_on", "reason"),
    [
        (wrong_values, "the loss differs: "),
        (wrong_gradients, "the gradients differ: by "),
        (not_finite, "the loss differs: nan with it and "),
        (wrong_globals, "the "),
        (half_done, "RuntimeError: 0 active drivers ([]). There should only be one.;"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_extra_that_is_wrong_goes_loudly_and_leaves_no_trace(
    switch_on: Any, reason: str, make: Any, probe: Batch
) -> None:
    plain, model, rotary = make(), make(), modeling_llama.apply_rotary_pos_emb
    before = [dict(vars(module)) for module in model.modules()]
    torch.manual_seed(1)
    enabled = enable(model, ["fake"], probe, loss, precision="fp32", extras=only(switch_on))
    assert enabled.on == ()
    (note,) = enabled.notes
    assert note.startswith(f"--fake: OFF: {reason}")
    assert note.endswith("; training goes on without it")
    assert "\n" not in note
    assert modeling_llama.apply_rotary_pos_emb is rotary
    assert [dict(vars(module)) for module in model.modules()] == before
    found = trained(model, probe)
    torch.manual_seed(1)
    assert equal(found, trained(plain, probe))


def test_the_loss_alone_would_not_have_seen_the_wrong_gradients(make: Any, probe: Batch) -> None:
    model = make(dropout=0.0)
    with torch.no_grad():
        before = loss(model, probe).item()
        wrong_gradients(model)
        assert loss(model, probe).item() == pytest.approx(before, rel=TOLERANCES["fp32"].loss)


def test_what_a_cuda_machine_has_is_refused_on_cpu_and_training_goes_on_bit_for_bit(make: Any, probe: Batch) -> None:
    plain, model = make(), make()
    torch.manual_seed(1)
    enabled = enable(model, ["liger_kernel"], probe, loss, precision="bf16", attention="flash_attention_2")
    assert enabled.on == ()
    assert enabled.notes == (
        "--attn_implementation flash_attention_2: OFF: flash attention runs on CUDA, and the model is on cpu; training goes on without it",
        "--liger_kernel: OFF: its kernels run on CUDA, and the model is on cpu; training goes on without it",
    )
    found = trained(model, probe)
    torch.manual_seed(1)
    assert equal(found, trained(plain, probe))


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "liger_kernel"])
def test_what_is_missing_on_a_cuda_machine_is_named_with_the_next_step(
    name: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.extras._device", lambda model: torch.device("cuda"))
    monkeypatch.setattr("utils.extras._installed", lambda module: False)
    refusal = EXTRAS[name].refusal
    assert "pip install " in str(refusal(make(), "bf16"))
    assert "pip install triton" in str(EXTRAS["torch_compile"].refusal(make(), "bf16"))
    if name != "liger_kernel":
        assert "give --precision bf16 or fp16" in str(refusal(make(), "fp32"))
    monkeypatch.setattr("utils.extras._installed", lambda module: True)
    assert refusal(make(), "bf16") is None


@pytest.mark.parametrize("family", ["llama", "chatglm"])
def test_another_attention_is_taken_and_given_back(family: str, make: Any, probe: Batch) -> None:
    model = make(family)
    enabled = enable(model, [], probe_of(family, probe), loss, precision="fp32", attention="eager")
    assert enabled.on == ("eager",)
    assert enabled.notes[0].startswith("--attn_implementation eager: on; loss ")
    assert model.config._attn_implementation == "eager"
    enabled.switch_off()
    assert model.config._attn_implementation == "sdpa"


def test_an_attention_that_a_family_lacks_is_refused(make: Any, probe: Batch) -> None:
    model = make("bloom")
    enabled = enable(model, [], probe, loss, precision="fp32", attention="sdpa")
    assert enabled.notes[0].startswith("--attn_implementation sdpa: OFF: ValueError: ")
    assert model.config._attn_implementation == "eager"


def test_nothing_wanted_or_nothing_new_costs_nothing(make: Any, probe: Batch) -> None:
    def never(model: Any, batch: Batch) -> torch.Tensor:
        raise AssertionError("the probe was computed")

    assert enable(make(), [], probe, never, precision="fp32").notes == ()
    assert enable(make(), [], probe, never, precision="fp32", attention="sdpa").on == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_model_trains_as_the_plain_one_and_takes_any_shape(family: str, make: Any, probe: Batch) -> None:
    batch, model, plain = probe_of(family, probe), make(family, dropout=0.0), make(family, dropout=0.0)
    torch._dynamo.reset()
    enabled = enable(model, ["torch_compile"], batch, loss, precision="fp32", extras={"torch_compile": COMPILED})
    assert enabled.on == ("torch_compile",), enabled.notes
    for one, other in zip(trained(model, batch), trained(plain, batch), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for rows, shorter in ((3, 1), (2, 2)):
        loss(model, {name: values[:rows, : values.shape[1] - shorter] for name, values in batch.items()}).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "another shape was compiled anew"
    enabled.switch_off()
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_a_decoder_are_found_under_an_adapter(family: str, make: Any) -> None:
    model = make(family)
    names = {type(layer).__name__ for layer in decoder_layers(model)}
    assert names == {{"llama": "LlamaDecoderLayer", "bloom": "BloomBlock", "chatglm": "ChatGLMBlock"}[family]}
    assert len(decoder_layers(model)) == 2


def test_a_model_without_layers_says_so() -> None:
    with pytest.raises(ValueError, match="Linear has no list of layers"):
        compile_layers(nn.Linear(2, 2))


def test_switching_off_keeps_what_came_later(make: Any, probe: Batch) -> None:
    model = make(dropout=0.0)

    def same(model: Any) -> None:
        layer, plain = a_layer(model), a_layer(model).forward
        layer.forward, layer.mark = (lambda hidden: plain(hidden)), 1

    enabled = enable(model, ["fake"], probe, loss, precision="fp32", extras=only(same))
    assert enabled.on == ("fake",)
    later = a_layer(model).forward = a_layer(model).forward.__call__  # as accelerate does, around the whole model
    enabled.switch_off()
    assert a_layer(model).forward is later
    assert not hasattr(a_layer(model), "mark")


def test_one_that_changes_weights_cannot_be_undone_and_ends_the_run(make: Any, probe: Batch) -> None:
    def damage(model: Any) -> None:
        with torch.no_grad():
            a_layer(model).weight.mul_(1.1)
        a_layer(model).mark = 1

    with pytest.raises(ValueError, match=r"--fake failed \(the loss differs: .*cannot be undone.*leave the flag out"):
        enable(make(), ["fake"], probe, loss, precision="fp32", extras=only(damage))


def test_one_that_fails_in_another_process_goes_here_too(
    make: Any, probe: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "gather", lambda reason: [reason, "there: no triton"])
    model = make()
    extras = only(lambda model: setattr(a_layer(model), "mark", 1))
    enabled = enable(model, ["fake"], probe, loss, precision="fp32", extras=extras)
    assert enabled.notes == ("--fake: OFF: there: no triton; training goes on without it",)
    assert not hasattr(a_layer(model), "mark")


def test_the_next_extra_is_tried_after_one_that_went(make: Any, probe: Batch) -> None:
    good = Extra(flag="--good", does="nothing", needs="nothing", switch_on=lambda model: None)
    extras = {**only(wrong_values), "good": good}
    enabled = enable(make(), ["fake", "good"], probe, loss, precision="fp32", extras=extras)
    assert enabled.on == ("good",)
    assert [note.split(":")[0] for note in enabled.notes] == ["--fake", "--good"]


def test_an_unknown_name_is_answered_with_the_nearest(make: Any, probe: Batch) -> None:
    with pytest.raises(ValueError, match=r"unknown extra 'liger_kernl'\. Did you mean liger_kernel\?"):
        enable(make(), ["liger_kernl"], probe, loss, precision="fp32")


def test_the_probe_leaves_modes_gradients_and_random_numbers_alone(make: Any, probe: Batch) -> None:
    model = make()
    model.eval()
    zero = [name for name, parameter in model.named_parameters() if not parameter.any()]
    seen: list[bool] = []

    def drawing(model: Any, batch: Batch) -> torch.Tensor:
        for draw in (random.random, numpy.random.rand, partial(torch.rand, 1)):
            draw()
        seen.append(model.training and any(p.any() for n, p in model.named_parameters() if n in zero))
        return loss(model, batch)

    distributed.seed(5)
    expected = [random.random(), numpy.random.rand(), torch.rand(1).item()]
    distributed.seed(5)
    enable(model, ["fake"], probe, drawing, precision="fp32", extras=only(lambda model: None))
    assert [random.random(), numpy.random.rand(), torch.rand(1).item()] == expected
    assert seen == [True, True], "the probe trains, with an adapter that counts"
    assert not any(module.training for module in model.modules())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.5}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if not parameter.any()] == zero
    assert any("lora_B" in name for name in zero)


class FakeLiger(types.ModuleType):
    """Changes what the real one does: globals of the family's file, and the norms of this model."""

    def __init__(self, factor: float) -> None:
        super().__init__("liger_kernel.transformers.monkey_patch")
        self.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
        self.factor, self.asked = factor, {}

    def _apply_liger_kernel_to_instance(self, model: Any, **options: Any) -> None:
        self.asked = options
        plain, rotary, factor = modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb, self.factor
        modeling_llama.apply_rotary_pos_emb = lambda *given, **named: rotary(*given, **named)
        norm = model.model.norm
        norm.offset, norm.forward = 0.0, lambda hidden: plain(norm, hidden) * factor


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], FakeLiger]:
    def install(factor: float) -> FakeLiger:
        fake, package = FakeLiger(factor), types.ModuleType("liger_kernel.transformers")
        package.monkey_patch = fake  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
        return fake

    return install


LIGER = {"liger_kernel": Extra(flag="--liger_kernel", does="", needs="", switch_on=use_liger)}


@pytest.mark.parametrize(("factor", "on"), [(1.0, ("liger_kernel",)), (1.01, ())])
def test_liger_comes_without_its_loss_and_goes_without_a_trace(
    factor: float, on: tuple[str, ...], make: Any, probe: Batch, liger: Any
) -> None:
    fake, model, rotary = liger(factor), make(), modeling_llama.apply_rotary_pos_emb
    enabled = enable(model, ["liger_kernel"], probe, loss, precision="fp32", extras=LIGER)
    assert enabled.on == on
    assert fake.asked == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert (modeling_llama.apply_rotary_pos_emb is rotary) == (not on)
    enabled.switch_off()
    assert modeling_llama.apply_rotary_pos_emb is rotary
    assert "forward" not in vars(model.get_base_model().model.norm)


def test_liger_says_which_models_it_does_not_know(make: Any, probe: Batch, liger: Any) -> None:
    liger(1.0)
    enabled = enable(make("bloom"), ["liger_kernel"], probe, loss, precision="fp32", extras=LIGER)
    assert "OFF: ValueError: Liger has no kernels for a model of type bloom;" in enabled.notes[0]


def test_every_row_says_what_a_person_asks() -> None:
    assert ATTENTION == ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
    for name, extra in EXTRAS.items():
        assert name in extra.flag
        assert extra.does
        assert extra.needs
    assert TOLERANCES.keys() == distributed.DTYPES.keys()
