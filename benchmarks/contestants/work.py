"""What every contestant is given, and what it tells of its run.

Knows: the file of rows, the base, the settings of the adapter, clocks and this process's memory. Does not know any
contestant, nor anything of the project: it runs in environments where the project's libraries are not installed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IGNORED = -100
Row = Mapping[str, Sequence[int]]
"""`input_ids` and `labels`, alike in length."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run: the same for every contestant but for `options`, which are its own settings."""

    base: str
    """Directory of the model and its tokenizer."""
    rows: str
    """JSON: the global batches, each a list of rows."""
    records: str
    """The same records as text, for a contestant that encodes them itself."""
    scratch: str
    """A folder for what the contestant writes."""
    targets: list[str]
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    learning_rate: float
    seed: int
    steps: int
    global_batch: int
    precision: str
    """`fp32`, or `bf16` under autocast."""
    threads: int
    memory_limit_gib: float
    """More than this fails in this process, instead of the machine ending another."""
    options: dict[str, Any]

    def batches(self) -> list[list[Row]]:
        """The global batches, `steps` of them."""
        found = json.loads(Path(self.rows).read_text(encoding="utf-8"))["batches"]
        if len(found) < self.steps:
            raise ValueError(f"{self.rows} has {len(found)} global batches, {self.steps} are wanted: prepare it anew")
        return found[: self.steps]

    def all_rows(self) -> list[Row]:
        """The rows of all global batches, in their order."""
        return [row for batch in self.batches() for row in batch]

    def accumulation(self, micro_batch: int) -> int:
        """Micro-batches of an optimizer step."""
        return max(1, self.global_batch // micro_batch)


def trained(row: Row) -> int:
    """Tokens of a row that carry loss; its first token never can."""
    return sum(label != IGNORED for label in row["labels"][1:])


class Recorder:
    """Times, tokens, losses and memory of a run; made once all imports are done, for memory is counted from there."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here (proc(5))
        self._before, self._peak = _memory("VmRSS"), 0.0
        self._last = 0.0
        self._step = {"positions": 0, "non_padding_tokens": 0, "trained_tokens": 0}
        self.steps: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.facts: dict[str, Any] = {}

    def start(self) -> None:
        """The clock runs from here."""
        self._last = time.perf_counter()

    def count(self, *, positions: int, non_padding: int, trained: int) -> None:
        """What a micro-batch of the present step holds."""
        for name, value in zip(self._step, (positions, non_padding, trained), strict=True):
            self._step[name] += value

    def end_step(self) -> None:
        """An optimizer step is done: the clock is read, and the loading of the next batch belongs to the next step."""
        now = time.perf_counter()
        self.steps.append({"seconds": now - self._last, **self._step})
        self._last, self._step = now, dict.fromkeys(self._step, 0)

    def end(self) -> None:
        """Training is over: what is done afterwards counts for nothing, its memory neither."""
        self._peak = _memory("VmHWM")

    def result(self) -> dict[str, Any]:
        """For the JSON file; memory in MiB above what the imports took."""
        return {
            "steps": self.steps,
            "losses": self.losses,
            "imports_mib": round(self._before, 1),
            "peak_mib": round(self._peak - self._before, 1),
            **self.facts,
        }


def watch(trainer: Any, recorder: Recorder) -> None:
    """Lets `recorder` follow a transformers Trainer: every micro-batch, every step, every logged loss."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.end_step()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                recorder.losses.append(float(logs["loss"]))

    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        for batch in inputs.get("micro_batches", [inputs]):
            recorder.count(**_contents(batch))
        return step(model, inputs, *rest, **named)

    trainer.training_step = training_step
    trainer.add_callback(Watcher())


def _contents(batch: Mapping[str, Any]) -> dict[str, int]:
    """Positions, tokens and trained tokens of a batch of tensors; no mask: nothing is padded, or labels tell."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    positions = int(ids.numel())
    non_padding = int(mask.sum()) if mask is not None and mask.dim() == 2 else positions
    return {
        "positions": positions,
        "non_padding": non_padding,
        "trained": int((batch["labels"][:, 1:] != IGNORED).sum()),
    }


def contest(run: Callable[[Work, Callable[[], Recorder]], Recorder]) -> None:
    """A contestant's main: reads the work (first argument), runs it, writes the result (second argument).

    `run` gets the work and the maker of the recorder, which it calls when it has imported all it needs.
    """
    work = Work(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    limit = int(work.memory_limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true")
    import torch

    torch.set_num_threads(work.threads)
    recorder = run(work, Recorder)
    versions = {name: _version(name) for name in ("torch", "transformers", "peft", "trl", "llamafactory")}
    recorder.facts["versions"] = {name: version for name, version in versions.items() if version}
    Path(sys.argv[2]).write_text(json.dumps(recorder.result()), encoding="utf-8")


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}: memory is measured on Linux only")
