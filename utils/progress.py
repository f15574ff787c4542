"""How a run shows itself while it trains: a bar on a terminal, plain lines elsewhere, and `training_log.jsonl`.

Knows: Trainer's log entries. Does not know what they are computed from.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from utils import checkpoints, distributed, outputs, runinfo
from utils.proof import Encoded
from utils.schedule import duration

LOG_NAME = "training_log.jsonl"
ROWS_NAME = "row_ids.jsonl"


class Progress(TrainerCallback):
    """Loss, learning rate, trained tokens per second and the time left, in the main process."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._started, self._first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started, self._first_step = time.perf_counter(), state.global_step
        if distributed.is_main() and sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not distributed.is_main() or not logs:
            return
        if "eval_loss" in logs:
            self._write(f"step {state.global_step}/{state.max_steps}  validation loss {logs['eval_loss']:.4f}")
        if "learning_rate" not in logs:
            return
        rate = logs["trained_tokens_per_second"]
        loss = f"loss {logs['loss']:.4f}" if "loss" in logs else "no loss that is a number"
        figures = f"{loss}  lr {logs['learning_rate']:.2e}  {rate:,.0f} trained tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(figures)
            return
        seconds = time.perf_counter() - self._started
        left = seconds / max(1, state.global_step - self._first_step) * (state.max_steps - state.global_step)
        self._write(f"step {state.global_step}/{state.max_steps}  {figures}  {duration(left)} left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            distributed.say(line)


def rewrite(directory: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Has `training_log.jsonl` hold these entries and no others."""
    with outputs.atomic(directory / LOG_NAME) as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


class LogFile(TrainerCallback):
    """Appends every log entry to `training_log.jsonl`; a resumed run first writes those of the checkpoint again, so
    that the file has each step once. With the first step the directory is no longer a finished run's: not before, for
    until then a checkpoint that cannot be gone on with must cost nothing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.is_main():
            (self._directory / runinfo.NAME).unlink(missing_ok=True)  # what follows is not yet a finished run
            rewrite(self._directory, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        # Trainer's summary at the end is of this process alone, and a resumed run's would be another.
        if distributed.is_main() and state.log_history and "train_runtime" not in (logs or {}):
            _append(self._directory / LOG_NAME, state.log_history[-1])


class RowLog(TrainerCallback):
    """Appends the rows of every step to `row_ids.jsonl`, in their order, whatever the processes and micro-batches: two
    runs that trained the same can be compared line by line.

    Args:
        members: the row numbers of the last step.
        rows: that they number.
        checkpoint: that the run goes on from; the rows until then stand beside it.

    Raises:
        ValueError: these cannot be read.
    """

    def __init__(
        self, directory: Path, members: Callable[[], Sequence[int]], rows: Sequence[Encoded], checkpoint: Path | None
    ) -> None:
        self._path, self._members, self._rows = directory / ROWS_NAME, members, rows
        self._kept: list[str] = []
        if checkpoint is not None:  # read before anything is changed
            distributed.decided_by_main(lambda: self._kept.extend(_rows_until(checkpoint)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.is_main():
            with outputs.atomic(self._path) as file:
                file.writelines(line + "\n" for line in self._kept)
            self._kept = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.is_main():
            rows = [self._rows[row].origin for row in self._members()]
            _append(self._path, {"step": state.global_step, "rows": rows})


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _rows_until(checkpoint: Path) -> list[str]:
    """The lines of `row_ids.jsonl` up to the checkpoint's step. What a killed process left at the end is none of them.

    Raises:
        ValueError: a line that is no step, with others behind it.
    """
    path, last = checkpoint.parent / ROWS_NAME, checkpoints.step_of(checkpoint)
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")[:-1]  # a file's name may hold what `splitlines` takes for an end
    for number, line in enumerate(lines):
        step = _step(line)
        if step is None and number + 1 < len(lines):
            raise ValueError(
                f"{path} line {number + 1} is not a step with its rows: mend it, or delete the file to go on without "
                "the rows of the steps so far"
            )
        if step is None or step > last:
            return lines[:number]
        if step == last:
            return lines[: number + 1]
    return lines


def _step(line: str) -> int | None:
    """Of a line of `row_ids.jsonl`; None: it is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None
