"""Looks at every optimizer step before it is taken, with all processes of the run together.

Knows: a step's losses, gradients and rows, and who asks the run to end. Does not know how a step is computed.

A step whose loss or gradient is not finite is not taken: its gradients go, the run goes on with the next, and the step
is counted. After several in a row nothing will mend itself, so the run stops and names the rows. A loss that jumps is
said, and one that is exactly zero counts like one that is no number: nothing is trained by it. The stock Trainer logs a
NaN as 0.0, steps, and goes on (measured in transformers 5.23).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from utils import distributed
from utils.anomalies import Kind, LossWatch
from utils.interruption import Interruption
from utils.proof import Encoded

SHOWN = 8
"""Rows that a message names."""


class NotFiniteError(ValueError):
    """Losses or gradients that are NaN or infinite, in several steps running."""


class NothingTrainedError(ValueError):
    """Losses of exactly zero, in several steps running."""


class Scaler(Protocol):
    """fp16's scaler of gradients."""

    def get_scale(self) -> float:
        """What losses are multiplied with."""
        ...


@dataclass(frozen=True)
class _Seen:
    loss: torch.Tensor
    """Float32, scalar: this micro-batch's share of the step's loss, times the number of processes."""
    rows: list[int]
    targets: int


class StepGuard:
    """The guard of one run.

    Args:
        rows: that the run trains on; their origins are named.
        most_in_a_row: steps that may be skipped one after the other.
    """

    def __init__(self, rows: Sequence[Encoded], *, most_in_a_row: int = 1, asked: Interruption | None = None) -> None:
        self._rows, self._most = rows, most_in_a_row
        self.interruption = asked or Interruption()
        self.watch = LossWatch()
        self._seen: list[_Seen] = []
        self._named: list[str] = []
        self.skips = 0
        """Skipped steps since the last log line; their loss is not in its mean."""

    def forget(self) -> None:
        """The step begins anew."""
        self._seen = []

    def see(self, loss: torch.Tensor, rows: Iterable[int], targets: int) -> None:
        """A micro-batch's share of the loss (detached), its row numbers and trained tokens."""
        self._seen.append(_Seen(loss.detach(), list(rows), targets))

    def judge(self, step: int, parameters: Iterable[torch.nn.Parameter], scaler: Scaler | None = None) -> bool:
        """Whether optimizer step `step` may be taken; called in all processes once its gradients are there.

        Raises:
            NotFiniteError, NothingTrainedError: too many in a row may not.
        """
        losses = torch.stack([each.loss for each in self._seen]).float()
        finite = torch.isfinite(losses).all()
        if scaler is not None:
            # fp16's scaler meets infinite gradients by design: it skips that step and halves its scale. Below 1 the
            # gradients overflow whatever it does.
            finite = finite & (scaler.get_scale() >= 1.0)
        else:
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                finite = finite & torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()
        own = torch.stack([losses.sum().nan_to_num(0.0, 0.0, 0.0), (~finite).float()])
        total, bad, code = self._together(own, float(self.interruption.asked))
        self.interruption.code = self.interruption.code or code
        usual = self.watch.usual
        kind = self.watch.see(total, finite=not bad)
        seen, self._seen = self._seen, []
        if kind == "spike":
            named = _listed(self._origins(_worst(seen)))
            distributed.say(f"step {step}: the loss jumped to {total:.4g} from about {usual:.4g}, most in:\n{named}")
        elif kind is not None:
            self._report(kind, step, seen, losses)
        if kind not in ("not finite", "zero"):
            self._named.clear()
        self.skips += kind == "not finite"
        return kind != "not finite"

    def _together(self, own: torch.Tensor, asked: float) -> tuple[float, bool, int]:
        """(loss of the step, whether any process has a number that is not finite, the exit code any is asked for)."""
        every = distributed.gather_numbers([*own.tolist(), asked], own.device)
        return (
            sum(each[0] for each in every) / len(every),
            any(each[1] for each in every),
            int(max(e[2] for e in every)),
        )

    def _report(self, kind: Kind, step: int, seen: Sequence[_Seen], losses: torch.Tensor) -> None:
        """Says, or raises, that the step trains nothing."""
        if kind == "zero":
            what, error = "the loss is exactly 0: nothing is trained by it", NothingTrainedError
            so, all_of_them, bad = "That is", "", seen
        else:
            mine = [float((~torch.isfinite(losses)).any())]
            in_loss = any(each[0] for each in distributed.gather_numbers(mine, losses.device))
            what = f"the {'loss' if in_loss else 'gradient'} is not finite (NaN or infinity)"
            error = NotFiniteError
            so, all_of_them = "It is skipped,", " None of them was taken and nothing was saved from them."
            # Where it is in a loss, processes in whose losses it is not have no rows to name.
            bad = [each for each, one in zip(seen, losses, strict=True) if not (in_loss and torch.isfinite(one))]
        self._named = list(dict.fromkeys([*self._named, *self._origins(bad)]))
        named, row = _listed(self._named), self.watch.in_a_row
        if row >= self._most:
            raise error(
                f"step {step}: {what}, for {row} steps running.{all_of_them} Their rows:\n{named}\nLook at these rows, "
                "lower --learning_rate, or choose --precision bf16 or fp32"
            )
        distributed.say(f"step {step}: {what}. {so} {row} of {self._most} running; its rows:\n{named}")

    def _origins(self, seen: Sequence[_Seen]) -> list[str]:
        """Of the rows in all processes."""
        mine = [self._rows[row].origin for each in seen for row in each.rows]
        return list(dict.fromkeys(origin for part in distributed.gather(mine) for origin in part))

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"watch": self.watch.state(), "skips": self.skips, "named": list(self._named)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.watch.restore(state["watch"])
        self.skips, self._named = state["skips"], list(state["named"])


def _worst(seen: Sequence[_Seen]) -> list[_Seen]:
    """The micro-batch with the highest loss a trained token."""
    counted = [each for each in seen if each.targets]
    return [max(counted, key=lambda each: each.loss.item() / each.targets)] if counted else []


def _listed(origins: Sequence[str]) -> str:
    more = f"\n  and {len(origins) - SHOWN} more" if len(origins) > SHOWN else ""
    return "\n".join(f"  {origin}" for origin in origins[:SHOWN]) + more
