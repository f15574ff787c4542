"""How a run shows itself while it trains: a bar on a terminal, plain lines elsewhere, and `training_log.jsonl`.

Knows: Trainer's log entries. Does not know what they are computed from.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from utils import distributed, runinfo
from utils.schedule import duration

LOG_NAME = "training_log.jsonl"


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
        figures = f"loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  {rate:,.0f} trained tokens/s"
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


class LogFile(TrainerCallback):
    """Appends every log entry to `training_log.jsonl`; a resumed run first writes those of the checkpoint again, so
    that the file has each step once. With the first step the directory is no longer a finished run's: not before, for
    until then a checkpoint that cannot be gone on with must cost nothing."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOG_NAME

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.is_main():
            self._path.with_name(runinfo.NAME).unlink(missing_ok=True)  # what follows is not yet a finished run
            lines = [json.dumps(entry) + "\n" for entry in state.log_history]
            self._path.write_text("".join(lines), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if distributed.is_main() and state.log_history:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")
