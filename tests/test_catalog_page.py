import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from matplotlib.patches import Circle as Patch

from utils import plots
from utils.catalog import DatasetSpec, read_catalog
from utils.catalog_page import Circle, bubble, packed, page, pie, rows_by_language, shelves, spread

CATALOG = read_catalog()
SIZES = {key: spec.size for key, spec in CATALOG.items() if spec.status == "collected" and spec.size}


def apart(first: Circle, second: Circle) -> float:
    return math.hypot(first.x - second.x, first.y - second.y) - first.radius - second.radius


def areas_are_sizes(circles: list[Circle]) -> bool:
    per_row = [circle.radius**2 / SIZES[circle.key] for circle in circles]
    return max(per_row) == pytest.approx(min(per_row))


def test_the_committed_page_is_the_catalogues() -> None:
    written = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")
    assert written == page(CATALOG), "run python3 data/make_readme.py"


def test_the_page_has_every_row_once_with_its_facts() -> None:
    lines = page(CATALOG).split("\n")
    for key, spec in CATALOG.items():
        (row,) = [line for line in lines if line.startswith(f"| `{key}` |")]
        assert spec.license in row
        assert spec.size is None or f"| {spec.size:,} |" in row
        assert f"| {'/'.join(spec.lang)} | {'/'.join(spec.task)} | {'/'.join(spec.gen)} |" in row
        assert not spec.note or f"- `{key}`: {spec.note}" in lines
    assert "25 collected datasets, 93,282,279 rows as published." in lines
    assert "data/make_readme.py" in lines[0]


def test_a_cell_cannot_break_the_table() -> None:
    pipes = {line.count("|") for line in page(CATALOG).split("\n") if line.startswith("| `")}
    assert pipes == {12, 13}  # the table of parts has one column more


def test_rows_by_language_add_up() -> None:
    collected = [spec for spec in CATALOG.values() if spec.status == "collected"]
    sums = rows_by_language(collected)
    assert sum(sums.values()) == 93_282_279
    assert list(sums) == ["EN", "CN", "EN/CN", "ML"]
    assert sums["CN"] == 1_079_517 + 1_649_398 + 2_785 + 298_428
    assert set(rows_by_language([]).values()) == {0}


def test_an_empty_catalogue_makes_a_page() -> None:
    assert "0 collected datasets, 0 rows as published." in page({})


def test_a_row_of_other_words_is_shown_as_it_is() -> None:
    spec = replace(CATALOG["alpaca"], title="羊驼 🦙", note="说明", size=None)
    text = page({"x": spec})
    assert "羊驼 🦙" in text
    assert "- `x`: 说明" in text


def test_packed_circles_touch_and_do_not_cross() -> None:
    circles = packed(SIZES, area=10.0)
    assert {circle.key for circle in circles} == set(SIZES)
    assert areas_are_sizes(circles)
    assert sum(math.pi * circle.radius**2 for circle in circles) == pytest.approx(10.0)
    assert min(apart(a, b) for a, b in combinations(circles, 2)) > -1e-6
    for number, circle in enumerate(circles[1:], start=1):
        assert min(apart(circle, other) for other in circles[:number]) == pytest.approx(0, abs=1e-6)


def test_shelved_circles_leave_room_for_their_names() -> None:
    circles = shelves(SIZES, width=11.0, largest=1.0)
    assert areas_are_sizes(circles)
    assert max(circle.radius for circle in circles) == pytest.approx(1.0)
    for a, b in combinations(circles, 2):
        same_shelf = math.isclose(a.y - a.radius, b.y - b.radius)
        beside = abs(a.x - b.x) >= 1.25
        upper, lower = (a, b) if a.y - a.radius > b.y - b.radius else (b, a)
        below = upper.y - upper.radius - 0.5 >= lower.y + lower.radius
        assert beside if same_shelf else below, (a.key, b.key)


@pytest.mark.parametrize("heights", [[], [0.3], [0.0, 0.0, 0.0], [1.0, 0.9, -1.0], [0.5, -0.5, 0.45, 0.55]])
def test_spread_keeps_order_and_distance(heights: list[float]) -> None:
    moved = spread(heights, least=0.2)
    assert sum(moved) == pytest.approx(sum(heights))
    by_height = sorted(range(len(heights)), key=lambda i: heights[i])
    for low, high in zip(by_height, by_height[1:], strict=False):
        assert moved[high] - moved[low] > 0.2 - 1e-9
    if all(abs(a - b) >= 0.2 for a, b in combinations(heights, 2)):
        assert moved == pytest.approx(heights)


def test_the_pictures_are_the_same_twice_and_those_committed_have_their_shape(tmp_path: Path) -> None:
    for name, draw in (("sizes_bubble.png", bubble), ("sizes_pie.png", pie)):
        first, second = tmp_path / f"1{name}", tmp_path / f"2{name}"
        draw(CATALOG, first)
        draw(CATALOG, second)
        assert first.read_bytes() == second.read_bytes()
        committed = (REPOSITORY / "data" / name).read_bytes()
        assert committed[:24] == first.read_bytes()[:24]  # the PNG signature, width and height


def test_a_picture_follows_the_catalogue(tmp_path: Path) -> None:
    changed: dict[str, DatasetSpec] = {**CATALOG, "camel": replace(CATALOG["camel"], size=3_000_000)}
    bubble(CATALOG, tmp_path / "a.png")
    bubble(changed, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("size", [None, 100_000])
def test_every_circle_and_name_is_whole_in_the_picture(
    size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    bubble({key: replace(spec, size=spec.size and (size or spec.size)) for key, spec in CATALOG.items()}, tmp_path)
    (figure,) = figures
    figure.tight_layout()
    figure.canvas.draw()
    drawn = [patch for axes in figure.axes for patch in axes.patches if isinstance(patch, Patch)]
    names = [text for axes in figure.axes for text in axes.texts]
    assert len(drawn) >= len(SIZES)
    assert len(names) >= len(SIZES)
    for each, whole in [*((patch, patch.axes) for patch in drawn), *((name, figure) for name in names)]:
        box: Any = each.get_window_extent()
        assert whole.bbox.x0 <= box.x0 <= box.x1 <= whole.bbox.x1, each
        assert whole.bbox.y0 <= box.y0 <= box.y1 <= whole.bbox.y1, each
