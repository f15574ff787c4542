"""Which state is kept, and when a run stops."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.best import Best

LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, math.nan]), max_size=12)


def seen(losses: list[float], patience: int | None = None) -> Best:
    best = Best(patience=patience)
    for i, loss in enumerate(losses, start=1):
        best.see(10 * i, loss)
    return best


def test_only_what_is_better_is_better() -> None:
    best = Best()
    assert [best.see(step, loss) for step, loss in ((1, 2.0), (2, 2.0), (3, 1.0), (4, 3.0), (5, 0.5))] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert (best.step, best.loss, best.last, best.since) == (5, 0.5, 0.5, 0)


@given(LOSSES)
def test_the_best_is_the_first_of_the_lowest(losses: list[float]) -> None:
    best, numbers = seen(losses), [loss for loss in losses if not math.isnan(loss)]
    lowest = min(numbers, default=None)
    assert best.step == (None if lowest is None else 10 * (losses.index(lowest) + 1))
    assert best.since == len(losses) - (best.step or 0) // 10


@given(LOSSES)
def test_the_same_step_again_changes_nothing(losses: list[float]) -> None:
    once, twice = Best(patience=2), Best(patience=2)
    for step, loss in enumerate(losses, start=1):
        once.see(step, loss)
        twice.see(step, loss)
        assert not twice.see(step, loss)
        assert json.dumps(twice.state()) == json.dumps(once.state())


def test_patience_counts_validations_that_are_no_better() -> None:
    best = Best(patience=2)
    stops = []
    for step, loss in enumerate([3.0, 3.0, 2.0, 2.5, 2.0], start=1):
        best.see(step, loss)
        stops.append(best.should_stop)
    assert stops == [False, False, False, False, True]
    assert not seen([1.0] * 50).should_stop, "without patience it never stops"
    assert seen([math.nan] * 2, patience=2).should_stop, "what is no number is no better"


@given(LOSSES, LOSSES, st.integers(1, 4))
def test_a_restored_one_goes_on_as_the_first_would(before: list[float], after: list[float], patience: int) -> None:
    first, second = seen(before, patience), Best(patience=patience)
    second.restore(json.loads(json.dumps(first.state())))
    for step, loss in enumerate(after, start=1000):
        assert first.see(step, loss) == second.see(step, loss)
        assert first.should_stop == second.should_stop
    assert json.dumps(first.state()) == json.dumps(second.state())
    for wanted in (True, False):
        first.wanted = second.wanted = wanted
        assert first.verdict(9) == second.verdict(9)


@pytest.mark.parametrize(
    ("losses", "keeps_best", "verdict"),
    [
        ([], True, "kept: the last step, 30: no rows were held out to choose by"),
        ([math.nan], True, "kept: the last step, 30: no validation loss was a number"),
        (
            [3.0, 2.0, 1.0],
            False,
            "kept: step 30, whose validation loss of 1.0000 is the lowest, and which is the last",
        ),
        (
            [3.0, 1.0, 2.0],
            True,
            "kept: step 20, whose validation loss of 1.0000 is the lowest; that of the last validation was 2.0000",
        ),
        (
            [3.0, 1.0, 2.0],
            False,
            "kept: the last step, 30; the best was step 20, whose validation loss of 1.0000 is the lowest (the last "
            "validation: 2.0000); --load_best_model_at_end keeps that one",
        ),
    ],
)
def test_the_verdict_says_what_was_kept_and_why(losses: list[float], keeps_best: bool, verdict: str) -> None:
    best = seen(losses)
    best.wanted = keeps_best
    assert best.verdict(30) == verdict
