"""The statistics: known numbers, the coverage of the interval, and what it decides."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from phase_bus.reporting.sweep import student_t
from phase_bus.verification.intervals import Interval, difference


def interval(low_pct: float, high_pct: float) -> Interval:
    return Interval(rounds=5, estimate_pct=(low_pct + high_pct) / 2, low_pct=low_pct, high_pct=high_pct)


def test_student_t_is_that_of_the_tables() -> None:
    """The two-sided 95 % quantiles for 1, 4, 9 and 29 degrees of freedom."""
    for n, quantile in ((2, 12.706), (5, 2.776), (10, 2.262), (30, 2.045)):
        assert student_t(n) == pytest.approx(quantile, abs=5e-4)


def test_a_difference_worked_out_by_hand() -> None:
    """Ratios 1.1, 1.0 and 1.2: the mean of their logarithms, and t(2) times its standard error."""
    found = difference([(100.0, 110.0), (50.0, 50.0), (10.0, 12.0)])
    assert found is not None
    logs = [math.log(1.1), 0.0, math.log(1.2)]
    mean, half = statistics.fmean(logs), 4.302653 * statistics.stdev(logs) / math.sqrt(3)
    assert found.rounds == 3
    assert found.estimate_pct == pytest.approx(100 * (math.exp(mean) - 1))
    assert found.low_pct == pytest.approx(100 * (math.exp(mean - half) - 1), rel=1e-5)
    assert found.high_pct == pytest.approx(100 * (math.exp(mean + half) - 1), rel=1e-5)


def test_drift_between_rounds_is_taken_out() -> None:
    """A machine that gets three times slower, and a mode that is always 2 % slower: 2 %, exactly."""
    found = difference([(off, 1.02 * off) for off in (10.0, 15.0, 22.0, 30.0)])
    assert found is not None
    assert (found.low_pct, found.high_pct) == pytest.approx((2.0, 2.0))


def test_too_little_gives_no_interval() -> None:
    """One round, none, or values without a ratio."""
    assert difference([]) is None
    assert difference([(1.0, 1.0)]) is None
    assert difference([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)]) is None


@pytest.mark.parametrize("n", [2, 5, 8])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int) -> None:
    """4,000 made-up verifications of +3 %, with drift and noise: 95 % of the intervals hold 3."""
    random = np.random.default_rng(2026)
    held, trials = 0, 4000
    for _ in range(trials):
        off = 100.0 * np.exp(random.normal(0.0, 0.3, n))  # drift, the same for both
        noise = np.exp(random.normal(0.0, 0.04, (2, n)))
        found = difference(list(zip(off * noise[0], 1.03 * off * noise[1], strict=True)))
        assert found is not None
        held += found.low_pct <= 3.0 <= found.high_pct
    # Three standard errors of a share of 0.95 in 4,000.
    assert held / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (-1.0, 1.0, "same"),
        (-5.0, 5.0, "same"),  # the tolerance itself is tolerated
        (1.0, 4.0, "same"),  # different from nothing, and within the tolerance
        (5.1, 9.0, "felt"),
        (-20.0, -5.1, "felt"),  # better than off is no less wrong
        (-1.0, 6.0, "undecided"),
        (4.0, 9.0, "undecided"),
        (-30.0, 30.0, "undecided"),
    ],
)
def test_what_an_interval_decides(low: float, high: float, decision: str) -> None:
    """Within the tolerance, beyond it as a whole, or across one of its ends."""
    assert interval(low, high).decide(5.0) == decision
