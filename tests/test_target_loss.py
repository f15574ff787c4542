"""The loss at the targets, held against the whole computation by its definition."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import CASES
from tiny_families import make_family
from torch import nn

from utils import target_loss
from utils.batching import pad
from utils.loading import choose
from utils.models import MODELS, get_model
from utils.proof import IGNORED, Encoded
from utils.target_loss import HeadAtTargets, Shaping, Tile, chunk_rows, tile, token_loss, trained_positions


def rows(*sizes: tuple[int, int]) -> list[Encoded]:
    """Rows of (prompt tokens, answer tokens)."""
    made = []
    for i, (prompt, answer) in enumerate(sizes):
        ids = [5 + (7 * i + 3 * j) % 90 for j in range(prompt + answer)]
        made.append(Encoded(input_ids=ids, labels=[IGNORED] * prompt + ids[prompt:], origin=f"row {i}"))
    return made


BATCH = pad(rows((3, 5), (9, 1), (1, 12), (4, 4)), pad_id=3)


class Sentences(nn.Module):
    """Just enough of a language model: embeddings, a mixing of the past, a head, and what comes after it."""

    def __init__(
        self, *, vocabulary: int = 100, bias: bool = False, cap: float | None = None, twist: float = 1.0
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix = nn.Embedding(vocabulary, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, vocabulary, bias=bias)
        self.cap, self.twist, self.masks = cap, twist, []
        with torch.no_grad():
            self.head.weight.mul_(8)  # so that a cap bites

    @property
    def config(self) -> Any:
        values = {"final_logit_softcapping": self.cap}
        return type("Config", (), {**values, "get_text_config": lambda self: self})()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        self.masks.append(attention_mask)
        hidden = self.mix(self.embed(input_ids)).cumsum(1).tanh()
        logits = self.head(hidden) * self.twist
        logits = torch.tanh(logits / self.cap) * self.cap if self.cap else logits
        return type("Output", (), {"logits": logits})()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def own(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return token_loss(model(input_ids=batch["input_ids"]).logits, batch["labels"])


def assert_equal(model: Any, head: HeadAtTargets, batch: dict[str, torch.Tensor] = BATCH) -> None:
    expected = own(model, batch)
    loss = head.loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found, wanted = gradients(model, loss), gradients(model, own(model, batch))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), name


@pytest.fixture(params=[(1, 1), (3, 2), (2, 1000), (1000, 1000)], ids=lambda size: "{} by {} a tile".format(*size))
def chunks(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_loss, "chunk_rows", lambda vocabulary, device: request.param[0])
    monkeypatch.setattr(target_loss, "tile", lambda vocabulary, device: Tile(*request.param))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
def test_loss_and_gradients_are_those_of_the_whole_computation(bias: bool, cap: float | None, frozen: bool) -> None:
    model = Sentences(bias=bias, cap=cap)
    model.head.requires_grad_(not frozen)
    assert_equal(model, HeadAtTargets(model))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_batch_without_targets_has_no_loss_and_a_gradient_of_zero(frozen: bool) -> None:
    model = Sentences()
    model.head.requires_grad_(not frozen)
    batch = BATCH | {"labels": torch.full_like(BATCH["labels"], IGNORED)}
    loss = HeadAtTargets(model).loss(model, batch)
    found = gradients(model, loss)
    assert loss.item() == 0
    assert "mix.weight" in found, "every process must have a gradient to average"
    assert not any(gradient.any() for gradient in found.values())


@given(
    targets=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    scale=st.floats(0.1, 30),
    size=st.tuples(st.integers(1, 40), st.integers(1, 50)),
)
@settings(deadline=None, max_examples=30)
def test_large_logits_do_not_overflow(targets: list[int], scale: float, size: tuple[int, int]) -> None:
    torch.manual_seed(len(targets))
    hidden = (torch.randn(len(targets), 8, dtype=torch.float32) * scale).requires_grad_()
    weight, wanted = torch.randn(41, 8) * 10, torch.tensor(targets)
    loss = target_loss._FrozenHeadLoss.apply(hidden, weight, None, wanted, Shaping(), Tile(*size))
    expected = nn.functional.cross_entropy((hidden.double() @ weight.double().T), wanted, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-3)
    (found,) = torch.autograd.grad(loss, hidden)
    (true,) = torch.autograd.grad(expected, hidden)
    assert torch.allclose(found, true.float(), rtol=1e-3, atol=1e-3)


def test_logits_never_outlive_their_chunk() -> None:
    model = Sentences(vocabulary=5000)
    model.head.requires_grad_(False)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        HeadAtTargets(model).loss(model, BATCH)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    own = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in weights]
    assert max(tensor.numel() for tensor in own) < 5000


def test_a_chunk_is_bounded_whatever_the_vocabulary() -> None:
    for vocabulary in (100, 32_000, 250_880):
        for device in ("cpu", "cuda", "mps"):
            count = chunk_rows(vocabulary, device)
            most = target_loss.CHUNK_BYTES.get(device, target_loss.CHUNK_BYTES["cuda"])
            assert count == target_loss.FEWEST_ROWS or 4 * count * vocabulary <= most
            of_frozen = tile(vocabulary, device)
            assert 4 * of_frozen.rows * of_frozen.columns <= most
            assert of_frozen.rows >= target_loss.TILE_ROWS
            assert of_frozen.columns <= vocabulary
    assert chunk_rows(250_880, "cpu") < chunk_rows(32_000, "cpu")
    assert chunk_rows(32_000, "cuda") > 4 * chunk_rows(32_000, "cpu"), "a GPU is not filled by what fits a CPU's cache"


def test_padding_need_not_be_told_to_a_causal_model() -> None:
    model = Sentences()
    told, untold = HeadAtTargets(model), HeadAtTargets(model, needs_mask=False)
    assert untold.loss(model, BATCH).item() == pytest.approx(told.loss(model, BATCH).item(), rel=1e-6)
    assert [mask is None for mask in model.masks] == [True, False]


def test_a_known_change_of_the_logits_is_proved_and_chunked() -> None:
    model = Sentences(cap=2.0)
    head = HeadAtTargets(model)
    assert head.prove(model, BATCH, tolerance=1e-4) is None
    assert head.outside


def test_an_unknown_change_of_the_logits_is_found_and_left_to_the_model() -> None:
    model = Sentences(twist=0.5)
    model.train()
    head = HeadAtTargets(model)
    note = head.prove(model, BATCH, tolerance=1e-4)
    assert note is not None
    assert "the model changes its logits in a way that is not known here" in note
    assert model.training
    assert_equal(model, head)


def test_a_model_whose_head_does_more_than_it_can_be_asked_is_refused() -> None:
    class Odd(Sentences):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
            output = super().forward(input_ids, attention_mask)
            if output.logits.dim() == 2:
                output.logits = output.logits * 3
            return output

    model = Odd(twist=0.5)
    with pytest.raises(
        ValueError, match="the loss at the trained positions is .* cannot be trained here; please report"
    ):
        HeadAtTargets(model).prove(model, BATCH, tolerance=1e-4)


@pytest.mark.parametrize(("name", "number"), CASES, ids=str)
def test_every_family_has_its_own_loss(name: str, number: int, tmp_path: Path) -> None:
    base = choose(
        str(make_family(name, tmp_path / "base", number)), MODELS[name], precision="fp32", quantization_bit=16
    )
    if MODELS[name].attention == "prefix":
        pytest.skip("its rows need marks: tests/test_families.py trains it")
    model = base.load()
    head = HeadAtTargets(model, needs_mask=base.needs_mask)
    assert head.prove(model, BATCH, tolerance=1e-4) is None
    assert head.outside, "every family of the registry takes the cheaper way"
    model.get_input_embeddings().requires_grad_(True)
    masked = token_loss(
        model(input_ids=BATCH["input_ids"], attention_mask=BATCH["attention_mask"]).logits, BATCH["labels"]
    )
    assert head.loss(model, BATCH).item() == pytest.approx(masked.item(), rel=1e-5)


def test_a_quantised_base_has_its_own_loss(llama_base: Path) -> None:
    for bits in (8, 4):
        model = choose(str(llama_base), get_model("llama"), precision="fp32", quantization_bit=bits).load()
        assert HeadAtTargets(model, needs_mask=False).prove(model, BATCH, tolerance=1e-4) is None


def test_where_the_next_token_is_trained() -> None:
    labels = torch.tensor([[IGNORED, 4, IGNORED, 6]])
    assert trained_positions(labels).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
def test_the_head_computes_in_the_arithmetic_of_the_forward_pass_that_ends_before_it(frozen: bool) -> None:
    """accelerate's autocast wraps the forward pass alone; a head in 16 bits is then given what a norm in float32 made."""

    class Wrapped(Sentences):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(input_ids, attention_mask)

    model = Wrapped()
    model.head.to(torch.bfloat16).requires_grad_(not frozen)
    loss = HeadAtTargets(model).loss(model, BATCH)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(own(model, BATCH).item(), rel=1e-2)
    assert gradients(model, loss)["mix.weight"].abs().sum() > 0


def test_adapters_in_16_bits_train_where_norms_are_in_float32(bloom_base: Path) -> None:
    model = choose(str(bloom_base), get_model("bloom"), precision="bf16", quantization_bit=16).load()
    head = HeadAtTargets(model, needs_mask=False)
    forward = model.forward

    def autocast(*values: Any, **named: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(*values, **named)

    model.forward = autocast
    assert head.prove(model, BATCH, tolerance=1e-2) is None
