"""The dataset catalogue and the language of `--data`.

Knows: `data/datasets.toml`, and how an expression such as `alpaca-belle*2-cot:5000` or `my.json` names its parts.
Does not know what is inside a file; that is `utils.records`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import formats, lookup

DATA_DIR = Path(__file__).resolve().parent.parent / "data"
KEY = re.compile(r"[a-z0-9_.]+")
AMOUNTS = re.compile(r"[:*][\d:*]*$")
LANGUAGES, TASKS, GENERATIONS = ("EN", "CN", "ML"), ("MT", "TS"), ("HG", "SI", "MIX", "COL")
STATUSES = ("collected", "in progress", "part", "added", "ours")
MODEL_OUTPUTS = ("yes", "no", "partly")
HUB_REPOSITORY = "QingyiSi/Alpaca-CoT"
"""The dataset repository in which the original project keeps its unified files."""
SHA256 = re.compile(r"(?:[0-9a-f]{64})?")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One row of the catalogue; the tags are defined in `data/datasets.toml`."""

    title: str
    """Its name, as its authors write it."""
    path: str
    """The file below `data/` where the unified form lies."""
    status: str
    """One of `STATUSES`."""
    part_of: str = ""
    """The key of the whole that it is a part of."""
    lang: tuple[str, ...]
    """Of `LANGUAGES`."""
    task: tuple[str, ...]
    """Of `TASKS`."""
    gen: tuple[str, ...]
    """Of `GENERATIONS`."""
    type: str
    """What is in it."""
    made: str
    """How it was made."""
    size: int | None = None
    """Rows, as published; None where nothing is."""
    source: str
    """The upstream page."""
    hub: str = ""
    """The file or folder in `HUB_REPOSITORY` that holds the unified form."""
    raw: tuple[str, ...] = ()
    """Upstream files: `hf://datasets/owner/name/file`, or https."""
    converter: str = ""
    """What turns the raw files into the unified form; empty where the unified form is all there is."""
    license: str
    """The SPDX name where there is one."""
    citation: str
    """Authors, title, year and address, in one line."""
    model_output: str
    """Whether a model wrote the outputs: one of `MODEL_OUTPUTS`."""
    sha256: str = ""
    """Of the unified file, once known."""
    rows: int | None = None
    """Counted in the unified file, once known."""
    note: str = ""
    """Where the sources disagree, and what to mind."""
    unverified: tuple[str, ...] = ()
    """`field: document` for each field that could not be checked, and the document that it comes from."""


_VOCABULARIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"status": STATUSES, "lang": LANGUAGES, "task": TASKS, "gen": GENERATIONS, "model_output": MODEL_OUTPUTS}
)
_LISTS, _NUMBERS = ("lang", "task", "gen", "raw", "unverified"), ("size", "rows")
_KINDS: Mapping[str, type] = MappingProxyType(
    {f.name: tuple if f.name in _LISTS else int if f.name in _NUMBERS else str for f in fields(DatasetSpec)}
)


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
    """The catalogue by key.

    Raises:
        ValueError: broken TOML, a key or field that is unknown or missing, a value of the wrong kind or outside its
            vocabulary; the message names the file and the row.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: broken TOML ({error})") from error
    rows: dict[str, DatasetSpec] = {}
    for key, table in tables.items():
        if not KEY.fullmatch(key):
            raise ValueError(f"{file}: key {key!r} may hold only a-z, 0-9, _ and . (- joins keys into a mixture)")
        if not isinstance(table, dict):
            raise ValueError(f"{file}: {key} stands outside a row; a row begins with [its key]")
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
            rows[key] = DatasetSpec(**values)
        except TypeError as error:
            raise ValueError(f"{file}: row [{key}]: {error}") from error
    for key, spec in rows.items():
        if fault := _fault(spec, rows):
            raise ValueError(f"{file}: row [{key}]: {fault}")
    return MappingProxyType(rows)


def _fault(spec: DatasetSpec, rows: Mapping[str, DatasetSpec]) -> str:
    """What is wrong with a row; nothing if nothing is."""
    for name, kind in _KINDS.items():
        value = getattr(spec, name)
        if kind is str and not isinstance(value, str):
            return f"{name} must be text, found {value!r}"
        if kind is tuple and not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
            return f"{name} must be a list of texts, found {value!r}"
        if kind is int and value is not None and (type(value) is not int or value < 1):
            return f"{name} must be a whole number of 1 or more, found {value!r}"
    for name, vocabulary in _VOCABULARIES.items():
        value = getattr(spec, name)
        found = value if isinstance(value, tuple) else (value,)
        if not found or not set(found) <= set(vocabulary):
            return f"{name} takes one of {', '.join(vocabulary)}, found {', '.join(found) or 'nothing'}"
    if spec.part_of and spec.part_of not in rows:
        return f"part_of names {spec.part_of!r}, which is no row"
    if not SHA256.fullmatch(spec.sha256):
        return f"sha256 must be 64 digits of 0-9 and a-f, found {spec.sha256!r}"
    return ""


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
    bare = AMOUNTS.sub("", expression)
    return "/" in bare or "\\" in bare or formats.has_known_ending(bare)


def mixture_name(expressions: Iterable[str]) -> str:
    """A short name for a mixture, fit for a folder: keys as given, files by their stems."""
    names = []
    for expression in expressions:
        bare = AMOUNTS.sub("", expression)
        amounts = expression[len(bare) :]
        names.append(formats.stem(Path(bare).name) + amounts if is_path(expression) else expression)
    return re.sub(r"[^\w.\-]+", "_", "-".join(names))


def missing_file(part: Part) -> str:
    """What to say when a part's file is not there."""
    if part.spec is None:
        return f"--data: there is no file {part.path} (looked in {Path.cwd()})"
    gone = f"dataset {part.name!r} is not on this machine: {part.path} is missing"
    if part.spec.hub:
        return f"{gone}. Run python3 prepare_data.py fetch {part.name}, or give --data your own file"
    if part.spec.raw or part.spec.converter:
        return f"{gone}. Convert it from the original file: python3 prepare_data.py show {part.name} says how"
    return f"{gone}. Restore it from the repository"


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
