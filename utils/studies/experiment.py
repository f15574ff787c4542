"""An experiment as its file describes it: what is trained, what is asked, and what is compared.

Knows: the fields of an experiment file (TOML; docs/studies.md explains them) and what makes one whole. Does not know
models, runs or results.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from utils import asking, lookup, readings, tasks

BASE = "base"
"""The base alone, in the place of a variant."""
NAME = re.compile(r"[a-z0-9_]+")
OURS = ("data", "max_steps", "epochs", "batch_size", "seed", "output_dir", "overwrite", "resume_from_checkpoint")
"""Flags that a study gives itself."""
Value = TypeVar("Value")
Flag = bool | int | float | str | list[str]


def _style(name: str) -> str:
    if name not in asking.STYLES:
        raise ValueError(lookup.unknown_name("style", name, asking.STYLES))
    return name


def _kind(name: str) -> str:
    if name not in readings.KINDS:
        raise ValueError(lookup.unknown_name("answer type", name, readings.KINDS))
    return name


def _flags(flags: Mapping[str, Flag]) -> Mapping[str, Flag]:
    if ours := sorted(set(flags) & set(OURS)):
        raise ValueError(f"a study gives {', '.join(ours)} itself: see steps, trained_tokens, seeds and data")
    return flags


Style = Annotated[str, AfterValidator(_style)]
Flags = Annotated[dict[str, Flag], AfterValidator(_flags)]


class Table(BaseModel):
    """A table of the file: no field but its own, and no value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rows(Table):
    """A part of what a variant is trained on, where it is not the mixture as it stands."""

    mixture: str
    """As `--data` takes it."""
    language: Literal["en", "cn"] | None = None
    """Only rows whose question is in this language: `cn` with Chinese characters in it, `en` without."""
    style: Style = "plain"
    """The words that are added to the question, as an evaluation of this style adds them."""
    kind: Annotated[str, AfterValidator(_kind)] = "text"
    """The type of answer that these words ask for."""

    @property
    def is_as_it_stands(self) -> bool:
        """Whether the mixture's own files can be trained on."""
        return self.language is None and self.style == "plain"


def _as_tables(given: Any) -> Any:
    return (
        [{"mixture": each} if isinstance(each, str) else each for each in given] if isinstance(given, list) else given
    )


class Variant(Table):
    """One way to train."""

    title: str
    data: Annotated[list[Rows], BeforeValidator(_as_tables)] = Field(min_length=1)
    """A text is the mixture as it stands."""
    budget: float = Field(default=1, gt=0)
    """Its share of the experiment's trained tokens; the steps stay the same."""
    flags: Flags = {}


class Evaluation(Table):
    """One way to ask."""

    title: str
    task: str
    task_file: str | None = None
    style: Style = "plain"
    shots: int = Field(default=0, ge=0)
    num_samples: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)


class Comparison(Table):
    """Two cells, each a variant or variant/evaluation, on the same questions."""

    asks: str
    """What it is to show, as a question."""
    of: str
    against: str
    expects: Literal["better", "worse", "any"] = "any"
    """What is claimed of `of`; `any`: nothing."""
    by: float = Field(default=0, ge=0, lt=1)
    """Of a claim: by how much at least, as a share of the questions."""


class Experiment(Table):
    """A whole file."""

    title: str
    about: str
    """Why, in a few sentences."""
    seeds: list[int] = Field(min_length=1)
    steps: int = Field(ge=1)
    trained_tokens: int = Field(ge=1)
    """Of each run: as many rows go into a step as have so many."""
    base_too: bool = False
    """Whether the base is asked, too."""
    flags: Flags = {}
    """Of uniform_finetune.py, for every variant."""
    variants: dict[str, Variant] = Field(min_length=1)
    evaluations: dict[str, Evaluation] = Field(min_length=1)
    comparisons: list[Comparison] = []

    def flags_of(self, variant: str) -> dict[str, Flag]:
        """Of uniform_finetune.py, but for those that a study gives itself."""
        return self.flags | self.variants[variant].flags

    def cells(self, named: str) -> list[tuple[str, str]]:
        """(variant, evaluation) of each cell that a comparison names: all evaluations where it names none."""
        variant, _, evaluation = named.partition("/")
        return [(variant, each) for each in ([evaluation] if evaluation else self.evaluations)]


def read(file: Path) -> Experiment:
    """The experiment in `file`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: broken TOML; a field that is unknown, missing or of another type; a name that leads nowhere. The
            message names the field.
    """
    if not file.is_file():
        near = ", ".join(sorted(path.name for path in file.parent.glob("*.toml"))) if file.parent.is_dir() else ""
        raise FileNotFoundError(f"there is no experiment {file}" + (f"; its folder has {near}" if near else ""))
    try:
        found = Experiment.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: broken TOML ({error})") from error
    except ValidationError as error:
        raise ValueError(f"{file}: {_first_fault(error)}") from error
    for fault in _faults(found):
        raise ValueError(f"{file}: {fault}")
    return found


def _first_fault(error: ValidationError) -> str:
    """An unknown field before a missing one: it is likely the same, misspelt."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    place, what = faults[0]["loc"], faults[0]["msg"].removeprefix("Value error, ")
    where = ".".join(map(str, place))
    if faults[0]["type"] != "extra_forbidden":
        return f"{where}: {what}"
    above = where.rpartition(".")[0]
    return lookup.unknown_name("field", str(place[-1]), _fields(place), above)


def _fields(place: tuple[int | str, ...]) -> Iterable[str]:
    """The fields of the table in which an unknown one stands."""
    tables: dict[Any, type[Table]] = {
        "variants": Rows if len(place) > 3 else Variant,
        "evaluations": Evaluation,
        "comparisons": Comparison,
    }
    return tables.get(place[0] if len(place) > 1 else None, Experiment).model_fields


def _faults(found: Experiment) -> Iterable[str]:
    """What no field shows by itself."""
    for kind, names in (("variants", found.variants), ("evaluations", found.evaluations)):
        for name in names:
            if not NAME.fullmatch(name):
                yield f"{kind}.{name}: a name becomes a folder: it may hold only a-z, 0-9 and _"
    if BASE in found.variants:
        yield f"variants.{BASE}: that name is the base alone; base_too = true asks it"
    if len(set(found.seeds)) < len(found.seeds):
        yield f"seeds: {found.seeds} names one twice"
    registry = tasks.read_tasks()
    for name, evaluation in found.evaluations.items():
        if evaluation.task not in registry:
            yield lookup.unknown_name("task", evaluation.task, registry, f"evaluations.{name}")
        else:
            try:
                asking.chosen_shots(registry[evaluation.task], evaluation.shots)
            except ValueError as error:
                yield f"evaluations.{name}: {error}"
    variants = [*found.variants, *([BASE] if found.base_too else [])]
    for number, comparison in enumerate(found.comparisons, start=1):
        yield from _comparison_faults(found, comparison, f"comparison {number} ({comparison.asks})", variants)


def _comparison_faults(found: Experiment, comparison: Comparison, where: str, variants: Iterable[str]) -> Iterable[str]:
    cells = []
    for named in (comparison.of, comparison.against):
        for variant, evaluation in found.cells(named):
            if variant not in variants:
                yield lookup.unknown_name("variant", variant, variants, where)
            elif evaluation not in found.evaluations:
                yield lookup.unknown_name("evaluation", evaluation, found.evaluations, where)
        cells.append(found.cells(named))
    if len(cells[0]) != len(cells[1]):
        yield f"{where}: name an evaluation on both sides, or on neither"
        return
    for (_, ours), (_, theirs) in zip(*cells, strict=True):
        one, other = found.evaluations.get(ours), found.evaluations.get(theirs)
        if one and other and (one.task, one.task_file) != (other.task, other.task_file):
            yield f"{where}: {ours} and {theirs} do not ask the same questions"
    if comparison.by and comparison.expects == "any":
        yield f"{where}: by says how much a claim claims, and expects claims nothing"
