"""The evaluation tasks, and what each of them asks, with the answer it expects.

Knows: `data/tasks.toml`, and how a task's file holds its questions, options and answers. Does not know prompts
(`utils.asking`), models, or what is done with a training row that repeats a question; that is `utils.overlap`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils import formats, lookup, readings
from utils.catalog import DATA_DIR, LANGUAGES

FORMS = ("records", "rows", "document")
OPEN = "open"
"""The type of a free answer, which is compared with a reference and not read."""
KINDS = (*readings.KINDS, OPEN)
SHORTEST_NGRAM = 13
"""Words; `utils.overlap` finds a shared run that is at least this long."""
LABEL = re.compile(r"^[(（]?[A-H][)）.．、:：]\s*")
"""Before an option's text: `A)`, `(A) `, `A．`."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One row of the registry; its fields are explained in `data/tasks.toml`."""

    title: str
    path: str
    """Relative to `data/`."""
    form: str
    kind: str
    lang: tuple[str, ...]
    source: str
    license: str
    under: str = "examples"
    question: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer: str = ""
    group: str = ""
    shots: str = ""
    harness: str = ""
    """A task of EleutherAI's harness; empty: it has none that asks the same."""
    ngram: int = SHORTEST_NGRAM
    """Words in a row that a training row may not share with a question; 0: only whole questions count."""
    note: str = ""
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of a task's file."""

    origin: str
    """File and row, for people."""
    question: str
    choices: tuple[str, ...]
    """The options' texts, without their letters."""
    reference: str
    """In its type's form (`readings.Reading.answer`); of an open answer the text, empty where the file has none."""
    group: str
    """Empty where the task has no groups, or the row none."""


def read_tasks(file: Path = DATA_DIR / "tasks.toml") -> Mapping[str, TaskSpec]:
    """The tasks by key; `ValueError` names a row with an unknown or missing field, or a value out of the vocabulary."""
    rows = {}
    for key, fields in tomllib.loads(file.read_text(encoding="utf-8")).items():
        where = f"{file}: row [{key}]"
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
            spec = TaskSpec(**values)
        except TypeError as error:
            raise ValueError(f"{where}: {error}") from error
        vocabularies = [("language", language, LANGUAGES) for language in spec.lang]
        for what, value, known in (*vocabularies, ("form", spec.form, FORMS), ("kind", spec.kind, KINDS)):
            if value not in known:
                raise ValueError(f"{where}: {lookup.unknown_name(what, value, known)}")
        if spec.form != "records" and not (spec.question and spec.answer):
            raise ValueError(f"{where}: a file of {spec.form!r} needs the fields of its question and its answer")
        if spec.ngram != 0 and spec.ngram < SHORTEST_NGRAM:
            raise ValueError(
                f"{where}: ngram is {spec.ngram}; it must be 0 (whole questions only) or {SHORTEST_NGRAM} and more"
            )
        rows[key] = spec
    return MappingProxyType(rows)


def questions(spec: TaskSpec, directory: Path = DATA_DIR) -> Iterator[str]:
    """What a task asks, without options, in the order of its file, which lies below `directory`.

    Raises (while it is read):
        FileNotFoundError: the file is not on this machine.
        ValueError: a file that cannot be read, or a row without a question; the message names the row.
    """
    for where, row in _rows(spec, directory / spec.path):
        yield _question(spec, row, where)


def items(spec: TaskSpec, file: Path | None = None) -> Iterator[Item]:
    """The rows of a task, in the order of `file` (the task's own place, if left out).

    Raises (while it is read):
        FileNotFoundError, ValueError: as `questions`; also a row without options where the task has some, or whose
            answer is not of the task's type.
    """
    for where, row in _rows(spec, file or DATA_DIR / spec.path):
        choices = _choices(spec, row, where)
        yield Item(
            origin=where,
            question=_question(spec, row, where),
            choices=choices,
            reference=_reference(spec, row, choices, where),
            group=str(_field(row, spec.group) or "") if spec.group else "",
        )


def _rows(spec: TaskSpec, path: Path) -> Iterator[tuple[str, Any]]:
    """File and row, for people, and the row."""
    if not path.is_file():
        raise FileNotFoundError(
            f"task {spec.title!r} is not on this machine: {path} is missing; it is at {spec.source}; place it there, "
            "or name its place with --task_file"
        )
    if spec.form != "document":
        yield from ((f"{path} {where}", row) for where, row in formats.read(path))
        return
    document = formats.document(path)
    examples = document.get(spec.under) if isinstance(document, Mapping) else None
    if not isinstance(examples, list):
        raise ValueError(f"{path}: task {spec.title!r} holds a list under {spec.under!r}; it is missing")
    yield from ((f"{path} example {number}", row) for number, row in enumerate(examples, start=1))


def _question(spec: TaskSpec, row: Any, where: str) -> str:
    if spec.form == "records":
        asked = _text(row, "instruction", where)
        given = _text(row, "input", where) if row.get("input") else ""
        return f"{asked}\n{given}" if given else asked
    return " ".join(_text(row, name, where) for name in spec.question)


def _choices(spec: TaskSpec, row: Any, where: str) -> tuple[str, ...]:
    if len(spec.choices) != 1:
        return tuple(_text(row, name, where) for name in spec.choices)
    name = spec.choices[0]
    found = _field(row, name)
    if isinstance(found, Mapping):  # columns: {"label": [...], "text": [...]}
        found = found.get("text")
    texts = []
    for each in found if isinstance(found, list) else ():
        text = each.get("text") if isinstance(each, Mapping) else each
        texts.append(text.strip() if isinstance(text, str) else "")
    if not 2 <= len(texts) <= len(readings.LETTERS) or not all(texts):
        most = len(readings.LETTERS)
        raise ValueError(f"{where}: {name!r} must hold 2 to {most} options, found {_field(row, name)!r}")
    return tuple(LABEL.sub("", text, count=1) for text in texts)


def _reference(spec: TaskSpec, row: Any, choices: Sequence[str], where: str) -> str:
    name = "output" if spec.form == "records" else spec.answer
    found = _field(row, name)
    if spec.kind == OPEN:
        return found.strip() if isinstance(found, str) else ""
    said = found
    if isinstance(said, Mapping) and said:  # scores: the best option counts
        said = max(said, key=lambda option: said[option])
    if isinstance(said, list) and len(said) == 1:
        (said,) = said
    if isinstance(said, int) and spec.kind == "choice" and 0 <= said < len(choices):
        said = readings.LETTERS[said]
    answer = readings.read(str(said), spec.kind, choices).answer if isinstance(said, str | int | float) else None
    if answer is None:
        raise ValueError(
            f"{where}: {name!r} is not an answer of the type {spec.kind!r} of the task {spec.title!r}: {found!r}; "
            "mend the row, or see data/tasks.toml for the fields that the task is read from"
        )
    return answer


def _field(row: Any, name: str) -> Any:
    """The value at a dotted name, or None."""
    for part in name.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row


def _text(row: Any, name: str, where: str) -> str:
    """The text under `name`; `ValueError` where there is none."""
    value = _field(row, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name!r} must be text that is not empty, found {value!r}")
    return value
