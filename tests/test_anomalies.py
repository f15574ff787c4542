"""What is unusual about a loss."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.anomalies import ENOUGH, WINDOW, Kind, LossWatch


def watched(*losses: float) -> LossWatch:
    watch = LossWatch()
    for loss in losses:
        watch.see(loss, finite=True)
    return watch


NOISE = [2.0 + 0.05 * (-1) ** i for i in range(ENOUGH)]


def test_a_jump_is_a_spike_and_noise_is_not() -> None:
    watch = watched(*NOISE)
    assert watch.see(2.2, finite=True) is None, "many deviations, and still nearly the mean"
    assert watch.see(9.0, finite=True) == "spike"
    assert watch.counts == {"not finite": 0, "zero": 0, "spike": 1}
    assert watch.in_a_row == 0, "a spike trains"


def test_wild_losses_are_no_spikes() -> None:
    wild = watched(*(1.0 if i % 2 else 5.0 for i in range(WINDOW)))
    assert wild.see(9.0, finite=True) is None, "three times the mean, and two deviations"


def test_nothing_is_a_spike_before_there_is_enough_to_compare_with() -> None:
    watch = watched(*NOISE[:-1])
    assert watch.see(900.0, finite=True) is None


def test_a_falling_loss_is_fine() -> None:
    assert watched(*(8.0 * 0.97**i for i in range(200))).counts["spike"] == 0


def test_what_trains_nothing_is_counted_in_a_row() -> None:
    watch = watched(*NOISE)
    seen: list[tuple[float, bool, Kind | None, int]] = [
        (math.nan, False, "not finite", 1),
        (0.0, True, "zero", 2),
        (1.0, False, "not finite", 3),
        (2.0, True, None, 0),
        (0.0, True, "zero", 1),
        (9.0, True, "spike", 0),
    ]
    for loss, finite, kind, in_a_row in seen:
        assert (watch.see(loss, finite=finite), watch.in_a_row) == (kind, in_a_row)
    assert watch.counts == {"not finite": 2, "zero": 2, "spike": 1}


def test_what_trains_nothing_is_not_what_others_are_compared_with() -> None:
    watch = watched(*NOISE)
    for _ in range(WINDOW):
        watch.see(0.0, finite=True)
        watch.see(math.nan, finite=False)
    assert watch.usual == pytest.approx(2.0)


def test_only_recent_losses_are_usual() -> None:
    watch = watched(*[9.0] * WINDOW, *[1.0] * WINDOW)
    assert watch.usual == 1.0
    assert math.isnan(LossWatch().usual)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=2 * ENOUGH),
    st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=9),
)
def test_a_restored_watch_goes_on_as_the_first_would(
    before: list[tuple[float, bool]], after: list[tuple[float, bool]]
) -> None:
    first, second = LossWatch(), LossWatch()
    for loss, finite in before:
        first.see(loss, finite=finite)
    second.restore(json.loads(json.dumps(first.state())))
    for loss, finite in after:
        assert first.see(loss, finite=finite) == second.see(loss, finite=finite)
    assert first.state() == second.state()
    assert first.counts is not second.counts
