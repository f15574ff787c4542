"""How long `--help` takes: the median of ten runs of each script, beside an empty Python. And how long it is from the
command to the end of the first optimizer step, for a command that has been run before: the median of five.

python3 benchmarks/startup.py    # writes benchmarks/results/startup.json
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

import environment

SCRIPTS = (
    "uniform_finetune.py",
    "generate.py",
    "evaluate.py",
    "merge.py",
    "predict.py",
    "server.py",
    "web.py",
    "study.py",
    "prepare_data.py",
)


def median_seconds(*command: str) -> float:
    """Wall time of a command, after one run that warms the file cache."""
    times = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=environment.REPOSITORY, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[1:]), 3)


def first_step_seconds() -> float:
    """Wall time from the command to its first line about a step, on the bundled base and sample; the first of six runs,
    which encodes the rows, is not counted."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max_steps", "1", "--val_set_size", "0", "--overwrite", "--output_dir", f"{folder}/run"]
        for _ in range(6):
            start = time.perf_counter()
            command = [sys.executable, "uniform_finetune.py", *flags]
            with subprocess.Popen(command, cwd=environment.REPOSITORY, stdout=subprocess.PIPE, text=True) as running:
                assert running.stdout is not None
                times.append(
                    next(time.perf_counter() - start for line in running.stdout if line.startswith("step 1/1"))
                )
    return round(statistics.median(times[1:]), 2)


def main() -> int:
    results = {"empty Python": median_seconds("-c", "pass")}
    results |= {script: median_seconds(script, "--help") for script in SCRIPTS}
    found = {"median_seconds": results, "second run to its first step, seconds": first_step_seconds()}
    environment.write("startup", ["python3 benchmarks/startup.py"], found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
