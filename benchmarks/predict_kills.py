"""What prediction loses when it is killed: SIGKILL at random times, then the same command again, until it is done.

    python3 benchmarks/predict_kills.py --kills 100    # writes benchmarks/results/predict_kills.json

A job is 1,000 questions of the bundled sample for an adapter that `uniform_finetune.py` trains first. It is killed at a
random time, again and again, until it ends by itself; then its file is held against that of a job that nobody
disturbed, byte by byte. Each attempt is a fork of a process that has imported the libraries, so that most kills fall
into the work and not into the imports. Some attempts run `--num_samples 2` with sampling, some greedily.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import environment

DATA = ["answer_sample:900", "for_dict_data"]
KINDS = {"greedy": ["--greedy"], "samples": ["--num_samples", "2"]}


def attempt(arguments: Sequence[str], kill_after: float | None) -> bool:
    """Runs predict.py in a child; True where it ended well before it was killed."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        import predict

        os._exit(predict.main(list(arguments)))
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if not os.WIFEXITED(status) or os.WEXITSTATUS(status):
                sys.exit(f"predict.py ended with status {status}")
            return True
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)


def lines_of(directory: Path) -> int:
    """How many whole lines the file of predictions has."""
    path = directory / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # forks of a process that has threads would hang
    draw = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment.run("uniform_finetune.py", "--max_steps", 40, "--output_dir", folder / "run")

        from utils import assistant, cli, distributed, prediction, questions  # noqa: F401 — imported before the forks

        asked = ["--lora_dir", str(folder / "run"), "--data", *DATA, "--max_new_tokens", "48"]
        expected, seconds = {}, {}
        for kind, more in KINDS.items():
            started = time.monotonic()
            attempt([*asked, *more, "--result_dir", str(folder / kind)], None)
            seconds[kind] = round(time.monotonic() - started, 1)
            expected[kind] = (folder / kind / "predictions.jsonl").read_bytes()
        kills, jobs, identical = Counter[str](), 0, 0
        while kills.total() < flags.kills:
            kind = draw.choice(list(KINDS))
            out = folder / f"job-{jobs}"
            command, done = [*asked, *KINDS[kind], "--result_dir", str(out)], False
            while not done:
                left = kills.total() < flags.kills
                before, started = lines_of(out), time.monotonic()
                done = attempt(command, draw.uniform(0, 0.6 * seconds[kind]) if left else None)
                if done and not before:  # the machine is less busy than it was
                    seconds[kind] = min(seconds[kind], round(time.monotonic() - started, 1))
                if not done:
                    kills["after a group" if lines_of(out) > before else "before a group"] += 1
            jobs += 1
            identical += (out / "predictions.jsonl").read_bytes() == expected[kind]
            print(f"job {jobs}: {kills.total()} kills, {identical} of {jobs} files identical", flush=True)
        results = {
            "kills": dict(kills),
            "jobs": jobs,
            "identical_files": identical,
            "rows_a_job": len(expected["greedy"].splitlines()),
            "seconds_undisturbed": seconds,  # the shortest
            "different_answers": len({json.loads(line)["generate"] for line in expected["greedy"].splitlines()}),
        }
    environment.write("predict_kills", ["python3", *sys.argv], results)
    return 0 if identical == jobs else 1


if __name__ == "__main__":
    sys.exit(main())
