"""Answers side by side, chosen by rule and never by hand.

Knows: the rule. For each comparison, of the first seed's answers, in the order of the task's file and for each
language: the first question that only the one side answers rightly, the first that only the other does, the first that
both do, and the first that neither does. A kind that does not occur is said not to; a reader can check the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from utils import result_rows
from utils.studies.answered import Answers
from utils.studies.experiment import BASE, Experiment

KINDS: Mapping[str, Callable[[bool, bool], bool]] = {
    "only {of} is right": lambda ours, theirs: ours and not theirs,
    "only {against} is right": lambda ours, theirs: theirs and not ours,
    "both are right": lambda ours, theirs: ours and theirs,
    "both are wrong": lambda ours, theirs: not (ours or theirs),
}
RIGHT = 0.5
"""Of an open answer's ROUGE-L, which has no right and wrong."""


def transcripts(experiment: Experiment, answers: Mapping[tuple[str, int | None, str], Answers]) -> list[dict[str, Any]]:
    """One entry a comparison, language and kind; `row_id` is None where no question is of the kind."""
    found, seen = [], set()
    for comparison in experiment.comparisons:
        for cells in zip(experiment.cells(comparison.of), experiment.cells(comparison.against), strict=True):
            if cells not in seen:
                seen.add(cells)
                sides = [answers[name, None if name == BASE else experiment.seeds[0], how] for name, how in cells]
                names = {"of": "/".join(cells[0]), "against": "/".join(cells[1])}
                found += [{**names, **entry} for entry in _of_pair(*sides)]
    return found


def _of_pair(ours: Answers, theirs: Answers) -> Iterator[dict[str, Any]]:
    texts = [_texts(each) for each in (ours, theirs)]
    for language in sorted({line["language"] for line in ours.lines}):
        verdicts = [(place, ours.values[place] > RIGHT, theirs.values[place] > RIGHT) for place in ours.among(language)]
        for kind, is_of in KINDS.items():
            place = next((place for place, one, other in verdicts if is_of(one, other)), None)
            yield {"language": language, "kind": kind, **_entry(place, ours, *texts)}


def _texts(answers: Answers) -> list[Mapping[str, Any]]:
    return list(result_rows.Results.found(answers.directory).lines())


def _entry(
    place: int | None, ours: Answers, our_texts: list[Mapping[str, Any]], their_texts: list[Mapping[str, Any]]
) -> dict[str, Any]:
    if place is None:
        return {"row_id": None}
    line = ours.lines[place]
    return {
        "row_id": line[result_rows.ROW],
        "question": our_texts[place]["instruction"],
        "reference": line["reference"],
        "answers": [_said(texts[place]) for texts in (our_texts, their_texts)],
    }


def _said(line: Mapping[str, Any]) -> str:
    """Of several answers the first."""
    text = line["generate"]
    return text[0] if isinstance(text, list) else text if text is not None else f"(failed: {line['error']})"
