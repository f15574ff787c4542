"""What a variant is trained on: its files, that no question of an evaluation is among them, and how many rows go into a
step.

Knows: mixtures, languages of questions, the words that a style adds, and the encoder's count of trained tokens. Does
not know commands or results.

Every variant has the same optimizer steps and the same number of trained tokens, so a variant with short answers has
more rows in a step. What comes out differs from what was asked by about half a row a step; the report shows both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import asking, catalog, hygiene, outputs, records, tasks
from utils.overlap import EvaluationSets, QuestionSet
from utils.scoring import language
from utils.settings import Settings
from utils.studies.experiment import Evaluation, Experiment, Rows, Variant
from utils.tasks import TaskSpec

TOLERANCE = 0.05
"""How far a variant's trained tokens may be from its budget, as a share of it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a variant's steps are made of."""

    rows_a_step: int
    rows: int
    """That it is trained on, each once an epoch."""
    trained_tokens_a_row: float
    """On average."""
    tokens_a_row: float
    """On average, those of the prompt too."""

    def rows_seen(self, steps: int) -> int:
        """In so many steps; the last one of an epoch has the rows that are left."""
        epochs, further = divmod(steps, math.ceil(self.rows / self.rows_a_step))
        return epochs * self.rows + min(self.rows, further * self.rows_a_step)

    def trained_tokens(self, steps: int) -> int:
        """That are expected of so many steps."""
        return round(self.rows_seen(steps) * self.trained_tokens_a_row)

    def positions(self, steps: int) -> float:
        """Tokens that go through the model in so many steps: what the run costs, roughly."""
        return self.rows_seen(steps) * self.tokens_a_row


def file_of(evaluation: Evaluation) -> tuple[TaskSpec, Path]:
    """An evaluation's task, and where its questions lie."""
    spec = tasks.read_tasks()[evaluation.task]
    return spec, Path(evaluation.task_file) if evaluation.task_file else tasks.DATA_DIR / spec.path


def asked_questions(experiment: Experiment) -> EvaluationSets:
    """The questions of all evaluations; errors as `tasks.items`."""
    sets: dict[str, QuestionSet] = {}
    for evaluation in experiment.evaluations.values():
        spec, path = file_of(evaluation)
        name = evaluation.task_file or evaluation.task
        questions = tuple(item.question for item in tasks.items(spec, path))
        sets[name] = QuestionSet(name=name, questions=questions, ngram=spec.ngram)
    return EvaluationSets(sets.values())


def mixtures(name: str, variant: Variant, directory: Path) -> list[str]:
    """What `--data` is given: mixtures that are trained on as they stand, and files in `directory` for the parts of the
    others, each repeated as its mixture says."""
    found = []
    for rows, made in _parts(name, variant, directory):
        found += [rows.mixture] if rows.is_as_it_stands else []
        found += [f"{path}*{part.repeat}" if part.repeat > 1 else str(path) for part, path in made]
    return found


def write(name: str, variant: Variant, directory: Path, *, seed: int) -> list[Path]:
    """Writes the files that `mixtures` names; one that is there with the same rows stays untouched.

    Args:
        seed: of the rows that a `:N` takes: the same ones for every run.

    Raises:
        FileNotFoundError, ValueError: data that is missing or broken; no row is in the language; a dialogue, to whose
            question nothing can be added.
    """
    written = []
    for rows, made in _parts(name, variant, directory):
        for part, path in made:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in chosen(rows, part, seed=seed))
            if not text:
                raise ValueError(f"variants.{name}: no row of {part.name} has a question in {rows.language!r}")
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                with outputs.atomic(path) as file:
                    file.write(text)
            written.append(path)
    return written


def _parts(name: str, variant: Variant, directory: Path) -> Iterator[tuple[Rows, list[tuple[catalog.Part, Path]]]]:
    """Each entry of a variant's data, and the parts of which files are made, with these."""
    for number, rows in enumerate(variant.data, start=1):
        parts = [] if rows.is_as_it_stands else catalog.parse_mixture([rows.mixture])
        yield rows, [(part, directory / f"{name}-{number}-{place}.jsonl") for place, part in enumerate(parts, start=1)]


def chosen(rows: Rows, part: catalog.Part, *, seed: int) -> Iterator[dict[str, Any]]:
    """The records of a part that are in the language, asked in the style; errors as `write`."""
    for row in records.read_chosen(part, seed):
        asked = hygiene.prompt_of(row.record)
        if rows.language not in (None, language(asked)):
            continue
        if rows.style == asking.PLAIN:
            yield dict(row.record)
        elif "conversation" in row.record:
            raise ValueError(f"{row.origin}: style {rows.style!r} adds words to a question, and this is a dialogue")
        else:
            cued = asking.cued(asked, rows.style, rows.kind)
            yield {"instruction": cued, "input": "", "output": row.record["output"]}


def require_unseen(name: str, expressions: Sequence[str], asked: EvaluationSets, *, seed: int) -> int:
    """How many rows were looked at, none of which repeats a question of `asked`.

    Raises:
        ValueError: one does; the message names both.
    """
    seen = 0
    for part in catalog.parse_mixture(expressions):
        for row in records.read_chosen(part, seed):
            seen += 1
            for prompt, answer in _exchanges(row.record):
                if task := asked.match(prompt, answer):
                    raise ValueError(
                        f"variants.{name}: {row.origin} repeats a question of {task}, which the study asks: what was "
                        "trained on proves nothing. Train on other rows, or evaluate on others"
                    )
    return seen


def _exchanges(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if "conversation" in record:
        exchanges, system = hygiene.exchanges_of(record["conversation"])
        return [*exchanges, (system, "")]
    return [(hygiene.prompt_of(record), record["output"])]


def share(experiment: Experiment, variant: Variant, chosen: Settings, tokenizer: Any) -> Share:
    """How many rows make a step of the variant's trained tokens.

    Raises:
        FileNotFoundError, ValueError, MaskError: as `dataset.of_settings`; a step has fewer trained tokens than a row,
            or more than all rows; no number of rows comes near to the budget.
    """
    from utils import dataset

    data = dataset.of_settings(chosen, tokenizer)
    trained = float(data.train.targets.mean())
    a_step = experiment.trained_tokens * variant.budget / experiment.steps
    if a_step < trained:
        raise ValueError(
            f"{variant.title}: a row has {trained:.0f} trained tokens, and a step only {a_step:.0f} "
            f"({experiment.trained_tokens:,} in {experiment.steps:,} steps): give more trained_tokens or fewer steps"
        )
    rows = len(data.train)
    if a_step > rows * trained:
        raise ValueError(
            f"{variant.title}: a step of {a_step:.0f} trained tokens has more rows than there are ({rows:,}): give "
            "more steps or fewer trained_tokens, or repeat the data with *W"
        )
    mean_length = float(data.train.lengths.mean())
    found = [
        Share(rows_a_step=count, rows=rows, trained_tokens_a_row=trained, tokens_a_row=mean_length)
        for count in range(int(a_step / trained), min(rows, math.ceil(2 * a_step / trained)) + 1)
    ]
    wish = experiment.trained_tokens * variant.budget
    best = min(found, key=lambda each: abs(each.trained_tokens(experiment.steps) - wish))
    if abs(best.trained_tokens(experiment.steps) - wish) > TOLERANCE * wish:
        raise ValueError(
            f"{variant.title}: the nearest to its {wish:,.0f} trained tokens is "
            f"{best.trained_tokens(experiment.steps):,}, with {best.rows_a_step} of {rows:,} rows a step: rows come "
            "whole, and an epoch ends with a smaller step. Give more trained_tokens, or repeat the data with *W"
        )
    return best
