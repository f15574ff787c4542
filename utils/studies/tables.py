"""A study's findings in words: sentences, and tables of text.

Knows: which table says what, and how shares, differences and p-values are written. Does not know how anything was
found, or what a page looks like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils.schedule import duration
from utils.studies.answered import ALL
from utils.studies.pictures import CELLS, CURVES, GROUPS, titles


def tables(findings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a page shows, by name."""
    return {
        "title": findings["title"],
        "about": findings["about"],
        "answers": answers(findings),
        "cells": [cell_table(findings, name) for name in findings["experiment"]["evaluations"]],
        "comparisons": comparison_rows(findings),
        "training": training_rows(findings),
        "transcripts": _transcripts(findings),
        "runs": _runs(findings),
        "done": _done(findings),
        "notes": findings["notes"],
        "cells_picture": CELLS,
        "curves_picture": CURVES,
    }


def percent(share: float | None, digits: int = 1) -> str:
    """`97.5 %`."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float | None) -> str:
    """`+71.0` or `−3.5`, in percentage points."""
    return "–" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def between(found: Mapping[str, Any]) -> str:
    """The interval of a difference."""
    return "–" if found["low"] is None else f"{points(found['low'])} to {points(found['high'])}"


def p_value(p: float | None) -> str:
    """`< 0.001` where more digits say nothing; it does not break."""
    return "–" if p is None else "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def answers(findings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was compared, and for each language a sentence and a verdict."""
    found = []
    for members in _by_comparison(findings):
        languages = [each for each in members if each["group"] != ALL] or members
        first = members[0]
        found.append(
            {
                "asks": first["asks"],
                "cells": f"{_cell_title(findings, first['of'])} against {_cell_title(findings, first['against'])}",
                "lines": [{"says": _sentence(each), "verdict": each["verdict"]} for each in languages],
            }
        )
    return found


def _by_comparison(findings: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """A comparison's groups together, in the order of the file."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for each in findings["comparisons"]:
        found.setdefault((each["asks"], each["of"], each["against"]), []).append(each)
    return list(found.values())


def _sentence(compared: Mapping[str, Any]) -> str:
    return (
        f"{GROUPS.get(compared['group'], compared['group'])}: {points(compared['difference'])} points (95 % interval "
        f"{between(compared['over_questions'])} over questions, {between(compared['over_seeds'])} over seeds; "
        f"p {_equals(compared['p_holm'])})"
    )


def _equals(p: float | None) -> str:
    said = p_value(p)
    return said if said.startswith("<") else f"= {said}"


def _cell_title(findings: Mapping[str, Any], cell: str) -> str:
    variant, _, evaluation = cell.partition("/")
    evaluations = findings["experiment"]["evaluations"]
    title = titles(findings)[variant]
    return title if len(evaluations) == 1 else f"{title} ({evaluations[evaluation]['title']})"


def cell_table(findings: Mapping[str, Any], evaluation: str) -> dict[str, Any]:
    """A row a variant, and for each language the mean over seeds, its interval, and each seed."""
    cells = [cell for cell in findings["cells"] if cell["evaluation"] == evaluation]
    groups = list(dict.fromkeys(cell["group"] for cell in cells))
    rows = []
    for variant in dict.fromkeys(cell["variant"] for cell in cells):
        mine = {cell["group"]: cell for cell in cells if cell["variant"] == variant}
        unread = f"{mine[ALL]['unread']} of {mine[ALL]['answers']}"
        rows.append([titles(findings)[variant], *(_value(mine[group]) for group in groups), unread])
    spec = findings["experiment"]["evaluations"][evaluation]
    how = f"task {spec['task']}, style {spec['style']}, {spec['shots']} worked examples"
    how += f", the majority of {spec['num_samples']} answers" if spec["num_samples"] > 1 else ", greedy"
    heads = [
        f"{GROUPS.get(group, group)} ({next(cell['questions'] for cell in cells if cell['group'] == group)} questions)"
        for group in groups
    ]
    return {
        "title": spec["title"],
        "how": f"{how}; {cells[0]['measure']}",
        "head": ["trained on", *heads, "answers that could not be read"],
        "rows": rows,
    }


def _value(cell: Mapping[str, Any]) -> str:
    low, high = (None if cell[name] is None else min(1.0, max(0.0, cell[name])) for name in ("low", "high"))
    said = f" ({percent(low)} to {percent(high)})" if low is not None else ""
    if not said and cell["wilson"]:
        said = f" ({percent(cell['wilson'][0])} to {percent(cell['wilson'][1])}, Wilson's of all answers)"
    seeds = ", ".join(f"{100 * value:.1f}" for value in cell["by_seed"])
    return f"{percent(cell['mean'])}{said}" + (f"; seeds {seeds}" if len(cell["by_seed"]) > 1 else "; one run")


def comparison_rows(findings: Mapping[str, Any]) -> dict[str, Any]:
    """A row a comparison and language; what is the same as in the row above is not said again."""
    rows = []
    for members in _by_comparison(findings):
        for number, each in enumerate(members):
            what = f"{_cell_title(findings, each['of'])} − {_cell_title(findings, each['against'])}"
            tests = each["mcnemar"]
            rows.append(
                [
                    *([each["asks"], what] if number == 0 else ["", ""]),
                    GROUPS.get(each["group"], each["group"]),
                    points(each["difference"]),
                    between(each["over_seeds"]),
                    between(each["over_questions"]),
                    ", ".join(f"{test['only_first']}:{test['only_second']}" for test in tests) or "–",
                    p_value(each["p"]),
                    p_value(each["p_holm"]),
                    each["verdict"],
                ]
            )
    head = ["question", "difference", "language", "points", "95 % over seeds", "95 % over questions"]
    return {"head": [*head, "only the one : only the other, by seed", "p", "p, Holm", "verdict"], "rows": rows}


def training_rows(findings: Mapping[str, Any]) -> dict[str, Any]:
    """A row a variant: what it was trained on, at which budget, and what that cost."""
    rows = []
    for variant, runs in findings["runs"].items():
        share = findings["shares"][variant]
        budget = findings["experiment"]["trained_tokens"] * findings["experiment"]["variants"][variant]["budget"]
        tokens = [run["trained_tokens"] for run in runs]
        losses = [run["metrics"]["validation_loss"] for run in runs if "validation_loss" in run["metrics"]]
        seconds, mean = sum(run["seconds"] for run in runs), sum(tokens) / len(tokens)
        rows.append(
            [
                titles(findings)[variant],
                _data(findings["experiment"]["variants"][variant]["data"], runs[0]["data"]),
                f"{share['rows_a_step']:,}",
                f"{mean:,.0f} ({points(mean / budget - 1)} % of {budget:,.0f})",
                ", ".join(f"{loss:.4f}" for loss in losses) or "–",
                duration(seconds / len(runs)),
            ]
        )
    head = ["trained on", "data", "rows a step", "trained tokens of a run", "validation loss, by seed"]
    return {"head": [*head, "time of a run"], "rows": rows}


def _data(given: Sequence[Any], sources: Sequence[Mapping[str, Any]]) -> str:
    """What a variant was trained on, in the words of the experiment; rows as the run counted them."""
    said = []
    for each in given:
        language = f", questions in {GROUPS[each['language']]}" if each["language"] else ""
        style = f", asked in the style {each['style']}" if each["style"] != "plain" else ""
        said.append(f"{each['mixture']}{language}{style}")
    return f"{'; '.join(said)} ({sum(source['rows'] for source in sources):,} rows)"


def _transcripts(findings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By comparison and language: titles in the place of names."""
    shown: dict[tuple[str, str, str], dict[str, Any]] = {}
    for each in findings["transcripts"]:
        of, against = (_cell_title(findings, each[name]) for name in ("of", "against"))
        where = f"{of} against {against}, {GROUPS.get(each['language'], each['language'])}"
        group = shown.setdefault(
            (each["of"], each["against"], each["language"]), {"where": where, "sides": [of, against], "examples": []}
        )
        kind = each["kind"].format(of=f"“{of}”", against=f"“{against}”")
        group["examples"].append({**each, "kind": kind})
    return list(shown.values())


def _runs(findings: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [titles(findings)[variant], str(run["seed"]), run["directory"], run["run_sha256"][:16], run["command"]]
        for variant, runs in findings["runs"].items()
        for run in runs
    ]
    return {"head": ["trained on", "seed", "directory", "sha256 of run.json", "command"], "rows": rows}


def _done(findings: Mapping[str, Any]) -> list[str]:
    """How it was done, a sentence each."""
    experiment, machine = findings["experiment"], findings["machine"]
    every = [run for runs in findings["runs"].values() for run in runs]
    seconds = sum(run["seconds"] for run in every)
    versions = ", ".join(f"{name} {version}" for name, version in every[0]["versions"].items())
    seeds = ", ".join(map(str, experiment["seeds"]))
    return [
        f"Every run has {experiment['steps']:,} steps and about {experiment['trained_tokens']:,} trained tokens "
        f"(they carry loss), so that variants with short answers have more rows in a step. Seeds: {seeds}.",
        f"None of the {sum(findings['unseen_rows'].values()):,} training rows repeats a question that is asked.",
        "Means are over seeds, with Student's 95 % interval over them. Differences are paired: by seed, and by "
        "question with a bootstrap of 10,000 resamples. p is McNemar's exact one, the largest of all seeds; Holm's "
        "correction is over all rows of the table. A difference is shown where all seeds agree, the bootstrap's "
        "interval does not hold 0, and the corrected p is below 0.05.",
        f"{len(every)} runs, {duration(seconds)} of training in all, {sum(run['trained_tokens'] for run in every):,} "
        f"trained tokens. On {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python "
        f"{machine['python']}. {versions}. Commit {every[0]['commit'] or 'not known'}.",
        f"Made from {findings['file']} (sha256 {findings['file_sha256'][:16]}…): python3 study.py {findings['file']}.",
    ]
