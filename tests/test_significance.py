"""Intervals and paired tests, against what they are defined as."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.significance import Interval, holm, mcnemar, over_questions, over_seeds

BOOLS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.9, 0.92, 0.97]
    found = over_seeds(values)
    margin = 4.302653 * stdev(values) / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert found.mean == pytest.approx(mean(values))
    assert (found.low, found.high) == (pytest.approx(found.mean - margin), pytest.approx(found.mean + margin))


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0, 1.0], [0.0, 0.0], [0.055 - 0.15] * 3])
def test_what_does_not_vary_has_no_interval_over_seeds(values: list[float]) -> None:
    found = over_seeds(values)
    assert found == Interval(mean=found.mean, low=None, high=None)
    assert found.mean == pytest.approx(values[0])


@given(BOOLS)
def test_mcnemar_is_the_exact_binomial_of_what_only_one_side_gets_right(pairs: list[tuple[bool, bool]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    found, other = mcnemar(first, second), mcnemar(second, first)
    ours, theirs = found.only_first, found.only_second
    total = ours + theirs
    tail = sum(math.comb(total, k) for k in range(min(ours, theirs) + 1)) / 2**total
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert (other.only_first, other.only_second, other.p) == (theirs, ours, pytest.approx(found.p))


@given(BOOLS)
def test_the_bootstrap_holds_the_difference_and_is_the_same_every_time(pairs: list[tuple[bool, bool]]) -> None:
    first, second = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    found = over_questions(first, second)
    assert found == over_questions(first, second)
    assert found.mean == pytest.approx(mean(first) - mean(second))
    if len(pairs) > 1:
        assert found.low is not None
        assert found.high is not None
        assert -1 <= found.low <= found.mean + 1e-9 <= found.high + 2e-9


def test_pairing_narrows_the_interval_where_both_sides_fail_on_the_same_questions() -> None:
    hard = [1.0, 0.0] * 50
    better = [max(value, float(place < 10)) for place, value in enumerate(hard)]
    found = over_questions(better, hard)
    assert found.low is not None
    assert 0 < found.low < found.mean == pytest.approx(0.05)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(values: list[float]) -> None:
    found = holm(values)
    assert all(value <= corrected <= 1 for value, corrected in zip(values, found, strict=True))
    ranked = sorted(zip(values, found, strict=True))
    assert [corrected for _, corrected in ranked] == sorted(corrected for _, corrected in ranked)
    if values:
        assert min(found) == pytest.approx(min(1.0, min(values) * len(values)))
