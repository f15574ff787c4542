"""When things happen in a run, in optimizer steps.

Knows: arithmetic on steps and how a time is written, right for any size of data and any number of epochs. Does not know
torch, or what a step does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The run's length, its warm-up, and the steps between two log lines, checkpoints and validations."""

    total: int
    warmup: int
    logging: int
    saving: int
    evaluating: int


def plan_steps(
    num_rows: int,
    *,
    global_batch_size: int,
    epochs: float,
    max_steps: int | None = None,
    warmup: int | None = None,
    logging: int | None = None,
    saving: int | None = None,
    evaluating: int | None = None,
) -> Steps:
    """Warm-up over a tenth of the run (at most 100 steps), ten evaluations and saves, fifty log lines; or as given."""
    total = math.ceil(epochs * math.ceil(num_rows / global_batch_size))
    total = max(1, total if max_steps is None else max_steps)
    tenth = max(1, total // 10)
    return Steps(
        total=total,
        warmup=min(total - 1, min(100, total // 10) if warmup is None else warmup),
        logging=logging or max(1, min(20, total // 50)),
        saving=saving or tenth,
        evaluating=evaluating or tenth,
    )


def learning_rate_factor(step: int, steps: Steps) -> float:
    """The share of the peak learning rate at optimizer step `step`, from 0: it rises to the peak in `warmup` steps,
    then falls in a line. No step of the run has 0, which would waste it."""
    if step < steps.warmup:
        return (step + 1) / (steps.warmup + 1)
    return max(0.0, (steps.total - step) / (steps.total - steps.warmup))


def duration(seconds: float) -> str:
    """`1:05` or `2:03:04`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
