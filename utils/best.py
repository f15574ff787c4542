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
    wanted: bool = False
    """Whether the best is what is kept; else it is only known."""
    step: int | None = None
    loss: float = float("inf")
    since: int = 0
    """Validations since the best."""
    last: float | None = None
    """Loss of the newest validation."""
    seen: int | None = None
    """Its step."""

    def see(self, step: int, loss: float) -> bool:
        """Whether the validation after `step` is better than all before. The same step again changes nothing."""
        again, self.seen, self.last = step == self.seen, step, loss
        if again:
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
        loss = self.loss if self.step is not None else None
        return {"step": self.step, "loss": loss, "since": self.since, "last": self.last, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.step, self.since, self.last, self.seen = (state[name] for name in ("step", "since", "last", "seen"))
        self.loss = float("inf") if state["loss"] is None else state["loss"]

    def verdict(self, final: int) -> str:
        """For people: which step of a run that ended after step `final` was kept, and why."""
        if self.step is None:
            why = "no rows were held out to choose by" if self.last is None else "no validation loss was a number"
            return f"kept: the last step, {final}: {why}"
        best = f"step {self.step}, whose validation loss of {self.loss:.4f} is the lowest"
        if self.step == final:
            return f"kept: {best}, and which is the last"
        if self.wanted:
            return f"kept: {best}; that of the last validation was {self.last:.4f}"
        return (
            f"kept: the last step, {final}; the best was {best} (the last validation: {self.last:.4f}); "
            "--load_best_model_at_end keeps that one"
        )
