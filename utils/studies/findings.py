"""What a study found: every figure of its report, each with the run that it comes from.

Knows: finished runs and answers, and how they are compared. Does not know how a figure is shown. What comes out is JSON
and nothing else: the pages are made from it, and can be made from it again.

A cell is a variant and an evaluation. Its accuracy is a mean over seeds, with Student's interval over them; beside it
stands what all seeds' answers are together, with Wilson's. Two cells are compared question by question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils import cache, report, result_rows, runinfo, significance
from utils.progress import LOG_NAME
from utils.scoring import wilson
from utils.studies.answered import ALL, Answers, mean, read_answers
from utils.studies.experiment import BASE, Comparison, Experiment
from utils.studies.plan import Line, Plan
from utils.studies.transcripts import transcripts

ENOUGH = 0.05
"""p-values below it, after Holm's correction, are taken for a difference."""
CURVE = ("step", "loss", "eval_loss", "trained_tokens")


def collect(plan: Plan, machine: Mapping[str, Any]) -> dict[str, Any]:
    """All that the report says.

    Args:
        machine: what the study ran on, for people.

    Raises:
        ValueError: two runs answered other questions, or were made by other versions of what shapes a result.
    """
    experiment = plan.experiment
    answers = {
        (line.variant, line.seed, name): read_answers(command.directory)
        for line in plan.lines
        for name, command in zip(experiment.evaluations, line.commands[-len(experiment.evaluations) :], strict=True)
    }
    _require_same_questions(experiment, answers)
    runs = {name: [_run(plan.line_of(name, seed), plan) for seed in experiment.seeds] for name in experiment.variants}
    compared = [found for comparison in experiment.comparisons for found in _compared(experiment, comparison, answers)]
    corrected = significance.holm([each["p"] for each in compared if each["p"] is not None])
    for each in compared:
        each["p_holm"] = corrected.pop(0) if each["p"] is not None else None
        each["verdict"] = verdict(each)
    return {
        "title": experiment.title,
        "about": experiment.about.strip(),
        "file": plan.file.name,
        "file_sha256": cache.content_hash(plan.file),
        "experiment": experiment.model_dump(),
        "machine": dict(machine),
        "runs": runs,
        "shares": {name: asdict(share) for name, share in plan.shares.items()},
        "unseen_rows": dict(plan.unseen),
        "cells": _cells(experiment, answers),
        "comparisons": compared,
        "transcripts": transcripts(experiment, answers),
        "notes": _notes(runs),
    }


def _require_same_questions(experiment: Experiment, answers: Mapping[Any, Answers]) -> None:
    for name in experiment.evaluations:
        rows: dict[tuple[Any, ...], Path] = {}
        for (_, _, evaluation), found in answers.items():
            if evaluation == name:
                rows.setdefault(tuple(line[result_rows.ROW] for line in found.lines), found.directory)
        if len(rows) > 1:
            first, second, *_ = rows.values()
            raise ValueError(
                f"{first} and {second} hold answers to other questions: the task's file has changed between them. "
                "Delete one of them, and the study asks again"
            )


def _run(line: Line, plan: Plan) -> dict[str, Any]:
    """A run, and what it cost."""
    assert line.training is not None
    directory = line.training.directory
    run = runinfo.read(directory)
    log = report.read_log(directory / LOG_NAME)
    return {
        "seed": line.seed,
        "directory": str(directory),
        "command": " ".join(["python3", *line.training.argv]),
        "run_sha256": cache.content_hash(directory / runinfo.NAME),
        "data": [{name: source[name] for name in ("name", "rows", "sha256")} for source in run.sources],
        "rows_a_step": plan.shares[line.variant].rows_a_step,
        "trained_tokens": run.trained_tokens,
        "seconds": round(run.seconds, 1),
        "metrics": run.metrics,
        "versions": run.versions,
        "commit": run.commit,
        "started": run.started,
        "curve": [
            {name: entry[name] for name in CURVE if name in entry}
            for entry in log
            if {"loss", "eval_loss"} & set(entry)
        ],
    }


def _groups(experiment: Experiment, answers: Mapping[tuple[str, int | None, str], Answers], name: str) -> list[str]:
    """All, and the languages of an evaluation's questions if there is more than one."""
    first = next(found for (_, _, evaluation), found in answers.items() if evaluation == name)
    languages = sorted({line["language"] for line in first.lines})
    return [ALL, *(languages if len(languages) > 1 else [])]


def _cells(experiment: Experiment, answers: Mapping[tuple[str, int | None, str], Answers]) -> list[dict[str, Any]]:
    found = []
    for name in experiment.evaluations:
        for variant in [*([BASE] if experiment.base_too else []), *experiment.variants]:
            lines = [answers[variant, seed, name] for seed in _seeds(experiment, variant)]
            for group in _groups(experiment, answers, name):
                found.append({"variant": variant, "evaluation": name, "group": group, **_cell(lines, group)})
    return found


def _cell(lines: Sequence[Answers], group: str) -> dict[str, Any]:
    """What all seeds of a variant answered to a group's questions."""
    values = [[each.values[place] for place in each.among(group)] for each in lines]
    pooled = [value for each in values for value in each]
    is_exact = lines[0].is_exact
    return {
        "measure": "accuracy" if is_exact else "ROUGE-L",
        "questions": len(values[0]),
        "by_seed": [mean(each) for each in values],
        **asdict(significance.over_seeds([mean(each) for each in values])),
        "answers": len(pooled),
        "wilson": list(wilson(round(sum(pooled)), len(pooled))) if is_exact else None,
        "unread": sum(each.is_unread(place) for each in lines for place in each.among(group)),
        "directories": [str(each.directory) for each in lines],
    }


def _seeds(experiment: Experiment, variant: str) -> Sequence[int | None]:
    return [None] if variant == BASE else experiment.seeds


def _compared(
    experiment: Experiment, comparison: Comparison, answers: Mapping[tuple[str, int | None, str], Answers]
) -> Iterator[dict[str, Any]]:
    for ours, theirs in zip(experiment.cells(comparison.of), experiment.cells(comparison.against), strict=True):
        pairs = [
            tuple(answers[variant, None if variant == BASE else seed, name] for variant, name in (ours, theirs))
            for seed in (experiment.seeds if {ours[0], theirs[0]} != {BASE} else [None])  # the base has one run
        ]
        for group in _groups(experiment, answers, ours[1]):
            yield {
                "asks": comparison.asks,
                "of": "/".join(ours),
                "against": "/".join(theirs),
                "group": group,
                "expects": comparison.expects,
                "by": comparison.by,
                **_difference(pairs, group),
            }


def _difference(pairs: Sequence[tuple[Answers, ...]], group: str) -> dict[str, Any]:
    """Two cells, seed by seed and question by question."""
    places = pairs[0][0].among(group)
    first = [[pair[0].values[place] for place in places] for pair in pairs]
    second = [[pair[1].values[place] for place in places] for pair in pairs]
    by_seed = [mean(ours) - mean(theirs) for ours, theirs in zip(first, second, strict=True)]
    questions = significance.over_questions(
        [mean(each) for each in zip(*first, strict=True)], [mean(each) for each in zip(*second, strict=True)]
    )
    tests = []
    if all(answers.is_exact for pair in pairs for answers in pair):
        tests = [
            significance.mcnemar([value == 1 for value in ours], [value == 1 for value in theirs])
            for ours, theirs in zip(first, second, strict=True)
        ]
    return {
        "questions": len(places),
        "by_seed": by_seed,
        "difference": mean(by_seed),
        "over_seeds": asdict(significance.over_seeds(by_seed)),
        "over_questions": asdict(questions),
        "mcnemar": [asdict(test) for test in tests],
        # Every seed must show it by itself: the weakest counts.
        "p": max(test.p for test in tests) if tests else None,
    }


def verdict(compared: Mapping[str, Any]) -> str:
    """In a word: `better`, `worse` or `no difference shown`; of a claim `as claimed`, `smaller than claimed`, `not
    shown` or `the opposite`.

    A difference is shown where every seed goes the same way, the bootstrap's interval does not hold 0, and McNemar's
    largest p of all seeds is below 0.05 after Holm's correction (open answers have no such p).
    """
    low, high = (compared["over_questions"][name] for name in ("low", "high"))
    certain = compared["p_holm"] is None or compared["p_holm"] < ENOUGH
    signs = {(difference > 0) - (difference < 0) for difference in compared["by_seed"]}
    shown = "no difference shown"
    if low is not None and certain and len(signs) == 1 and not low <= 0 <= high:
        shown = "better" if low > 0 else "worse"
    if compared["expects"] == "any":
        return shown
    if shown == compared["expects"]:
        nearest = low if shown == "better" else -high
        return "as claimed" if nearest >= compared["by"] else "smaller than claimed"
    return "not shown" if shown == "no difference shown" else "the opposite"


def _notes(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What a reader must know of how the runs differ."""
    every = [run for each in runs.values() for run in each]
    said = []
    for what in ("versions", "commit"):
        kinds = {json.dumps(run[what], sort_keys=True) for run in every}
        if len(kinds) > 1:
            said.append(f"The runs were not all made by the same {what}: {'; '.join(sorted(kinds))}")
    return said
