from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import RECORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import HEADS, TINY, empty_model
from tiny_families import CASES, make_family

from utils import packing
from utils.adapters import attach_lora
from utils.encode import encode_rows
from utils.loading import choose
from utils.methods import METHODS
from utils.models import MODELS, get_model
from utils.packing import bins, flattened, in_one_line, isolation_error, packed
from utils.proof import IGNORED, Encoded
from utils.readers import Row
from utils.target_loss import token_loss
from utils.templates import get_template

LORA = METHODS["lora"]
ATTENTIONS = ("sdpa", "eager")


def row(ids: list[int], labels: list[int] | None = None) -> Encoded:
    return Encoded(input_ids=ids, labels=[IGNORED, *ids[1:]] if labels is None else labels, origin="row")


@given(lengths=st.lists(st.integers(1, 40), max_size=60), more=st.integers(0, 60), seed=st.integers())
@settings(deadline=None, derandomize=True)
def test_bins_hold_every_row_once_and_none_is_too_full(lengths: list[int], more: int, seed: int) -> None:
    capacity = max(lengths, default=1) + more
    rows = list(range(len(lengths)))
    found = bins(rows, lengths, capacity)
    assert sorted(itertools.chain(*found)) == rows
    filled = [sum(lengths[i] for i in one) for one in found]
    assert all(0 < tokens <= capacity for tokens in filled)
    # No two bins would go into one: best fit opens a bin only for a row that fits into none.
    assert all(a + b > capacity for a, b in itertools.combinations(filled, 2))
    random.Random(seed).shuffle(rows)
    assert bins(rows, lengths, capacity) == found


def test_a_row_goes_where_it_leaves_least_space() -> None:
    # 7 and 6 open bins of 10; 4 fits the second to the last token, 3 then the first.
    assert bins([0, 1, 2, 3], [3, 7, 4, 6], 10) == [[1, 0], [3, 2]]
    assert bins([5], {5: 9}, 9) == [[5]]
    assert bins([], [], 9) == []


def test_rows_that_a_bin_cannot_hold_are_refused_by_number() -> None:
    with pytest.raises(ValueError, match=r"^--packing: row 2 has 11 tokens and a bin holds 10: raise --max_tokens_per"):
        bins([1, 2], [5, 5, 11], 10)


def test_many_rows_are_packed_at_once_and_closely() -> None:
    numbers = random.Random(0)
    lengths = [min(512, int(numbers.lognormvariate(4.9, 0.5)) + 1) for _ in range(50_000)]
    found = bins(range(len(lengths)), lengths, 2048)
    assert sum(lengths) / (2048 * len(found)) > 0.97


def test_positions_begin_anew_and_nothing_is_trained_across_rows() -> None:
    first, second = row([11, 12, 13]), row([21, 22], [21, 22])  # the second's first token is marked as trained
    batch = packed([[first, second], [row([31])]], pad_id=0)
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22], [31, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 12, 13, IGNORED, 22], [IGNORED] * 5]
    assert all(column.dtype == torch.int64 for column in batch.values())
    line = flattened([[first, second], [row([31])]], pad_id=0)
    assert line["input_ids"].tolist() == [[11, 12, 13, 21, 22, 31]]
    assert line["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0]]


def test_flash_attention_gets_one_line() -> None:
    """Of several lines transformers makes no boundaries."""
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    rows = [[row([5, 6, 7]), row([8, 9])], [row([5, 6]), row([7, 8, 9])]]
    several, one = packed(rows, 0)["position_ids"], flattened(rows, 0)["position_ids"]
    assert not _is_packed_sequence(several, batch_size=2)
    assert _is_packed_sequence(one, batch_size=1)
    names = ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2")
    assert [in_one_line(name) for name in (*names, *ATTENTIONS, "flex_attention")] == [True] * 3 + [False] * 3


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """How a case's checkpoint is loaded; the checkpoint is made once."""
    root = tmp_path_factory.mktemp("families")
    made = cache(lambda case: make_family(case[0], root / f"{case[0]}-{case[1]}", case[1]))

    def base(case: tuple[str, int], precision: Any = "fp32", bits: int = 16) -> Any:
        return choose(str(made(case)), get_model(case[0]), precision=precision, quantization_bit=bits)

    return base


def encoded(base: Any) -> list[Encoded]:
    """CJK, emoji and English in the family's own prompt, and a row with one trained token."""
    records = [Row(record=RECORDS[i], origin="row") for i in (1, 4, 5, 0)]
    rows, _, _ = encode_rows(
        records, get_template(base.spec.template), base.tokenizer(), cutoff_len=1024, truncation="drop"
    )
    assert len(rows) == len(records)
    ids = rows[0].input_ids[:6]
    return [*rows, row(ids, [IGNORED] * 5 + ids[5:])]


def attentions(model: Any) -> list[str]:
    """The implementations that a model takes, of those that run anywhere; it is left with the last of them."""
    taken = []
    for name in ATTENTIONS:
        try:
            model.set_attn_implementation(name)
        except ValueError:
            continue
        if model.config._attn_implementation not in taken:
            taken.append(model.config._attn_implementation)
    return taken


def loss_and_gradients(model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        given = {name: column for name, column in batch.items() if name != "labels"}
        loss = token_loss(model(**given, use_cache=False).logits, batch["labels"])
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def alone(one: Encoded) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([one.input_ids]), "labels": torch.tensor([one.labels])}


@pytest.mark.parametrize(
    "case", [c for c in CASES if get_model(c[0]).attention == "causal"], ids=lambda c: f"{c[0]}-{c[1]}"
)
def test_packed_rows_have_the_loss_and_gradients_of_the_same_rows_alone_or_are_refused(
    case: tuple[str, int], base_of: Any
) -> None:
    base = base_of(case)
    model = attach_lora(base.load(), base.spec.lora_target_modules, r=2, alpha=4, dropout=0.0)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    rows = encoded(base)
    pad_id, lengths = base.tokenizer().pad_token_id, [len(one.input_ids) for one in rows]
    filled = [[rows[i] for i in part] for part in bins(range(len(rows)), lengths, max(lengths) + lengths[-1] + 40)]
    assert max(map(len, filled)) > 1
    separate, gradients = loss_and_gradients(model, [alone(one) for one in rows])
    for attention in attentions(model.get_base_model()):
        model.get_base_model().set_attn_implementation(attention)
        found = isolation_error(model, rows, pad_id)
        known = packing.refusal(base.spec, base.config(), LORA, attention=attention, device_type="cpu")
        assert (found is None) == (known is None), (attention, found, known)
        for batch in (packed(filled, pad_id), flattened(filled, pad_id)):
            loss, own = loss_and_gradients(model, [batch])
            off = max(abs(loss / separate - 1), float((own - gradients).norm() / gradients.norm()))
            assert (off < 1e-5) == (found is None), (attention, off)


def variable_length(
    module: Any, query: Any, key: Any, value: Any, _: Any, *, scaling: float | None = None, **given: Any
) -> Any:
    """What a flash kernel computes, and when transformers gives it boundaries: of positions, for a batch of one line."""
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    positions: Any = given.get("position_ids")
    lines, heads, length, width = query.shape
    key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
    seen = torch.ones(lines, 1, length, length, dtype=torch.bool).tril()
    if window := given.get("sliding_window"):
        seen = seen.triu(1 - window)
    if _is_packed_sequence(positions, lines):
        number = (positions == positions.min()).cumsum(-1)
        seen = seen & (number[:, None, :, None] == number[:, None, None, :])
    scores = query @ key.transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
    if cap := given.get("softcap"):
        scores = cap * torch.tanh(scores / cap)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2), None


# The others have code of their own for flash attention, or none.
@pytest.mark.parametrize(
    "case", [c for c in CASES if c[0] not in ("bloom", "chatglm", "falcon", "moss")], ids=lambda c: f"{c[0]}-{c[1]}"
)
def test_a_kernel_of_variable_lengths_keeps_the_rows_of_one_line_apart(
    case: tuple[str, int], base_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("variable_length", variable_length)
    base = base_of(case)
    model, rows, pad_id = base.load(), encoded(base), base.tokenizer().pad_token_id
    model.set_attn_implementation("variable_length")
    assert "looks at the rows before" in str(isolation_error(model, rows, pad_id))
    monkeypatch.setattr(packing, "in_one_line", lambda _: True)
    assert isolation_error(model, rows, pad_id) is None


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_row_alone_in_its_bin_is_that_row(attention: str) -> None:
    model = tiny("MistralConfig", **WINDOW, attn_implementation=attention)
    for one in (row([5, 6, 30, 31, 32, 33, 7]), row([8, 9])):
        loss, gradients = loss_and_gradients(model, [packed([[one]], 3)])
        expected, reference = loss_and_gradients(model, [alone(one)])
        assert loss == expected
        assert gradients.any()
        assert torch.equal(gradients, reference)


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 16), ("fp32", 8), ("bf16", 8), ("bf16", 4)])
@pytest.mark.parametrize(
    "case", [("moss", 0), ("chatglm2", 0), ("qwen", 0), ("gemma", 1), ("bloom", 0), ("opt", 0)], ids=lambda c: c[0]
)
def test_the_proof_finds_the_same_in_every_precision(case: tuple[str, int], precision: str, bits: int, base_of: Any) -> None:  # fmt: skip
    base = base_of(case, precision, bits)
    found = isolation_error(base.load(), encoded(base), base.tokenizer().pad_token_id)
    assert (found is None) == (case[0] not in ("bloom", "opt")), found


WINDOW, TWO = {**HEADS, "num_hidden_layers": 2, "sliding_window": 4}, {**TINY, "num_hidden_layers": 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
OTHERS: Mapping[str, tuple[tuple[str, Mapping[str, Any]], bool]] = {
    "a window shorter than the rows": (("MistralConfig", WINDOW), True),
    "windows, and caps on scores": (("Gemma2Config", WINDOW), True),
    "windows in some layers": (("Gemma3TextConfig", WINDOW), True),
    "learned positions": (("GPT2Config", {}), True),
    "one head of keys": (("GPTBigCodeConfig", {}), True),
    "experts": (("MixtralConfig", {**WINDOW, "num_local_experts": 4}), True),
    "ALiBi": (("FalconConfig", {**TWO, "alibi": True}), False),
    "ALiBi by default": (("MptConfig", {"d_model": 16, "n_heads": 2, "n_layers": 2}), False),
    "a recurrent state": (("MambaConfig", MAMBA), False),
    "a mask without positions": (("BioGptConfig", {**TWO, "intermediate_size": 16}), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_the_proof_tells_what_keeps_rows_apart_from_what_does_not(kind: str) -> None:
    (config_class, values), isolates = OTHERS[kind]
    model = tiny(config_class, **values)
    numbers = random.Random(0)
    rows = [row([numbers.randrange(4, 48) for _ in range(size)]) for size in (30, 20, 12, 9)]
    for attention in attentions(model):
        model.set_attn_implementation(attention)
        found = isolation_error(model, rows, 3)
        assert (found is None) == isolates, (attention, found)


def tiny(name: str = "GPT2Config", **more: Any) -> Any:
    torch.manual_seed(0)
    return empty_model(name, {**GPT, **more, "vocab_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3})


ROWS = [row([7, 9, 11, 8]), row([5, 6, 30]), row([40, 41, 42, 43, 44])]


def test_a_leak_is_told_with_the_model_the_attention_and_the_way_out() -> None:
    model = tiny("BloomConfig", hidden_size=16)
    with pytest.raises(ValueError, match=r"^--packing: bloom with eager attention looks at the rows before: .* logits differ by \d.*; batches of rows"):  # fmt: skip
        packing.require_isolation(model, ROWS, 3)
    packing.require_isolation(tiny(), ROWS, 3)


def test_positions_that_do_not_begin_at_zero_are_found() -> None:
    model = tiny()
    forward = model.forward
    model.forward = lambda position_ids=None, **given: forward(
        position_ids=None if position_ids is None else position_ids + 3, **given
    )
    error = isolation_error(model, ROWS, 3)
    assert error is not None
    assert "gpt2 with sdpa attention does not count each row's positions from 0: its logits are" in error


def test_attention_over_the_whole_line_is_found() -> None:
    """Also where positions restart and only the mask is missing."""
    model = tiny()
    forward = model.forward
    model.forward = lambda input_ids, **given: forward(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **given
    )
    assert "looks at the rows before" in str(isolation_error(model, ROWS, 3))


def test_a_kernel_that_mixes_the_batch_is_no_leak() -> None:
    """Rows in lines of their own have it, too."""
    model = tiny()
    model.transformer.wte.register_forward_hook(lambda _, __, found: found + found[:1, :1] / 9)
    assert isolation_error(model, ROWS, 3) is None


@pytest.mark.parametrize("rows", [[row([7, 9, 8])], [row([7])], [row([3]), row([3])], [row([0])], [row([5, 5, 5])]])
@pytest.mark.parametrize("pad_id", [3, 0])
def test_the_proof_needs_no_more_than_a_row(rows: list[Encoded], pad_id: int) -> None:
    assert isolation_error(tiny(), rows, pad_id) is None
    assert "looks at the rows before" in str(isolation_error(tiny("BloomConfig", hidden_size=16), rows, pad_id))


def test_the_proof_leaves_the_model_as_it_was() -> None:
    model = tiny(resid_pdrop=0.5, embd_pdrop=0.5).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert isolation_error(model, ROWS, 3) is None  # with dropout no two passes would agree
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_proof_leaves_8_bit_weights_as_they_were(base_of: Any) -> None:
    base = base_of(("qwen", 0), "fp32", 8)
    model, rows = attach_lora(base.load(), base.spec.lora_target_modules, r=2, alpha=4, dropout=0.0), encoded(base)
    loss, gradients = loss_and_gradients(model, [packed([rows], 0)])
    assert isolation_error(model, rows, 0) is None
    again, as_well = loss_and_gradients(model, [packed([rows], 0)])
    assert loss == again
    assert gradients.any()
    assert torch.equal(gradients, as_well)


def test_the_proof_allows_what_the_arithmetic_rounds() -> None:
    model = tiny()
    forward = model.forward

    def rounded(position_ids: Any = None, **given: Any) -> Any:
        logits = forward(position_ids=position_ids, **given).logits.float()
        return SimpleNamespace(logits=logits if position_ids is None else logits * 1.01)

    model.forward = rounded
    assert "its logits are 1.0% off those it has alone" in str(isolation_error(model, ROWS, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert isolation_error(model, ROWS, 3) is None
        assert "looks at the rows before" in str(isolation_error(tiny("BloomConfig", hidden_size=16), ROWS, 3))
    assert isolation_error(model.bfloat16(), ROWS, 3) is None


@pytest.mark.parametrize(
    ("family", "config", "method", "attention", "device", "reason"),
    [
        ("chatglm", {}, "lora", "sdpa", "cpu", "a prompt of this family sees itself in both directions"),
        ("bloom", {"model_type": "bloom"}, "lora", "eager", "cuda", "bloom has ALiBi for positions"),
        ("auto", {"model_type": "mpt"}, "full", "eager", "cpu", "mpt has ALiBi"),
        ("falcon", {"model_type": "falcon", "alibi": True}, "lora", "flash_attention_2", "cuda", "falcon has ALiBi"),
        ("falcon", {"model_type": "falcon"}, "lora", "sdpa", "cuda", "sdpa attention of falcon does not ask where a row"),
        ("auto", {"model_type": "opt"}, "lora", "eager", "cpu", "eager attention of opt does not ask where a row begins"),
        ("baichuan_13b", {"model_type": "baichuan"}, "lora", "eager", "cuda", "the code of the checkpoint's own repository"),
        ("llama", {"model_type": "llama"}, "prompt", "sdpa", "cpu", "prompt tuning puts its virtual tokens before a line"),
        ("llama", {"model_type": "llama"}, "p_tuning", "sdpa", "cpu", "P-tuning puts its virtual tokens"),
        ("llama", {"model_type": "llama"}, "prefix", "sdpa", "cpu", "prefix tuning puts its virtual tokens"),
        ("llama", {"model_type": "llama"}, "lora", "flex_attention", "cpu", "flex attention ends the interpreter on CPU"),
    ],
)  # fmt: skip
def test_what_is_known_is_refused_before_weights_are_loaded(
    family: str, config: Mapping[str, Any], method: str, attention: str, device: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"^--packing: {reason}.*: leave --packing out; batches") as error:
        packing.require_packable(
            MODELS[family], SimpleNamespace(**config), METHODS[method], attention=attention, device_type=device
        )
    assert "\n" not in str(error.value)


def test_the_rest_is_left_to_the_proof() -> None:
    config = SimpleNamespace(model_type="llama")
    for method in ("lora", "dora", "ia3", "full"):
        packing.require_packable(MODELS["llama"], config, METHODS[method], attention="sdpa", device_type="cpu")
    packing.require_packable(MODELS["llama"], config, LORA, attention="flex_attention", device_type="cuda")
