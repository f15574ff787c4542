"""Which of a run's states is kept: the best on held-out rows, or the last; and when it is no use going on.

Knows: losses by step. Does not know models or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Best:
    """The best validation so far.

    Args:
        patience: validations in a row that may be no better before the run stops; None: it never does.
    """

    patience: int | None = None
    step: int | None = None
    loss: float = float("inf")
    since: int = 0
    """Validations since the best."""
    last: float | None = None
    """Loss of the newest validation."""

    def see(self, step: int, loss: float) -> bool:
        """Whether the validation after `step` is better than all before. The same step again changes nothing."""
        self.last = loss
        if step == self.step:
            return False
        if loss < self.loss:
            self.step, self.loss, self.since = step, loss, 0
            return True
        self.since += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether `patience` is used up."""
        return self.patience is not None and self.since >= self.patience

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"step": self.step, "loss": self.loss if self.step is not None else None, "since": self.since,
                "last": self.last}  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.step, self.since, self.last = state["step"], state["since"], state["last"]
        self.loss = float("inf") if state["loss"] is None else state["loss"]

    def verdict(self, final: int, *, keeps_best: bool) -> str:
        """For people: which step of a run that ended after step `final` was kept, and why."""
        if self.step is None:
            return f"kept: the last step, {final}: no rows were held out to choose by"
        best = f"step {self.step}, whose validation loss of {self.loss:.4f} is the lowest"
        if self.step == final:
            return f"kept: {best}, and which is the last"
        if keeps_best:
            return f"kept: {best}; that of the last validation was {self.last:.4f}"
        return (
            f"kept: the last step, {final}; the best was {best} (the last validation: {self.last:.4f}); "
            "--load_best_model_at_end keeps that one"
        )
