"""How far two models lie apart: in what they answer, and in what a single layer answers.

Knows: probe prompts, logits, and computing in fp32 on weights that are stored in 16 bits. Does not know how a model is
loaded, or why two of them should be alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from utils.encode import encode_prompt
from utils.templates import Template

# Ours, in both languages, with and without an input; short, for every model has to hold them.
QUESTIONS: tuple[Mapping[str, str], ...] = (
    {"instruction": "Name three fruits that grow in cold countries.", "input": ""},
    {"instruction": "Sort these words by length.", "input": "river, sea, mountain, hill"},
    {"instruction": "A shelf holds 4 boxes of 6 pens. 5 pens are gone. How many are left? Reason first.", "input": ""},
    {"instruction": "Write a function in Python that reverses a string 🙂.", "input": ""},
    {"instruction": "用一句话解释什么是光合作用。", "input": ""},
    {"instruction": "把下面的句子翻译成英文。", "input": "明天如果不下雨，我们就去爬山。"},
    {"instruction": "小明有12颗糖，给了妹妹5颗，又买了3颗，现在有几颗？请一步一步地推理。", "input": ""},
    {"instruction": "Translate into Chinese: the library closes at nine.", "input": ""},
)
POSITIONS = 16
"""The last ones of a prompt whose logits are compared: they have seen all before them, and a vocabulary of 150,000
makes every one cost 0.6 MB."""
COLUMNS = 16
"""Inputs of a layer that are compared, spread over its width."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What a model answers, measured against another one on the same prompts."""

    max_logit_difference: float
    max_logit: float
    """Largest absolute logit of the reference."""
    mean_kl: float
    """Mean over positions of KL(reference || found) of the next token, nats."""
    max_kl: float
    argmax_agreement: float
    """Share of positions where both find the same token likeliest."""
    positions: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.max_logit_difference:.1e} of {self.max_logit:.1f}, KL {self.mean_kl:.1e} "
            f"(at most {self.max_kl:.1e}), likeliest token the same at {self.argmax_agreement:.1%} of {self.positions}"
        )


def probe_prompts(template: Template, tokenizer: Any) -> list[list[int]]:
    """The ids of `QUESTIONS` as they are asked in `template`."""
    return [encode_prompt(question, template, tokenizer) for question in QUESTIONS]


@torch.no_grad()
def probe_logits(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits (float32, CPU) at the last `POSITIONS` of each prompt, (positions, vocabulary); one prompt at a time, so
    no padding is involved. The model is left in eval mode."""
    model.eval()
    found = []
    for ids in prompts:
        input_ids = torch.tensor([list(ids)], device=model.device)
        logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
        found.append(logits[0, -min(POSITIONS, len(ids)) :].float().cpu())
    return torch.cat(found)


def divergence(reference: torch.Tensor, found: torch.Tensor) -> Divergence:
    """`found` against `reference`, both logits of shape (positions, vocabulary)."""
    rows = [_kl(expected, given) for expected, given in zip(reference.split(16), found.split(16), strict=True)]
    kl = torch.cat(rows)
    return Divergence(
        max_logit_difference=(found - reference).abs().max().item(),
        max_logit=reference.abs().max().item(),
        mean_kl=kl.mean().item(),
        max_kl=kl.max().item(),
        argmax_agreement=(reference.argmax(-1) == found.argmax(-1)).float().mean().item(),
        positions=len(reference),
    )


def _kl(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(reference || found) of each row, in float64: where two models are alike, fp32 leaves only its own noise."""
    expected, given = reference.double().log_softmax(-1), found.double().log_softmax(-1)
    return (expected.exp() * (expected - given)).sum(-1).clamp(min=0)


@contextmanager
def computing_in_fp32(model: nn.Module) -> Iterator[None]:
    """Every module computes in fp32 on its weights as they are stored; only the one that runs is held twice. So what is
    measured is the weights, not the rounding of each activation, and a model need not fit into memory in fp32. Not for
    weights in 8 or 4 bits."""
    stored: dict[nn.Parameter, torch.Tensor] = {}

    def widen(module: nn.Module, _: Any) -> None:
        for parameter in _own(module):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                stored[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def narrow(module: nn.Module, *_: Any) -> None:
        for parameter in _own(module):
            if parameter in stored:
                parameter.data = stored.pop(parameter)

    handles = []
    for module in model.modules():
        if any(True for _ in _own(module)):
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(narrow, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def checksums(model: nn.Module) -> dict[str, int]:
    """CRC-32 of the bytes of each tensor of the state."""
    return {
        name: zlib.crc32(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        for name, tensor in model.state_dict().items()
    }


@torch.no_grad()
def response(layer: nn.Module, base: Any) -> torch.Tensor:
    """What `layer` answers to `COLUMNS` of its inputs one at a time (float32, CPU), after what it answers to none,
    (1 + columns, outputs): its bias, and columns of its weight with the bias. An embedding answers zeros and then rows
    of its weight. `base` is the layer itself, without an adapter."""
    device = base.weight.device
    if isinstance(base, nn.Embedding):
        rows = layer(_spread(base.num_embeddings).to(device)).float().cpu()
        return torch.cat([torch.zeros_like(rows[:1]), rows])
    width = getattr(base, "in_features", base.weight.shape[0])  # GPT-2's Conv1D is (in, out) and does not say it
    chosen = _spread(width)
    inputs = torch.zeros(1 + len(chosen), width, device=device)
    inputs[torch.arange(len(chosen), device=device) + 1, chosen.to(device)] = 1
    return layer(inputs).float().cpu()


def _spread(width: int) -> torch.Tensor:
    return torch.linspace(0, width - 1, min(COLUMNS, width)).round().long().unique()


def beyond_rounding(expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> float:
    """How far `found` (a `response`) lies from `expected`, as a multiple of what rounding weight and bias to `dtype`
    explains: up to 1 it is rounding.

    A stored number is within half a unit in its last place, `eps / 2` of itself. 1e-5 of the largest is left for the
    sums in fp32 on either side.
    """
    bias = expected[:1]
    allowed = torch.finfo(dtype).eps / 2 * ((expected - bias).abs() + bias.abs()) + 1e-5 * expected.abs().max() + 1e-8
    return ((found - expected).abs() / allowed).max().item()
