"""The evaluation tasks, and the questions that each of them asks.

Knows: `data/tasks.toml`, and how a task's file holds its questions. Does not know how an answer is scored, or what is
done with a training row that repeats a question; that is `utils.overlap`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import formats, lookup
from utils.catalog import DATA_DIR, LANGUAGES

FORMS = ("records", "question", "bigbench")
SHORTEST_NGRAM = 13
"""Words; `utils.overlap` finds a shared run that is at least this long."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One row of the registry; its fields are explained in `data/tasks.toml`."""

    title: str
    path: str
    """Relative to `data/`."""
    form: str
    lang: tuple[str, ...]
    source: str
    license: str
    ngram: int = SHORTEST_NGRAM
    """Words in a row that a training row may not share with a question; 0: only whole questions count."""
    note: str = ""


def read_tasks(file: Path = DATA_DIR / "tasks.toml") -> Mapping[str, TaskSpec]:
    """The tasks by key; `ValueError` names a row with an unknown or missing field, or a value out of the vocabulary."""
    rows = {}
    for key, fields in tomllib.loads(file.read_text(encoding="utf-8")).items():
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
            spec = TaskSpec(**values)
        except TypeError as error:
            raise ValueError(f"{file}: row [{key}]: {error}") from error
        where = f"{file}: row [{key}]"
        for language in spec.lang:
            if language not in LANGUAGES:
                raise ValueError(f"{where}: {lookup.unknown_name('language', language, LANGUAGES)}")
        if spec.form not in FORMS:
            raise ValueError(f"{where}: {lookup.unknown_name('form', spec.form, FORMS)}")
        if spec.ngram != 0 and spec.ngram < SHORTEST_NGRAM:
            raise ValueError(
                f"{where}: ngram is {spec.ngram}; it must be 0 (whole questions only) or {SHORTEST_NGRAM} and more"
            )
        rows[key] = spec
    return MappingProxyType(rows)


def questions(spec: TaskSpec, directory: Path = DATA_DIR) -> Iterator[str]:
    """What a task asks, in the order of its file, which lies below `directory`.

    Raises (while it is read):
        FileNotFoundError: the file is not on this machine.
        ValueError: a file that cannot be read, or a row without a question; the message names the row.
    """
    path = directory / spec.path
    if not path.is_file():
        raise FileNotFoundError(
            f"task {spec.title!r} is not on this machine: {path} is missing; it is at {spec.source}"
        )
    if spec.form == "bigbench":
        document = formats.document(path)
        examples = document.get("examples") if isinstance(document, Mapping) else None
        if not isinstance(examples, list):
            raise ValueError(f"{path}: a BIG-bench task holds a list under 'examples'; it is missing")
        for number, example in enumerate(examples, start=1):
            yield _text(example, "input", f"{path} example {number}")
        return
    for where, row in formats.read(path):
        if spec.form == "question":
            yield _text(row, "question", f"{path} {where}")
        else:
            asked = _text(row, "instruction", f"{path} {where}")
            given = _text(row, "input", f"{path} {where}") if row.get("input") else ""
            yield f"{asked}\n{given}" if given else asked


def _text(row: Any, key: str, where: str) -> str:
    """The text under `key`; `ValueError` where there is none."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key!r} must be text that is not empty, found {value!r}")
    return value
