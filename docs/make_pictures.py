"""Makes the pictures of terminals in the README out of what the programs print today.

    python3 docs/make_pictures.py               # docs/terminal_*.svg; some seconds each
    python3 docs/make_pictures.py --out /tmp/x  # elsewhere

An SVG each, of text, without anything from elsewhere.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 112
# Name, command, whether it runs on a terminal (colours, and bars that would be drawn over one another), and which lines
# are shown: from the first that has the one text to the first that has the other, or to the end.
PICTURES = (
    ("mask", "python3 uniform_finetune.py --data cot_sample --preview 3", True, "", ""),
    (
        "training",
        "python3 uniform_finetune.py --max_steps 60 --logging_steps 10 --output_dir {folder}/my_run",
        False,
        "steps: 60",
        "ask it: ",
    ),
)


def printed(command: str, *, terminal: bool, folder: str) -> str:
    """What a command prints, errors aside; a command that fails ends the script."""
    program, *rest = shlex.split(command.format(folder=folder))
    argv = [sys.executable if program == "python3" else program, *rest]
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    if not terminal:
        done = subprocess.run(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout
    ours, theirs = pty.openpty()
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        found = b""
        while chunk := _read(ours):
            found += chunk
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return found.decode().replace("\r\n", "\n")


def _read(descriptor: int) -> bytes:
    """Empty at the end, which Linux tells by an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def chosen(text: str, first: str, last: str) -> str:
    """The lines from the one to the other."""
    lines = text.rstrip().splitlines()
    start = next((place for place, line in enumerate(lines) if first in line), 0)
    end = next((place + 1 for place, line in enumerate(lines) if last and last in line), len(lines))
    return "\n".join(lines[start:end])


def drawn(command: str, text: str) -> str:
    """The SVG of a terminal in which this was printed."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(f"$ {command}\n{text}"))
    svg = console.export_svg(title="Alpaca-CoT", theme=MONOKAI, unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # they would be fetched from elsewhere
    return svg.replace("Fira Code", "DejaVu Sans Mono, Noto Sans Mono CJK SC")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the pictures of terminals in the README.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for name, command, terminal, first, last in PICTURES:
            text = chosen(printed(command, terminal=terminal, folder=folder), first, last)
            text = text.replace(f"{ROOT}/", "").replace(f"{folder}/", "")
            path = flags.out / f"terminal_{name}.svg"
            path.write_text(drawn(command.format(folder="").replace("/my_run", "my_run"), text), encoding="utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
