"""A study's pictures, as PNG: the cells with their intervals, and the learning curves.

Knows: how findings are drawn. Does not know how they were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import plots

CELLS, CURVES = "accuracy.png", "learning_curves.png"
GROUPS = {"all": "all", "en": "English", "cn": "Chinese"}
COLORS = {"all": "#444444", "en": "#1f77b4", "cn": "#d62728"}


def draw(findings: Mapping[str, Any], directory: Path) -> None:
    """Writes both pictures to `directory`."""
    cells(findings, directory / CELLS)
    curves(findings, directory / CURVES)


def titles(findings: Mapping[str, Any]) -> dict[str, str]:
    """By variant."""
    found = {name: variant["title"] for name, variant in findings["experiment"]["variants"].items()}
    return {"base": "the base alone", **found}


def cells(findings: Mapping[str, Any], path: Path) -> None:
    """A panel an evaluation: a mark for each variant and language, a bar for Student's interval over seeds, a small
    point for each seed."""
    named = titles(findings)
    evaluations = findings["experiment"]["evaluations"]
    variants = list(dict.fromkeys(cell["variant"] for cell in findings["cells"]))
    groups = list(dict.fromkeys(cell["group"] for cell in findings["cells"]))
    figure, panels = plots.pyplot().subplots(
        1,
        len(evaluations),
        figsize=(max(7.5, 4.2 * len(evaluations)), 1.4 + 0.32 * len(variants) * len(groups)),
        dpi=120,
        sharey=True,
        squeeze=False,
    )
    for panel, (name, evaluation) in zip(panels[0], evaluations.items(), strict=True):
        for cell in findings["cells"]:
            if cell["evaluation"] == name:
                at = variants.index(cell["variant"]) + _offset(groups.index(cell["group"]), len(groups))
                _mark(panel, cell, at)
        panel.set_title(evaluation["title"], fontsize=10)
        panel.set_xlim(-2, 102)
        panel.set_xlabel("%, with its 95 % interval over seeds")
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(variants)), [named[variant] for variant in variants])
    panels[0][0].invert_yaxis()
    _legend(panels[0][-1], groups)
    plots.save(figure, path)


def _offset(place: int, count: int) -> float:
    return 0.22 * (place - (count - 1) / 2)


def _mark(panel: Any, cell: Mapping[str, Any], at: float) -> None:
    color = COLORS.get(cell["group"], "#7f7f7f")
    middle = 100 * cell["mean"]
    if cell["low"] is not None:
        low, high = (100 * min(1.0, max(0.0, cell[name])) for name in ("low", "high"))
        panel.plot([low, high], [at, at], color=color, linewidth=2, alpha=0.55, solid_capstyle="butt")
    panel.plot([100 * value for value in cell["by_seed"]], [at] * len(cell["by_seed"]), ".", color=color, markersize=4)
    panel.plot([middle], [at], "o", color=color, markersize=6)


def _legend(panel: Any, groups: Sequence[str]) -> None:
    for group in groups:
        panel.plot([], [], "o", color=COLORS.get(group, "#7f7f7f"), label=GROUPS.get(group, group))
    panel.legend(loc="best", fontsize=8)


def curves(findings: Mapping[str, Any], path: Path) -> None:
    """Validation loss of every run over the tokens it was trained on; a colour a variant. Losses of variants with
    other answers are of other texts: a curve is read by itself."""
    named = titles(findings)
    figure, panel = plots.pyplot().subplots(figsize=(8, 4.5), dpi=120)
    lowest, highest = float("inf"), 0.0
    for place, (variant, runs) in enumerate(findings["runs"].items()):
        for number, run in enumerate(runs):
            points = [(entry["step"], entry["eval_loss"]) for entry in run["curve"] if "eval_loss" in entry]
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=f"C{place}",
                    markersize=3,
                    linewidth=1.3,
                    alpha=0.8,
                    label=named[variant] if number == 0 else None,
                )
                losses = [loss for _, loss in points]
                lowest, highest = min(lowest, *losses), max(highest, *losses)
    panel.set_xlabel("optimizer step")
    panel.set_ylabel("validation loss (nats per trained token)")
    if 0 < 20 * lowest < highest:
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    if highest:
        panel.legend(fontsize=8)
    plots.save(figure, path)
