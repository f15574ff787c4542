"""Where a number was measured, and how a result is written down.

Knows: this machine, the versions and the date. Does not know what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(REPOSITORY))


def describe() -> dict[str, Any]:
    """Processor, cores, memory, Python, libraries, commit and day."""
    from utils import machine, runinfo

    return {
        **machine.described(),
        "versions": runinfo.versions(),
        "commit": runinfo.commit(REPOSITORY),
        "date": datetime.now(UTC).date().isoformat(),
    }


def run(*arguments: object, cwd: Path = REPOSITORY) -> str:
    """Runs a script of the repository and returns what it printed; its own error ends the benchmark."""
    command = [sys.executable, str(REPOSITORY / str(arguments[0])), *map(str, arguments[1:])]
    print("$", " ".join(command[1:]), flush=True)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\nexit code {done.returncode}")
    return done.stdout


def write(name: str, command: Sequence[str], results: dict[str, Any]) -> None:
    """Writes `results/<name>.json` with where and when it was measured."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"command": " ".join(command), "environment": describe(), "results": results}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{text}\nwritten to {path}")
