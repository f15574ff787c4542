"""Pictures of numbers, as PNG.

Knows: how to draw. Does not know how anything was computed. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Microsoft YaHei",
    "SimHei",
    "Droid Sans Fallback",
)
BINS = 40


def pyplot(*, chinese: bool = True) -> Any:
    """matplotlib's pyplot, drawing into files.

    Args:
        chinese: data names may be Chinese, of which matplotlib's own font has no glyphs; without, the picture is the
            same on every machine.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    fonts = _chinese_fonts(font_manager) if chinese else []
    pyplot.rcParams["font.family"] = ["DejaVu Sans", *fonts]
    return pyplot


def _chinese_fonts(font_manager: Any) -> list[str]:
    """Those that matplotlib knows; where it knows none, those that have been installed since it last looked."""
    if not any(font in CHINESE_FONTS for font in font_manager.get_font_names()):
        known = {font.fname for font in font_manager.fontManager.ttflist}
        for path in set(font_manager.findSystemFonts()) - known:
            with suppress(OSError, RuntimeError, UnicodeDecodeError):  # of a font that nobody can read
                font_manager.fontManager.addfont(path)
    installed = set(font_manager.get_font_names())
    return [font for font in CHINESE_FONTS if font in installed]


def save(figure: Any, path: Path) -> None:
    """Writes a figure without matplotlib's name and version, so that equal pictures are equal files."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with warnings.catch_warnings():
            # Without a Chinese font a name is boxes in the picture; two lines about each character would not mend that.
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
            figure.tight_layout()
            figure.savefig(temporary, format="png", metadata={"Software": None})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    pyplot(chinese=False).close(figure)


def loss(log: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws training and validation loss over optimizer steps, from entries of `training_log.jsonl`."""
    figure, axes = pyplot().subplots(figsize=(8, 4.5), dpi=120)
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per trained token)")
    losses = [entry[key] for entry in log for key in ("loss", "eval_loss") if key in entry]
    if losses and 0 < 20 * min(losses) < max(losses):
        axes.set_yscale("log")  # a small loss would lie on the axis
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if losses:
        axes.legend()
    save(figure, path)


def lengths(by_source: Mapping[str, Any], path: Path, *, unit: str, mark: int | None = None) -> None:
    """Draws how many rows of each source have which length.

    Args:
        by_source: whole numbers by source, a list or an array each.
        unit: what is counted, such as tokens.
        mark: a length to mark, such as the cutoff.
    """
    import numpy

    figure, axes = pyplot().subplots(figsize=(8, 4.5), dpi=120)
    given = {name: numpy.asarray(values) for name, values in by_source.items() if len(values)}
    if given:
        # One row of a hundred thousand characters would press all others into the first bar.
        most = max(float(numpy.percentile(values, 99.5)) for values in given.values())
        if mark is not None and mark <= 2 * most:  # a mark far off would press all bars together
            most = max(most, mark)
        edges = numpy.linspace(0, max(most, 1) * 1.02, BINS)
        clipped = [numpy.minimum(values, edges[-1]) for values in given.values()]
        axes.hist(clipped, bins=edges, stacked=True, label=[f"{name} ({len(v):,})" for name, v in given.items()])
        axes.legend(fontsize=8)
    if mark is not None and mark <= axes.get_xlim()[1]:
        axes.axvline(mark, color="black", linestyle="--", linewidth=1)
        axes.text(mark, axes.get_ylim()[1], f" {mark}", va="top", fontsize=8)
    axes.set_xlabel(f"{unit} of a row; the last bar holds all longer ones")
    axes.set_ylabel("rows")
    axes.grid(alpha=0.3)
    save(figure, path)
