"""Work that takes long, shown: a bar on a terminal, lines or nothing where there is none."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
import tqdm

from utils import cli, prediction
from utils.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From now on in the place of stderr; not as a fixture, for pytest puts its own there when a test begins."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def trained() -> None:
    """Two steps of four, the second logged and validated; it goes on from step 1."""
    progress, state = Progress(), SimpleNamespace(global_step=1, max_steps=4)
    figures = {"loss": 0.5, "learning_rate": 1e-3, "trained_tokens_per_second": 1234.0}
    progress.on_train_begin(None, state, None)
    for step in (2, 3):
        state.global_step = step
        progress.on_step_end(None, state, None)
    progress.on_log(None, state, None, figures)
    progress.on_log(None, state, None, {"eval_loss": 0.25})
    progress.on_train_end(None, state, None)


def test_training_has_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = a_terminal(monkeypatch)
    trained()
    last = terminal.getvalue().split("\r")[-1]
    assert "3/4" in last
    assert "loss 0.5000  lr 1.00e-03  1,234 trained tokens/s" in last
    assert capsys.readouterr().out.splitlines() == ["step 3/4  validation loss 0.2500"], "above the bar"


def test_training_has_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    trained()
    said = capsys.readouterr()
    first, second = said.out.splitlines()
    assert first.startswith("step 3/4  loss 0.5000  lr 1.00e-03  1,234 trained tokens/s  ")
    assert first.endswith(" left")
    assert second == "step 3/4  validation loss 0.2500"
    assert "\r" not in said.out + said.err


def test_predicting_has_a_bar_that_ends_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = a_terminal(monkeypatch)
    with prediction._Show(5) as show:
        show.told(2, 20)
        show.told(4, 40)  # an answer that was drawn again counts once
        show.group(5)
    last = terminal.getvalue().split("\r")[-1]
    assert "5/5" in last
    assert "tokens/s" in last
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_other_work_has_one_on_the_main_process_alone(rank: str, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    real = tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda **options: real(**{**options, "delay": 0}))  # at once, not after 0.5 s
    monkeypatch.setenv("LOCAL_RANK", rank)
    with cli.bar("数据 🌏", total=3) as told:
        told(3)
    assert ("数据 🌏: 100%" in terminal.getvalue(), "3/3" in terminal.getvalue()) == (shown, shown)


def test_what_is_over_at_once_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with cli.bar("数据", total=3) as told:
        told(3)
    assert "3/3" not in terminal.getvalue()
