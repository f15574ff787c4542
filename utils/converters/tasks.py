"""Tasks with instances: a description once, and several inputs with their outputs.

Self-Instruct seed tasks (checked on tatsu-lab/stanford_alpaca's 175 English ones and LianjiaTech/BELLE's 175 Chinese
ones): a row is a task with `instruction` and `instances` of `input` and `output`; `<noinput>` stands for an empty
input. Natural Instructions (allenai/natural-instructions; its schema was not seen in a document; unverified): a file is
a task with `Definition` and `Instances` of `input` and `output`, a list of right answers of which the first is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils import formats
from utils.converters.contract import (
    Converter,
    Dropped,
    Options,
    Outcome,
    as_text,
    instruction,
    mapping,
    optional_text,
    sequence,
    text,
)
from utils.formats import RawRow

NO_INPUT = "<noinput>"


def convert_self_instruct(raw: Any, options: Options) -> Iterator[Outcome]:
    """A record for each instance."""
    row = mapping(raw, ["instruction", "instances"])
    asked, instances = text(row, "instruction"), sequence(row, "instances")
    if not instances:
        yield Dropped("no instances")
    for instance in instances:
        given = optional_text(mapping(instance, ["output"]), "input")
        yield instruction(asked, "" if given.strip().lower() == NO_INPUT else given, text(instance, "output"))


def read_natural_instructions(path: Path) -> Iterator[RawRow]:
    """The instances of a task file, each with the task's definition."""
    try:
        task = mapping(formats.document(path), ["Definition", "Instances"])
        definition = task["Definition"]
        parts = definition if isinstance(definition, list) else [definition]
        described = "\n".join(as_text(part, "'Definition'") for part in parts)
        instances = sequence(task, "Instances")
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    for number, instance in enumerate(instances, start=1):
        yield f"instance {number}", {"definition": described, "instance": instance}


def convert_natural_instructions(raw: Any, options: Options) -> Iterator[Outcome]:
    """One instance."""
    row = mapping(raw, ["definition", "instance"])
    described, instance = text(row, "definition"), mapping(row["instance"], ["input", "output"])
    answers = instance["output"] if isinstance(instance["output"], list) else [instance["output"]]
    said = [as_text(answer, "'output'") for answer in answers]
    yield instruction(described, text(instance, "input"), next((answer for answer in said if answer.strip()), ""))


SELF_INSTRUCT = Converter(
    what="Self-Instruct tasks: instruction, instances", read=formats.read, convert=convert_self_instruct
)
NATURAL_INSTRUCTIONS = Converter(
    what="Natural Instructions task files: Definition, Instances",
    read=read_natural_instructions,
    convert=convert_natural_instructions,
)
