"""The loss of a causal language model at its trained positions alone.

Knows: labels, hidden states, and heads that turn one into the other. Does not know batches' files, steps or processes.

The logits of a prompt are never used, and with a large vocabulary they cost most of the memory and much of the time
(BLOOM: 250,880 numbers a token). Here the head sees the trained positions only, some at a time, and where it is frozen
the gradient is computed beside the loss, so that no logits outlive their chunk (compare Wijmans et al. 2024, Cut Your
Losses, arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from utils.proof import IGNORED

CHUNK_BYTES: Mapping[str, int] = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}
"""Device → float32 logits of a chunk: few enough to stay in a CPU's cache (docs/log.md), many enough to fill a GPU."""
FEWEST_ROWS = 16
"""Positions of a chunk, however large the vocabulary is."""


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


def chunk_rows(vocabulary: int, device: str) -> int:
    """Positions of which the logits exist at a time."""
    return max(FEWEST_ROWS, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocabulary))


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
        rows = chunk_rows(self._head.weight.shape[0], hidden.device.type)
        if type(self._head) is nn.Linear and not any(p.requires_grad for p in self._head.parameters()):
            weight, bias = self._head.weight, self._head.bias
            return _FrozenHeadLoss.apply(hidden, weight, bias, targets, self._shaping, rows)  # pyright: ignore[reportReturnType]
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
    """Summed cross-entropy of a frozen head, and the gradient of the hidden states, chunk by chunk.

    With z the logits less their largest, Z = exp(z), s = ΣZ and t the target: loss = log s - z_t, and the gradient of
    the hidden states is Z·W / s - W_t, so neither probabilities nor the one-hot target are ever made.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        shaping: Shaping,
        rows: int,
    ) -> torch.Tensor:
        """`hidden` (positions, width), `weight` (vocabulary, width), `targets` (positions) → float32 scalar."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device) if wanted else None
        for start in range(0, len(hidden), rows):
            target = targets[start : start + rows, None]
            logits = nn.functional.linear(hidden[start : start + rows], weight, bias)
            logits = shaping.applied(logits.float())
            slope = shaping.slope(logits) if gradient is not None else None
            slope_at_target = slope.gather(1, target) if slope is not None else shaping.scale
            exponentials = logits.sub_(logits.amax(-1, keepdim=True))
            at_target = exponentials.gather(1, target)
            sums = exponentials.exp_().sum(-1, keepdim=True)
            total += (sums.log() - at_target).sum()
            if gradient is not None:
                if slope is not None:
                    exponentials.mul_(slope)
                pulled = (exponentials.to(weight.dtype) @ weight).float()
                scale = shaping.scale if slope is None else 1.0
                gradient[start : start + rows] = (
                    pulled * (scale / sums) - slope_at_target * weight[target[:, 0]].float()
                )
            del logits, exponentials, slope  # before the next chunk's are made
        ctx.gradient, ctx.dtype = gradient, hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        """The kept gradient times that of the loss; for the hidden states alone."""
        return (ctx.gradient * grad_outputs[0]).to(ctx.dtype), None, None, None, None, None
