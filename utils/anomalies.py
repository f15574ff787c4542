"""Numbers that say a training goes wrong: losses that jump, that are nothing, or that are no numbers.

Knows: the loss of each optimizer step, and what is unusual about one. Does not know models, rows or processes.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, Literal

WINDOW = 64
"""Steps that a loss is compared with."""
ENOUGH = 16
"""Steps before anything is called a spike."""
DEVIATIONS, RATIO = 6.0, 1.5
"""A spike is so many standard deviations above the mean of the window, and so many times that mean: the first alone
fires on the small noise of a converged run, the second alone on the first steps."""

Kind = Literal["not finite", "zero", "spike"]


class LossWatch:
    """Looks at the losses of a run, step by step."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.counts: dict[str, int] = {"not finite": 0, "zero": 0, "spike": 0}
        self.in_a_row = 0
        """Steps up to now that trained nothing: their loss was zero, or no number."""

    def see(self, loss: float, *, finite: bool) -> Kind | None:
        """What is wrong with the step's loss (mean over its trained tokens), if anything.

        Args:
            finite: whether the loss and all its gradients are numbers.
        """
        kind = self._kind(loss, finite=finite)
        if kind is not None:
            self.counts[kind] += 1
        self.in_a_row = self.in_a_row + 1 if kind in ("not finite", "zero") else 0
        if finite and kind != "zero":
            self._recent.append(loss)
        return kind

    @property
    def usual(self) -> float:
        """Mean of the recent losses; NaN before the first."""
        return statistics.fmean(self._recent) if self._recent else math.nan

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"recent": list(self._recent), "counts": dict(self.counts), "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self._recent = deque(state["recent"], maxlen=WINDOW)
        self.counts, self.in_a_row = dict(state["counts"]), state["in_a_row"]

    def _kind(self, loss: float, *, finite: bool) -> Kind | None:
        if not finite:
            return "not finite"
        if loss == 0.0:
            return "zero"
        if len(self._recent) < ENOUGH:
            return None
        mean, deviation = self.usual, statistics.pstdev(self._recent)
        return "spike" if loss > RATIO * mean and loss > mean + DEVIATIONS * deviation else None
