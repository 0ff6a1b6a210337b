"""Intervals of differences between runs, held against scipy's and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from phase_bus.comparison.intervals import MOST_RUNS, POWER, difference, runs_to_see


def test_equal_numbers_of_runs_have_students_interval_with_a_pooled_spread() -> None:
    random = np.random.default_rng(1)
    base, candidate = random.normal(0, 1, 5), random.normal(1, 1, 5)
    found = difference(base.tolist(), candidate.tolist(), family=4)
    level = 1 - 0.05 / 4
    expected = stats.ttest_ind(candidate, base, equal_var=True).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.estimate == pytest.approx(candidate.mean() - base.mean())


def test_other_numbers_of_runs_have_the_wider_interval_of_two() -> None:
    random = np.random.default_rng(2)
    for spreads in ((1, 5), (5, 1)):
        base, candidate = random.normal(0, spreads[0], 10), random.normal(0, spreads[1], 3)
        found = difference(base.tolist(), candidate.tolist(), family=1)
        both = [
            stats.ttest_ind(candidate, base, equal_var=equal).confidence_interval(0.95)
            for equal in (True, False)
        ]
        expected = max(both, key=lambda interval: interval.high - interval.low)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_single_run_has_the_spread_of_the_other_side() -> None:
    base = [1.0, 2.0, 3.0, 4.0]
    found = difference(base, [9.0], family=1)
    half = stats.t.ppf(0.975, 3) * np.std(base, ddof=1) * np.sqrt(1 / 4 + 1)
    assert (found.low, found.high) == pytest.approx((6.5 - half, 6.5 + half))


def test_what_does_not_vary_has_an_interval_without_width_or_of_its_floor() -> None:
    found = difference([1.0] * 3, [2.0] * 3, family=9)
    assert (found.low, found.high) == (1.0, 1.0)
    floored = difference([1.0] * 3, [2.0] * 3, family=9, floor=0.5)
    half = stats.t.ppf(1 - 0.025 / 9, 4) * 0.5 * np.sqrt(2 / 3)
    assert (floored.low, floored.high) == pytest.approx((1 - half, 1 + half))


def test_two_runs_have_no_spread() -> None:
    with pytest.raises(ValueError, match="1 and 1"):
        difference([1.0], [2.0], family=1)


def test_so_many_runs_find_a_difference_as_often_as_said() -> None:
    random = np.random.default_rng(3)
    for size, family in ((2.0, 1), (1.0, 5)):
        runs = runs_to_see(size, 1.0, family)
        assert runs is not None
        found = []
        for number in (runs - 1, runs):
            base = random.normal(0, 1, (4000, number))
            candidate = random.normal(size, 1, (4000, number))
            result = stats.ttest_ind(candidate, base, axis=1)
            found.append((result.pvalue < 0.05 / family).mean())
        assert found[0] < POWER + 0.02
        assert found[1] > POWER - 0.02


def test_how_many_runs_it_takes_has_bounds() -> None:
    assert runs_to_see(1.0, 0.0, 9) == 2
    assert runs_to_see(1e-3, 1.0, 9) is None
    most = runs_to_see(0.36, 1.0, 1)
    assert most is not None
    assert 100 < most <= MOST_RUNS
