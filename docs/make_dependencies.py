"""Makes the tables of dependencies.md out of requirements*.txt, constraints.txt and what is installed.

python3 docs/make_dependencies.py               # or make dependencies; in an environment with requirements-dev.txt
python3 docs/make_dependencies.py --out /tmp/x  # elsewhere

Licences are those that each package states of itself.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_name("dependencies.md")
MARK = "<!-- from here on made by docs/make_dependencies.py -->\n"
FILES = {
    "requirements.txt": "What the scripts run on",
    "requirements-dev.txt": "What `make check` runs on, beside it",
    "requirements-gpu.txt": "What a CUDA machine can have beside it",
    "requirements-lm-eval.txt": "For `evaluate.py --lm_eval` alone",
}
TESTED = ("requirements.txt", "requirements-dev.txt")
"""Those that constraints.txt pins."""
APART = {"liger-kernel": "BSD-2-Clause", "lm_eval": "MIT"}
"""Licences of what `make check` does not install, read in those packages' metadata."""
SPDX = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "mit license": "MIT",
    "bsd": "BSD",
    "bsd license": "BSD",
    "3-clause bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
}
"""What packages write, in small letters, and its SPDX name; `BSD` where a package does not say which."""


@dataclass(frozen=True)
class Asked:
    """A line of a requirements file."""

    name: str
    bounds: str
    why: str


def asked(path: Path) -> Iterator[Asked]:
    """The lines of a requirements file.

    Raises:
        packaging.requirements.InvalidRequirement: a line is none.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        text, _, why = line.partition("#")
        if text.strip():
            requirement = Requirement(text.strip())
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            bounds = text.strip().removeprefix(f"{requirement.name}{extras}")
            yield Asked(requirement.name + extras, bounds, why.strip())


def pins(path: Path) -> dict[str, str]:
    """Versions by name, of a constraints file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.partition("#")[0].strip().split("==") for line in lines if "==" in line)


def license_of(name: str) -> str:
    """What an installed package states of itself (or `APART` of it), in SPDX names where it is known how they read.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
        ValueError: it states none.
    """
    if name in APART:
        return APART[name]
    stated = metadata.metadata(name)
    if expression := stated.get_all("License-Expression"):
        return expression[0]
    classifiers = [text for text in stated.get_all("Classifier", []) if text.startswith("License :: ")]
    ends = [str(text).rpartition(" :: ")[2] for text in classifiers]
    field = str((stated.get_all("License") or [""])[0]).strip()
    if field and "\n" not in field and field != "UNKNOWN":
        ends = [field]  # where both are there, this one says which BSD
    named = [SPDX.get(text.lower(), text) for text in ends]
    if not named:
        raise ValueError(f"{name} {stated['Version']} states no licence in its metadata; look in its files")
    return " OR ".join(named)


def page(root: Path, license_of: Callable[[str], str] = license_of) -> str:
    """The tables, as Markdown.

    Args:
        root: where the requirements and constraints lie.
        license_of: the licence of a package.
    """
    pinned = {canonicalize_name(name): (name, version) for name, version in pins(root / "constraints.txt").items()}
    parts, direct = [], set()
    for file, title in FILES.items():
        rows = []
        for line in asked(root / file):
            name = line.name.partition("[")[0]
            direct.add(canonicalize_name(name))
            _, version = pinned[canonicalize_name(name)] if file in TESTED else ("", "")
            rows.append((f"`{line.name}`", f"`{line.bounds}`", version, license_of(name), line.why))
        parts += [f"## {title}: {file}", "", *_table(("package", "range", "tested", "licence", "what for"), rows), ""]
    brought = sorted((pin for name, pin in pinned.items() if name not in direct), key=_by_letters)
    others = [(f"`{name}`", version, license_of(name)) for name, version in brought]
    return "\n".join([*parts, "## What these bring", "", *_table(("package", "tested", "licence"), others), ""])


def _by_letters(pin: tuple[str, str]) -> str:
    return pin[0].lower()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; a bar in a cell would end it."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the tables of docs/dependencies.md.")
    parser.add_argument("--out", type=Path, default=PAGE.parent)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    written = re.split(re.escape(MARK), PAGE.read_text(encoding="utf-8"))[0]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / PAGE.name
    path.write_text(f"{written}{MARK}\n{page(ROOT)}", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
