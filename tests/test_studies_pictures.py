"""A study's pictures: what is drawn where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from utils import plots
from utils.studies import pictures


def findings(groups: list[str], curve: list[dict[str, float]]) -> dict[str, Any]:
    """Two variants beside the base, in each group."""
    cells = [
        {"variant": variant, "evaluation": "sums", "group": group, "mean": 0.5, "low": low, "high": 0.7, "by_seed": [0.4, 0.6]}
        for variant, low in (("base", None), ("all", -0.1), ("cn", 0.3))
        for group in groups
    ]  # fmt: skip
    return {
        "experiment": {
            "variants": {"all": {"title": "both languages 🌏"}, "cn": {"title": "中文"}},
            "evaluations": {"sums": {"title": "Sums"}},
        },
        "cells": cells,
        "runs": {"all": [{"curve": curve}, {"curve": curve}], "cn": [{"curve": []}]},
    }


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The first panel of each picture that is saved."""
    found: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: found.append(figure.axes[0]))
    return found


@pytest.mark.parametrize("groups", [["all"], ["all", "en"], ["all", "en", "cn"]])
def test_the_marks_of_a_variant_stand_around_its_name(groups: list[str], panels: list[Any]) -> None:
    pictures.cells(findings(groups, []), Path("unused.png"))
    (panel,) = panels
    assert [label.get_text() for label in panel.get_yticklabels()] == ["the base alone", "both languages 🌏", "中文"]
    heights = [line.get_ydata()[0] for line in panel.lines if line.get_marker() == "o" and len(line.get_ydata())]
    for place in range(3):
        own = sorted(height for height in heights if abs(height - place) < 0.5)
        assert len(set(own)) == len(groups), "no mark hides another"
        assert sum(own) / len(own) == pytest.approx(place)


def test_an_interval_ends_where_accuracy_ends_and_the_base_has_none(panels: list[Any]) -> None:
    pictures.cells(findings(["all"], []), Path("unused.png"))
    bars = [list(line.get_xdata()) for line in panels[0].lines if line.get_marker() == "None"]
    assert bars == [pytest.approx([0, 70]), pytest.approx([30, 70])]


@pytest.mark.parametrize(("losses", "scale"), [([2.0, 1.0], "linear"), ([3.0, 0.1], "log"), ([], "linear")])
def test_losses_that_lie_far_apart_get_a_logarithmic_scale(losses: list[float], scale: str, panels: list[Any]) -> None:
    curve = [{"step": step, "loss": 1.0} for step in (1, 2)]
    curve += [{"step": step, "eval_loss": loss} for step, loss in enumerate(losses, start=1)]
    pictures.curves(findings(["all"], curve), Path("unused.png"))
    (panel,) = panels
    assert panel.get_yscale() == scale
    assert [list(line.get_ydata()) for line in panel.lines] == ([losses] * 2 if losses else [])
    named = panel.get_legend_handles_labels()[1]
    assert named == (["both languages 🌏"] if losses else []), "seeds of a variant have one name"


@pytest.mark.filterwarnings("ignore:Glyph")  # a machine may have no Chinese font
def test_both_are_written(tmp_path: Path) -> None:
    pictures.draw(findings(["all", "cn"], [{"step": 1, "eval_loss": 1.0}]), tmp_path)
    for name in (pictures.CELLS, pictures.CURVES):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
