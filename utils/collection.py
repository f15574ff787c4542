"""The data collection for people: lists of the catalogue, all that is known of a dataset, and what is in one.

Knows: how to choose rows of the catalogue and to put figures into lines. Does not know how a file is read or fetched.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import catalog, cli, hygiene
from utils.catalog import DatasetSpec
from utils.ledger import table
from utils.readers import read_rows

if TYPE_CHECKING:
    from utils.store import EncodedFile
    from utils.survey import Survey

FILTERS = ("lang", "task", "gen", "status", "license", "min_size", "max_size")
SAMPLE_ROWS = 2
SAMPLE_CHARACTERS = 600


def add_filter_flags(add: Callable[..., Any]) -> None:
    """Which rows of the catalogue are wanted; `add` is a parser's `add_argument`, and `FILTERS` are their names."""
    for tag, values in (("lang", catalog.LANGUAGES), ("task", catalog.TASKS), ("gen", catalog.GENERATIONS)):
        add(f"--{tag}", nargs="+", choices=values, default=[], help=f"only those with one of these {tag} tags")
    add("--status", nargs="+", choices=catalog.STATUSES, default=[], help="only those")
    add("--license", default="", help="only those whose licence contains this")
    add("--min_size", type=cli.natural_int, default=0, metavar="N", help="only those of at least N rows")
    add("--max_size", type=cli.natural_int, metavar="N", help="only those of at most N rows")


def chosen(
    rows: Mapping[str, DatasetSpec],
    *,
    lang: Iterable[str] = (),
    task: Iterable[str] = (),
    gen: Iterable[str] = (),
    status: Iterable[str] = (),
    license: str = "",
    min_size: int = 0,
    max_size: int | None = None,
) -> dict[str, DatasetSpec]:
    """The rows that have one of the wanted tags of each kind (none wanted: any), `license` in their licence (in any
    case) and a published size within the bounds; a row without a size passes only where no bound is set."""
    return {
        key: spec
        for key, spec in rows.items()
        if all(
            not set(want) or set(want) & set(have)
            for want, have in ((lang, spec.lang), (task, spec.task), (gen, spec.gen))
        )
        and (not set(status) or spec.status in set(status))
        and license.lower() in spec.license.lower()
        and _within(spec.size, min_size, max_size)
    }


def _within(size: int | None, least: int, most: int | None) -> bool:
    if size is None:
        return least == 0 and most is None
    return least <= size and (most is None or size <= most)


def as_dict(spec: DatasetSpec) -> dict[str, Any]:
    """A row of the catalogue, and whether its file is here."""
    return dataclasses.asdict(spec) | {"here": is_here(spec)}


def is_here(spec: DatasetSpec) -> bool:
    """Whether the unified file is on this machine."""
    return (catalog.DATA_DIR / spec.path).exists()


def list_lines(rows: Mapping[str, DatasetSpec]) -> list[str]:
    """A table of rows."""
    cells = [
        [
            key,
            "/".join(s.lang),
            "/".join(s.task),
            "/".join(s.gen),
            f"{s.size:,}" if s.size else "",
            "yes" if is_here(s) else "",
            s.license,
        ]
        for key, s in rows.items()
    ]
    total = sum(spec.size or 0 for spec in rows.values() if spec.status != "part")
    lines = table(["key", "lang", "task", "gen", "rows", "here", "licence"], cells)
    parts = sum(spec.status == "part" for spec in rows.values())
    sets = len(rows) - parts
    return [*lines, f"{sets} datasets of {total:,} rows as published, and {parts} parts of datasets"]


def show_lines(key: str, spec: DatasetSpec, parts: Sequence[str]) -> list[str]:
    """All that is known of a dataset, where its file goes, and its first rows if it is here.

    Args:
        parts: keys of the datasets that are a part of it.
    """
    values = {name: value for name, value in dataclasses.asdict(spec).items() if value not in ("", (), None)}
    lines = [f"{key}: {spec.title}"]
    for name, value in values.items():
        texts = (
            [str(each) for each in value]
            if isinstance(value, tuple)
            else [f"{value:,}" if isinstance(value, int) else value]
        )
        if name in ("lang", "task", "gen"):
            texts = [", ".join(texts)]
        for i, text in enumerate(texts):
            lines += textwrap.wrap(
                text,
                110,
                initial_indent=f"  {name if i == 0 else '':<13} ",
                subsequent_indent=" " * 16,
                break_long_words=False,
                break_on_hyphens=False,
            )
    if parts:
        lines.append(f"  {'parts':<13} {', '.join(parts)}")
    path = catalog.DATA_DIR / spec.path
    if not path.exists():
        return [*lines, catalog.missing_file(catalog.Part(name=key, path=path, spec=spec))]
    return [*lines, f"its file is here: {path}", *sample_lines(path)]


def sample_lines(path: Path) -> list[str]:
    """The first rows of a file, shortened."""
    lines = []
    for row in islice(read_rows(path, answered=False), SAMPLE_ROWS):
        text = json.dumps(row.record, ensure_ascii=False, indent=2)
        lines.append(text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]}…")
    return lines


def survey_lines(name: str, found: Survey) -> list[str]:
    """What a file holds."""
    import numpy

    characters = found.column("characters")
    prompts = len(numpy.unique(found.column("prompt")))
    shapes = ", ".join(f"{count:,} {shape}" for shape, count in found.shapes.most_common())
    languages = ", ".join(f"{count:,} {language or 'not told'}" for language, count in found.languages.most_common())
    return [
        f"{name}: {found.rows:,} rows ({shapes}; {found.dialogues:,} dialogues), {found.left_out:,} left out by :N",
        f"  languages of the answers: {languages}",
        f"  characters: {int(characters.sum()):,}; a row {quantiles(characters)}",
        f"  different prompts: {prompts:,}",
    ]


def token_lines(rows: EncodedFile, cutoff_len: int) -> list[str]:
    """The tokens of a file's rows."""
    kept = rows.column("kept")
    lengths, targets = rows.column("length")[kept], rows.column("targets")[kept]
    if not len(lengths):
        return ["  tokens: no row has any"]
    over = int((lengths > cutoff_len).sum())
    return [
        f"  tokens: {int(lengths.sum()):,}; a row {quantiles(lengths)}",
        f"  trained tokens: {int(targets.sum()):,} ({targets.sum() / lengths.sum():.1%})",
        f"  over --cutoff_len {cutoff_len}: {over:,} rows ({over / len(lengths):.2%})",
    ]


def finding_lines(counts: Counter[str], examples: Mapping[str, Sequence[str]], drop: frozenset[str]) -> list[str]:
    """Findings with the rows that show them first."""
    lines = []
    for name, check in hygiene.CHECKS.items():
        if counts[name]:
            action = "dropped in training" if name in drop else "reported"
            where = (
                f" ({', '.join(examples[name])}{', …' if counts[name] > len(examples[name]) else ''})"
                if examples.get(name)
                else ""
            )
            lines.append(f"  {name}: {counts[name]:,} rows: {check.what}; {action}{where}")
    return lines or ["  nothing was found"]


def quantiles(values: Any) -> str:
    """Least, middle, 95 % and most of an array of whole numbers."""
    import numpy

    if not len(values):
        return "none"
    least, middle, most_rows, most = numpy.percentile(values, [0, 50, 95, 100], method="nearest")
    return f"{least:,} to {most:,}, half at most {middle:,}, 95 % at most {most_rows:,}"
