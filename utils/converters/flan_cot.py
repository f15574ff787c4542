"""FLAN's chains of thought: a TSV file of question, answer and rationale for each set.

From google-research/FLAN, `flan/v2/cot_data`. Checked on the real files of aqua, creak, ecqa, gsm8k, qasc, sensemaking
and strategyqa (33,443 rows): no header; nothing is quoted in the manner of CSV, so a field may hold bare quotes; a
newline inside a field is written as the two characters backslash and n. esnli and qed stand beside them upstream and
are taken to have the same form; no file or document of theirs was seen (unverified).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils import formats
from utils.converters.contract import Converter, Options, Outcome, as_text, chain_of_thought

SETS = ("aqua", "creak", "ecqa", "esnli", "gsm8k", "qasc", "qed", "sensemaking", "strategyqa")
# AQuA writes a few of its newlines with the backslash doubled. Only these files write newlines so: elsewhere the two
# characters may begin a formula's `\neq`.
WRITTEN_NEWLINE = re.compile(r"\\{1,2}n")
COLUMNS = ("question", "answer", "rationale")


def set_of(path: Path) -> str:
    """The set that the file's name tells. Raises ValueError where it names none, or several."""
    words = re.split(r"[^a-z0-9]+", path.name.lower())
    named = [name for name in SETS if name in words]
    if len(named) != 1:
        raise ValueError(
            f"{path}: expected one of {', '.join(SETS)} in the file's name, found {' and '.join(named) or 'none'}; "
            "name the set as an option"
        )
    return named[0]


def complete(path: Path, options: Options) -> Options:
    """The options with a set."""
    return options if options.set_name else replace(options, set_name=set_of(path))


def convert(raw: Any, options: Options) -> Iterator[Outcome]:
    """One line, without its end."""
    fields = as_text(raw, "the line").split("\t")
    if len(fields) != len(COLUMNS):
        raise ValueError(f"expected {', '.join(COLUMNS)} between tabs, found {len(fields)} columns")
    question, answer, rationale = (WRITTEN_NEWLINE.sub("\n", field) for field in fields)
    yield chain_of_thought(question, answer, rationale, options.set_name, options)


CONVERTER = Converter(
    what="FLAN's CoT files: question, answer, rationale between tabs",
    read=formats.lines,
    convert=convert,
    complete=complete,
    sorted_by_hash=True,
)
