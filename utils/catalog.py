"""The dataset catalogue and the language of `--data`.

Knows: `data/datasets.toml`, and how an expression such as `alpaca-belle*2-cot:5000` or `my.json` names its parts.
Does not know what is inside a file; that is `utils.records`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import lookup

DATA_DIR = Path(__file__).resolve().parent.parent / "data"
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
KEY = re.compile(r"[a-z0-9_.]+")
LANGUAGES, TASKS, GENERATIONS = ("EN", "CN", "ML"), ("MT", "TS"), ("HG", "SI", "MIX", "COL")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One row of the catalogue; the tags are defined in `data/datasets.toml`."""

    title: str
    path: str
    """Relative to `data/`."""
    lang: tuple[str, ...]
    task: tuple[str, ...]
    gen: tuple[str, ...]
    size: int
    """Rows, as published."""
    source: str
    license: str
    download: str = ""
    """Where the unified file can be had; empty for what the repository brings."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture."""

    name: str
    """The catalogue key, or the path as given."""
    path: Path
    max_rows: int | None = None
    repeat: int = 1
    spec: DatasetSpec | None = None


def read_catalog(file: Path = DATA_DIR / "datasets.toml") -> Mapping[str, DatasetSpec]:
    """The catalogue by key; `ValueError` names a row with an unknown or missing field."""
    rows = {}
    for key, fields in tomllib.loads(file.read_text(encoding="utf-8")).items():
        if not KEY.fullmatch(key):
            raise ValueError(f"{file}: key {key!r} may hold only a-z, 0-9, _ and . (- joins keys into a mixture)")
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
            rows[key] = DatasetSpec(**values)
        except TypeError as error:
            raise ValueError(f"{file}: row [{key}]: {error}") from error
    return MappingProxyType(rows)


def parse_mixture(expressions: Iterable[str], catalog: Mapping[str, DatasetSpec] | None = None) -> list[Part]:
    """The parts that `--data` names: keys joined by `-`, or paths; each may carry `:N` (rows) and `*W` (repeats).

    Raises:
        ValueError: an unknown key, with the nearest ones; a malformed `:N` or `*W`; nothing at all.
    """
    catalog = read_catalog() if catalog is None else catalog
    parts = []
    for expression in expressions:
        if is_path(expression):
            name, max_rows, repeat = _amounts(expression, expression)
            parts.append(Part(name=name, path=Path(name), max_rows=max_rows, repeat=repeat))
            continue
        for piece in expression.split("-"):
            key, max_rows, repeat = _amounts(piece, expression)
            spec = lookup.find("dataset", key, catalog, f"--data {expression!r}")
            parts.append(Part(name=key, path=DATA_DIR / spec.path, max_rows=max_rows, repeat=repeat, spec=spec))
    if not parts:
        raise ValueError("--data names nothing; give a key of data/datasets.toml or a file")
    return parts


def is_path(expression: str) -> bool:
    """Whether an expression names a file or folder rather than keys: it has a separator or a known ending."""
    bare = re.sub(r"[:*][\d:*]*$", "", expression)
    return "/" in bare or "\\" in bare or bare.endswith(ENDINGS)


def mixture_name(expressions: Iterable[str]) -> str:
    """A short name for a mixture, fit for a folder: keys as given, files by their stems."""
    stems = [Path(e).name if is_path(e) else e for e in expressions]
    stems = [
        re.sub(r"(\.\w+)(?=([:*].*)?$)", "", s) if s.rsplit(":")[0].rsplit("*")[0].endswith(ENDINGS) else s
        for s in stems
    ]
    return re.sub(r"[^\w.\-]+", "_", "-".join(stems))


def missing_file(part: Part) -> str:
    """What to say when a part's file is not there."""
    if part.spec is None:
        return f"--data: there is no file {part.path} (looked in {Path.cwd()})"
    where = (
        f"Download it from {part.spec.download} and put it there"
        if part.spec.download
        else "Restore it from the repository"
    )
    return (
        f"dataset {part.name!r} is not on this machine: {part.path} is missing. {where}, or give --data your own file"
    )


def _amounts(piece: str, expression: str) -> tuple[str, int | None, int]:
    """`belle:100*2` → (`belle`, 100, 2)."""
    match = re.fullmatch(r"(?P<name>.*?)(?::(?P<rows>[^:*/]*))?(?:\*(?P<repeat>[^:*/]*))?", piece)
    assert match is not None  # every part of the pattern is optional
    numbers = []
    for mark, group in ((":", match["rows"]), ("*", match["repeat"])):
        if group is not None and not (group.isascii() and group.isdigit() and int(group) > 0):
            raise ValueError(
                f"--data {expression!r}: after {mark} stands {group!r}; it takes a whole number of 1 or more"
            )
        numbers.append(None if group is None else int(group))
    return match["name"], numbers[0], numbers[1] or 1
