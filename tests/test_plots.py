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


def test_loss_is_drawn_from_any_log(tmp_path: Path) -> None:
    for log in ([], [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.01, "eval_loss": 1.0}]):
        plots.loss(log, tmp_path / "loss.png", "标题")
        assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
