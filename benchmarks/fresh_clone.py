"""Wall times of the README's two commands as a new user meets them: a fresh clone, no environment.

    python3 benchmarks/fresh_clone.py    # writes benchmarks/results/fresh_clone.json

`make demo` installs and trains, then runs once more over its own result; `make test` installs the rest and runs all.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import environment


def seconds(target: str, clone: Path) -> float:
    """Wall time of `make target`; its failure ends the benchmark."""
    start = time.perf_counter()
    done = subprocess.run(["make", target], cwd=clone, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\nmake {target}: exit code {done.returncode}")
    return round(time.perf_counter() - start, 1)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(environment.REPOSITORY), str(clone)], check=True)
        names = ("demo with installation", "demo again", "test with installation")
        results = {name: seconds(name.partition(" ")[0], clone) for name in names}
    environment.write("fresh_clone", ["python3 benchmarks/fresh_clone.py"], {"seconds": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
