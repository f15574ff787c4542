import warnings
from pathlib import Path
from typing import Any

import pytest

from utils import plots

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("values", [{}, {"empty": []}, {"数据": [1, 5, 5, 900_000], "b": [0]}])
def test_lengths_are_drawn_and_equal_pictures_are_equal_files(tmp_path: Path, values: dict[str, Any]) -> None:
    for name in ("a.png", "b.png"):
        plots.lengths(values, tmp_path / name, unit="tokens", mark=512)
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(PNG)
    assert first == (tmp_path / "b.png").read_bytes()


def test_names_that_no_font_has_are_drawn_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "CHINESE_FONTS", ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.loss([{"step": 1, "loss": 2.0}], tmp_path / "loss.png", "我的数据 🌏")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


class Fonts:
    """matplotlib's list, made before a font was installed."""

    def __init__(self, installed: dict[str, str]) -> None:
        self.installed, self.ttflist, self.names = installed, [], ["DejaVu Sans"]
        self.fontManager = self

    def get_font_names(self) -> list[str]:
        return self.names

    def findSystemFonts(self) -> list[str]:
        return list(self.installed)

    def addfont(self, path: str) -> None:
        if not self.installed[path]:
            raise RuntimeError("broken")
        self.names.append(self.installed[path])


def test_a_font_that_was_installed_since_matplotlib_looked_is_found() -> None:
    fonts = Fonts({"/a.ttc": "WenQuanYi Micro Hei", "/b.ttf": "", "/c.ttf": "Other"})
    assert plots._chinese_fonts(fonts) == ["WenQuanYi Micro Hei"]
    assert plots._chinese_fonts(Fonts({})) == []


def test_loss_is_drawn_from_any_log(tmp_path: Path) -> None:
    for log in ([], [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.01, "eval_loss": 1.0}]):
        plots.loss(log, tmp_path / "loss.png", "标题")
        assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
