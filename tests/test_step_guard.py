"""Steps that must not be taken, or that are worth a line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import in_two_processes

from utils import distributed
from utils.anomalies import ENOUGH
from utils.interruption import Interruption
from utils.proof import Encoded
from utils.step_guard import SHOWN, NotFiniteError, NothingTrainedError, StepGuard

ROWS = [Encoded(input_ids=[1, 2], labels=[-100, 2], origin=f"数据.json row {i}") for i in range(30)]


def guard(most: int = 3, asked: Interruption | None = None) -> StepGuard:
    return StepGuard(ROWS, most_in_a_row=most, asked=asked)


def parameter(gradient: float | None = 1.0) -> list[torch.nn.Parameter]:
    made = torch.nn.Parameter(torch.zeros(2))
    made.grad = None if gradient is None else torch.full((2,), gradient)
    return [made]


def step(watching: StepGuard, number: int, *losses: float, gradient: float | None = 1.0, scaler: Any = None) -> bool:
    """A step of micro-batches of two rows, 0 and 1 in the first, each with 5 trained tokens a row."""
    for i, loss in enumerate(losses):
        watching.see(torch.tensor(loss, requires_grad=True), [2 * i, 2 * i + 1], 10)
    return watching.judge(number, parameter(gradient), scaler)


def test_a_usual_step_is_taken_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    watching = guard()
    assert all(step(watching, i, 1.0, 0.5) for i in range(1, 40))
    assert step(watching, 40, 1.5, gradient=None), "a method may have no gradient yet"
    assert capsys.readouterr().out == ""
    assert watching.watch.usual == 1.5, "micro-batches are shares of a step's loss"


def test_a_jump_is_said_with_its_rows_and_does_not_stop(capsys: pytest.CaptureFixture[str]) -> None:
    watching = guard(most=1)
    for i in range(ENOUGH):
        step(watching, i, 0.5, 0.5)
    assert step(watching, 99, 0.5, 8.5, 0.5)
    assert capsys.readouterr().out == (
        "step 99: the loss jumped to 9.5 from about 1, most in:\n  数据.json row 2\n  数据.json row 3\n"
    )
    assert (watching.skips, watching.watch.counts["spike"]) == (0, 1)


def test_the_rows_of_a_jump_are_those_of_the_highest_loss_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    watching = guard()
    for i in range(ENOUGH):
        step(watching, i, 1.0)
    watching.see(torch.tensor(9.0), [4], 900)
    watching.see(torch.tensor(3.0), [5], 3)
    watching.see(torch.tensor(0.0), [6], 0)
    assert watching.judge(99, parameter())
    assert capsys.readouterr().out.endswith("most in:\n  数据.json row 5\n")


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_skipped_and_its_rows_named(
    loss: float, capsys: pytest.CaptureFixture[str]
) -> None:
    watching = guard()
    assert not step(watching, 7, 1.0, loss)
    assert capsys.readouterr().out == (
        "step 7: the loss is not finite (NaN or infinity). It is skipped, 1 of 3 running; its rows:\n"
        "  数据.json row 2\n  数据.json row 3\n"
    )
    assert (watching.skips, watching.watch.counts["not finite"]) == (1, 1)


def test_a_gradient_that_is_no_number_names_all_rows_of_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert not step(guard(), 7, 1.0, 2.0, gradient=math.nan)
    said = capsys.readouterr().out
    assert said.startswith("step 7: the gradient is not finite")
    assert said.count("数据.json row") == 4


def test_too_many_running_stop_and_name_the_rows_of_them_all() -> None:
    watching = guard(most=2)
    watching.see(torch.tensor(math.nan), [20], 5)
    assert not watching.judge(1, parameter())
    with pytest.raises(
        NotFiniteError,
        match=r"^step 2: the loss is not finite \(NaN or infinity\), for 2 steps running. None of them was taken and "
        r"nothing was saved from them. Their rows:\n  数据.json row 20\n  数据.json row 0\n  数据.json row 1\nLook at "
        r"these rows, lower --learning_rate, or choose --precision bf16 or fp32$",
    ):
        step(watching, 2, math.nan)


def test_a_step_that_trains_begins_the_count_anew(capsys: pytest.CaptureFixture[str]) -> None:
    watching = guard(most=2)
    for i in range(5):
        assert not step(watching, 2 * i, math.nan)
        assert step(watching, 2 * i + 1, 1.0)
    assert capsys.readouterr().out.count("1 of 2 running") == 5
    assert watching.skips == 5


def test_a_loss_of_exactly_zero_is_taken_said_and_after_several_the_run_stops(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watching = guard(most=2)
    assert step(watching, 1, 0.0)
    assert capsys.readouterr().out.startswith(
        "step 1: the loss is exactly 0: nothing is trained by it. That is 1 of 2 running; its rows:\n"
    )
    assert watching.skips == 0, "its loss is in the mean that is logged"
    with pytest.raises(
        NothingTrainedError, match=r"step 2: the loss is exactly 0: .*, for 2 steps running. Their rows"
    ):
        step(watching, 2, 0.0)


def test_only_a_few_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert not step(guard(), 1, *[1.0] * 10, gradient=math.inf)
    said = capsys.readouterr().out
    assert said.count("数据.json row") == SHOWN
    assert said.endswith("  and 12 more\n")


class Scaler:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def test_a_scaler_meets_infinite_gradients_by_design_until_it_cannot_scale_any_more() -> None:
    watching = guard()
    assert step(watching, 1, 1.0, gradient=math.inf, scaler=Scaler(65536.0))
    assert not step(watching, 2, math.nan, scaler=Scaler(65536.0))
    assert not step(watching, 3, 1.0, scaler=Scaler(0.5))


def test_what_a_step_had_seen_before_memory_ran_out_is_forgotten() -> None:
    watching = guard(most=1)
    watching.see(torch.tensor(math.nan), [0], 1)
    watching.forget()
    assert step(watching, 1, 1.0)
    assert watching.watch.usual == 1.0


def test_whoever_is_asked_to_end_is_heard_and_it_stays_so() -> None:
    asked = Interruption(0.0)
    watching = guard(asked=asked)
    assert step(watching, 1, 1.0)
    assert asked.code == asked.asked == 124
    asked._deadline = None
    step(watching, 2, 1.0)
    assert asked.code == 124


PASTS: Sequence[Sequence[float]] = [[], [1.0] * ENOUGH, [math.nan, math.nan], [1.0] * ENOUGH + [0.0, math.nan]]


@pytest.mark.parametrize("past", PASTS, ids=[len(past) for past in PASTS])
def test_a_restored_guard_goes_on_as_the_first_would(past: Sequence[float], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = guard(), guard()
    for i, loss in enumerate(past):
        step(first, i, loss)
    second.restore(json.loads(json.dumps(first.state())))
    capsys.readouterr()
    told = []
    for watching in (first, second):
        outcome: list[Any] = []
        try:
            outcome += [step(watching, 50 + i, loss, 1.0) for i, loss in enumerate([9.0, math.nan, math.inf])]
            outcome += [step(watching, 60, math.nan)]
        except NotFiniteError as error:
            outcome.append(str(error))
        told.append((outcome, capsys.readouterr().out, json.dumps(watching.state())))
    assert told[0] == told[1]


def _one_has_a_nan(folder: Path) -> tuple[bool, float, int, bool]:
    rank = distributed.rank()
    with (folder / f"said {rank}").open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "say", lambda line: file.write(line))
        asked = Interruption(0.0 if rank == 1 else None)
        watching = guard(asked=asked)
        watching.see(torch.tensor(3.0 if rank == 0 else 1.0), [rank], 5)
        taken = watching.judge(1, parameter())
        usual = watching.watch.usual
        watching.see(torch.tensor(1.0 if rank == 0 else math.nan), [2 + rank], 5)
        return taken, usual, asked.code, watching.judge(2, parameter())


def test_processes_judge_alike_and_only_the_rows_with_the_nan_are_named(tmp_path: Path) -> None:
    assert in_two_processes(_one_has_a_nan, tmp_path) == [(True, 2.0, 124, False)] * 2
    for rank in range(2):
        said = (tmp_path / f"said {rank}").read_text()
        assert said.endswith("1 of 3 running; its rows:\n  数据.json row 3"), "process 0 has no part in it"
