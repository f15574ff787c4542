"""Two processes of one thread beside one process of two threads: the same steps of the same rows.

    python3 benchmarks/processes.py              # writes benchmarks/results/processes.json
    python3 benchmarks/processes.py --rounds 1   # a quick look

The work is that of benchmarks/training.py's 21-million Llama: LoRA on queries and values, steps of 128 rows of FLAN's
chains of thought. Each round runs both, one after the other; a run's first step is not counted. Needs the real data
(ALPACA_COT_REAL_DATA, default ../shared/data).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import environment
from contestants import material

LAUNCHERS = {
    "1 process, 2 threads": [],
    "2 processes, 1 thread": ["-m", "torch.distributed.run", "--nproc_per_node", "2"],
}


def step_seconds(output: Path) -> list[float]:
    """Of each optimizer step but the first, from the log: a line has all trained tokens so far and their rate."""
    log = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    ends = [entry["trained_tokens"] / entry["trained_tokens_per_second"] for entry in log if "learning_rate" in entry]
    return [round(end - start, 3) for start, end in itertools.pairwise(ends)]


def run(launcher: list[str], folder: Path, steps: int) -> tuple[list[float], float]:
    """Step times and the last loss of a run."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    flags = ["--model_type", "llama", "--model_name_or_path", material.base(folder, "20m"), "--template", "alpaca"]
    flags += ["--data", material.records(folder), "--lora_target_modules", "q_proj", "v_proj", "--lora_dropout", "0"]
    flags += ["--max_steps", steps, "--logging_steps", 1, "--save_steps", steps, "--val_set_size", 0]
    flags += ["--max_tokens_per_batch", 2048, "--output_dir", output, "--seed", material.SEED]
    command = [sys.executable, *launcher, str(environment.REPOSITORY / "uniform_finetune.py"), *map(str, flags)]
    threads = {} if launcher else {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    loss = json.loads((output / "run.json").read_text())["metrics"]["train_loss"]
    return step_seconds(output), loss


def main() -> int:
    parser = argparse.ArgumentParser(description="Two processes beside one.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    flags = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(flags.rounds):
            for name, launcher in LAUNCHERS.items():
                found, losses[name] = run(launcher, Path(folder), flags.steps)
                seconds[name] += found
    one, two = (statistics.median(seconds[name]) for name in LAUNCHERS)
    results: dict[str, Any] = {
        "seconds_a_step": seconds,
        "median_seconds_a_step": {"1 process, 2 threads": one, "2 processes, 1 thread": two},
        "speed of two processes / one": round(one / two, 3),
        "last_loss": losses,
    }
    environment.write("processes", sys.argv, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
