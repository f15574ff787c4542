"""Whether one way is better than another, from answers to the same questions: intervals and paired tests.

Knows: Student's interval over seeds, McNemar's exact test, the paired bootstrap over questions, and Holm's correction.
Does not know models, tasks or files. Values of questions are 0 to 1; right is 1 and wrong is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
SAME = 1e-9
"""Shares that differ by less are one: three times -0.095 has a spread of 1e-17."""
RESAMPLES = 10_000
SEED = 0
"""Of the bootstrap: the same answers give the same interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval; `low` and `high` are None where there is nothing to tell it from."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Questions that only one of two ways answers rightly, and how likely so uneven a split is by chance."""

    only_first: int
    only_second: int
    p: float


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of what several seeds gave (one value each).

    Three seeds have two degrees of freedom, so that the interval is 2.5 standard deviations wide on either side. None
    from a single one, or from seeds that all give the same: these say nothing of how far another one would lie.
    """
    from scipy import stats

    mean = sum(values) / len(values)
    if max(values) - min(values) < SAME:
        return Interval(mean=mean, low=None, high=None)
    error = float(stats.sem(values))
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)
    return Interval(mean=mean, low=float(low), high=float(high))


def over_questions(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The paired bootstrap (Efron 1979; percentiles of 10,000 resamples) of the mean of `first` minus `second`, whose
    values stand for the same questions in the same order; none from fewer than two."""
    import numpy
    from scipy import stats

    differences = numpy.asarray(first, dtype=float) - numpy.asarray(second, dtype=float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Interval(mean=mean, low=None, high=None)
    if not differences.any():
        return Interval(mean=0.0, low=0.0, high=0.0)
    found = stats.bootstrap(
        (differences,),
        numpy.mean,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=LEVEL,
        method="percentile",
        rng=numpy.random.default_rng(SEED),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test, two-sided (McNemar 1947, doi:10.1007/BF02295996): whether the questions that only one of
    two ways answers rightly are split as by a fair coin.

    >>> mcnemar([True] * 9 + [False], [False] * 9 + [True])
    McNemar(only_first=9, only_second=1, p=0.021484375)
    """
    from scipy import stats

    pairs = list(zip(first, second, strict=True))
    ours, theirs = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    p = float(stats.binomtest(ours, ours + theirs, 0.5).pvalue) if ours + theirs else 1.0
    return McNemar(only_first=ours, only_second=theirs, p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that may be held together against one level (Holm 1979, https://www.jstor.org/stable/4615733), in the
    order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected
