"""The loss of a causal language model at its trained positions alone.

Knows: labels, hidden states, and heads that turn one into the other. Does not know batches' files, steps or processes.

The logits of a prompt are never used, and with a large vocabulary they cost most of the memory and much of the time
(BLOOM: 250,880 numbers a token). Here the head sees the trained positions only, some at a time, and where it is frozen
the gradient is computed beside the loss, a tile of positions and vocabulary after the other, so that no logits outlive
their tile (compare Wijmans et al. 2024, Cut Your Losses, arXiv 2411.09009; the running maximum is that of Milakov and
Gimelshein 2018, Online normalizer calculation for softmax, arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from utils.proof import IGNORED

CHUNK_BYTES: Mapping[str, int] = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}
"""Device → float32 logits at a time: few enough to stay in a CPU's cache (docs/log.md), many enough to fill a GPU."""
TILE_ROWS = 512
"""Positions of a tile: products of fewer are slow (docs/log.md). Where the whole vocabulary would be too many logits
for them, a tile has a part of it."""
FEWEST_ROWS = 16
"""Positions of a chunk of a trained head, which takes the whole vocabulary at once, however large that is."""


def trained_positions(labels: torch.Tensor) -> torch.Tensor:
    """Where the next token is trained: bool (rows, length), of `labels` (rows, length)."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED) != IGNORED


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy (float32, scalar) of the trained tokens; 0 with a gradient where nothing is trained.

    Args:
        logits: (rows, length, vocabulary).
        labels: (rows, length); a position's logits predict the label of the next.
    """
    return _summed(logits[trained_positions(labels)], _targets(labels))


class Tile(NamedTuple):
    """How many logits of a frozen head exist at a time."""

    rows: int
    """Positions."""
    columns: int
    """Pieces of the vocabulary."""


def tile(vocabulary: int, device: str) -> Tile:
    """For a frozen head with `vocabulary` pieces."""
    logits = _logits_at_a_time(device)
    columns = max(1, min(vocabulary, logits // TILE_ROWS))
    return Tile(rows=max(1, logits // columns), columns=columns)


def chunk_rows(vocabulary: int, device: str) -> int:
    """Positions of which a trained head's logits exist at a time."""
    return max(FEWEST_ROWS, _logits_at_a_time(device) // vocabulary)


def _logits_at_a_time(device: str) -> int:
    return CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // 4


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """What a model does to the logits that its head gives: cap · tanh(scale · logits / cap), or a part of it."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> Shaping:
        """As a configuration says: Cohere's and Granite's factors, and the caps of Gemma 2 (arXiv 2408.00118)."""
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(scale=scale, cap=getattr(config, "final_logit_softcapping", None))

    def applied(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` after it."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def slope(self, shaped: torch.Tensor) -> torch.Tensor | None:
        """Its derivative where it gave `shaped`; None where that is `scale` everywhere."""
        return None if self.cap is None else (1.0 - (shaped / self.cap) ** 2) * self.scale


class HeadAtTargets:
    """Computes the loss of a model, which may be wrapped, with its output head at the trained positions alone.

    It hooks into the head, so no model's code changes: during `loss` the head is handed no position at all, and what it
    would have been handed is kept. What some models do to their logits afterwards is known for some (`Shaping`), and
    `prove` finds out whether it is; where it is not, the head runs inside the model, on all trained positions at once.

    Args:
        needs_mask: the model must be told which positions are padding. A causal model need not be: padding stands
            behind a row's tokens, which see only what is before them.
    """

    def __init__(self, model: Any, *, needs_mask: bool = True) -> None:
        self._head = model.get_output_embeddings()
        self._shaping = Shaping.of(model.config.get_text_config())
        self._needs_mask, self.outside = needs_mask, True
        self._positions: torch.Tensor | None = None
        self._captured: torch.Tensor | None = None
        self._autocast: torch.dtype | None = None
        self._head.register_forward_pre_hook(self._select)

    def loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`token_loss` of `model` on a batch of `batching`."""
        targets = _targets(batch["labels"])
        logits = self._run(model, batch)
        if not self.outside:
            return _summed(logits, targets)
        captured, self._captured = self._captured, None
        assert captured is not None, "the model did not call its output head"
        # accelerate's autocast ends with the model's forward pass, and the head belongs to that.
        with torch.autocast(captured.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            return self._chunked(captured, targets)

    def logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The model's own logits where the next token is trained: (those positions, vocabulary), row after row."""
        was, self.outside = self.outside, False
        try:
            return self._run(model, batch)
        finally:
            self.outside = was

    @torch.no_grad()
    def prove(self, model: Any, batch: Mapping[str, torch.Tensor], *, tolerance: float) -> str | None:
        """Compares `loss` with that of the model's own logits on `batch`, in eval mode. Where they differ by more than
        `tolerance` (relative), the head runs inside the model from now on; returns what there is to say, if anything.

        Raises:
            ValueError: not even that gives the model's own loss.
        """
        was_training = model.training
        model.eval()
        try:
            given = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits = model(**given).logits[:, -batch["labels"].shape[1] :]  # behind virtual tokens
            own = token_loss(logits, batch["labels"]).item()
            ours = self.loss(model, batch).item()
            if abs(ours - own) <= tolerance * abs(own):
                return None
            self.outside = False
            inside = self.loss(model, batch).item()
        finally:
            model.train(was_training)
        if abs(inside - own) <= tolerance * abs(own):
            return (
                f"the model changes its logits in a way that is not known here (loss {own:.6g}, and {ours:.6g} from "
                "its head alone): its logits are computed by itself, for all trained positions of a micro-batch at once"
            )
        raise ValueError(
            f"the loss at the trained positions is {inside:.6g}, that of the model's own logits {own:.6g}: this model "
            "cannot be trained here; please report it with its --model_name_or_path"
        )

    def _run(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        names = ["input_ids", "position_ids", *(["attention_mask"] if self._needs_mask else [])]
        self._positions = trained_positions(batch["labels"])
        try:
            return model(**{name: batch[name] for name in names if name in batch}).logits
        finally:
            self._positions = None

    def _select(self, head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._positions is None:
            return None
        own = inputs[0][:, -self._positions.shape[1] :]  # virtual tokens stand before those of the batch
        chosen = own[self._positions]
        if not self.outside:
            return (chosen, *inputs[1:])
        self._captured = chosen
        device = chosen.device.type
        self._autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return (own[:, :0], *inputs[1:])

    def _chunked(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        vocabulary, device = self._head.weight.shape[0], hidden.device.type
        if type(self._head) is nn.Linear and not any(p.requires_grad for p in self._head.parameters()):
            weight, bias = self._head.weight, self._head.bias
            return _FrozenHeadLoss.apply(hidden, weight, bias, targets, self._shaping, tile(vocabulary, device))  # pyright: ignore[reportReturnType]
        rows = chunk_rows(vocabulary, device)
        losses = [
            checkpoint(self._of_chunk, hidden[start : start + rows], targets[start : start + rows], use_reentrant=False)
            for start in range(0, max(1, len(hidden)), rows)
        ]
        return torch.stack(losses).sum()  # pyright: ignore[reportArgumentType]

    def _of_chunk(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _summed(self._shaping.applied(self._head(hidden).float()), targets)


def _targets(labels: torch.Tensor) -> torch.Tensor:
    return labels[:, 1:][labels[:, 1:] != IGNORED]


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed cross-entropy of a frozen head, and the gradient of the hidden states, tile by tile.

    With z the logits less their largest, Z = exp(z), s = ΣZ and t the target: loss = log s - z_t, and the gradient of
    the hidden states is Z·W / s - W_t, so neither probabilities nor the one-hot target are ever made. The largest is
    known at the end only: where a tile has a larger one, what was summed so far is made smaller.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        shaping: Shaping,
        size: Tile,
    ) -> torch.Tensor:
        """`hidden` (positions, width), `weight` (vocabulary, width), `targets` (positions) → float32 scalar."""
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        blocks = max(1, -(-len(hidden) // size.rows))
        rows = -(-len(hidden) // blocks)  # blocks of like size: a small last one would be slow
        buffer = torch.empty(rows * min(size.columns, len(weight)), dtype=kind, device=hidden.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), max(1, rows)):
                of = slice(start, start + rows)
                block = _Block(hidden[of].to(kind), targets[of, None], wants_gradient=gradient is not None)
                for first in range(0, len(weight), size.columns):
                    part = weight[first : first + size.columns].to(kind)
                    of_bias = None if bias is None else bias[first : first + size.columns].to(kind)
                    block.add(part, of_bias, first, shaping, buffer)
                total += block.loss()
                if gradient is not None:
                    gradient[of] = block.gradient(weight)
        ctx.gradient, ctx.dtype = gradient, hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        """The kept gradient times that of the loss; for the hidden states alone."""
        return (ctx.gradient * grad_outputs[0]).to(ctx.dtype), None, None, None, None, None


class _Block:
    """Some positions, whose logits come a part of the vocabulary after the other.

    Args:
        hidden: (positions, width).
        targets: (positions, 1).
    """

    def __init__(self, hidden: torch.Tensor, targets: torch.Tensor, *, wants_gradient: bool) -> None:
        self._hidden, self._targets = hidden, targets
        numbers = {"dtype": torch.float32, "device": hidden.device}
        self._largest = torch.full(targets.shape, -torch.inf, **numbers)
        self._sums, self._at_target = torch.zeros(targets.shape, **numbers), torch.zeros(targets.shape, **numbers)
        self._slope_at_target: torch.Tensor | float = torch.zeros(targets.shape, **numbers)
        self._pulled = torch.zeros(hidden.shape, **numbers) if wants_gradient else None

    def add(
        self, weight: torch.Tensor, bias: torch.Tensor | None, first: int, shaping: Shaping, buffer: torch.Tensor
    ) -> None:
        """The pieces from number `first` on: `weight` (pieces, width), `bias` (pieces). `buffer` is written over."""
        made = buffer[: len(self._hidden) * len(weight)].view(len(self._hidden), len(weight))
        if bias is None:
            torch.mm(self._hidden, weight.t(), out=made)
        else:
            torch.addmm(bias, self._hidden, weight.t(), out=made)
        logits = shaping.applied(made.float())
        here = self._targets - first
        inside, here = (here >= 0) & (here < len(weight)), here.clamp(0, len(weight) - 1)
        self._at_target = torch.where(inside, logits.gather(1, here), self._at_target)
        slope = shaping.slope(logits) if self._pulled is not None else None
        if slope is None:
            self._slope_at_target = shaping.scale
        else:
            self._slope_at_target = torch.where(inside, slope.gather(1, here), self._slope_at_target)
        largest = torch.maximum(self._largest, logits.amax(-1, keepdim=True))
        shrunk, self._largest = (self._largest - largest).exp(), largest
        exponentials = logits.sub_(largest).exp_()
        self._sums.mul_(shrunk).add_(exponentials.sum(-1, keepdim=True))
        if self._pulled is None:
            return
        if slope is not None:
            exponentials.mul_(slope)
        elif shaping.scale != 1.0:
            exponentials.mul_(shaping.scale)
        self._pulled.mul_(shrunk)
        if weight.dtype is torch.float32:
            self._pulled.addmm_(exponentials, weight)
        else:
            self._pulled.add_(exponentials.to(weight.dtype) @ weight)

    def loss(self) -> torch.Tensor:
        """Summed over the positions."""
        return (self._sums.log() + self._largest - self._at_target).sum()

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """Of the hidden states (positions, width); `weight` is the whole head's."""
        assert self._pulled is not None
        return self._pulled / self._sums - self._slope_at_target * weight[self._targets[:, 0]].float()
