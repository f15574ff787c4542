"""How long `--help` takes: the median of ten runs of each script, beside an empty Python.

python3 benchmarks/startup.py    # writes benchmarks/results/startup.json
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import environment

SCRIPTS = ("uniform_finetune.py", "generate.py", "evaluate.py", "prepare_data.py")


def median_seconds(*command: str) -> float:
    """Wall time of a command, after one run that warms the file cache."""
    times = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=environment.REPOSITORY, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[1:]), 3)


def main() -> int:
    results = {"empty Python": median_seconds("-c", "pass")}
    results |= {script: median_seconds(script, "--help") for script in SCRIPTS}
    environment.write("startup", ["python3 benchmarks/startup.py"], {"median_seconds": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
