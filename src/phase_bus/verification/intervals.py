"""Confidence intervals of differences that are paired by round, and what they decide.

For each round r in which both were measured, y_r = ln(x_r / off_r), where x_r is the value in a mode and
off_r that with the bus off. Over n rounds, with the mean ȳ and the standard deviation s of the sample,

    ȳ ± t(n-1, 0.975) · s / √n

is the 95 % confidence interval of the mean of y by Student's t, and 100 · (exp(y) - 1) of its ends and of ȳ
are reported: the difference in percent. Logarithms, because what disturbs a measurement does so by a
factor, and because the mean of x_r / off_r itself would be biased upwards by the noise of off_r.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from phase_bus.reporting.sweep import mean_half_width

Decision: TypeAlias = Literal["same", "felt", "undecided"]


class Interval(Struct, frozen=True, kw_only=True):
    """A difference to the mode ``off`` in percent of it, with its confidence interval, from some rounds."""

    rounds: int
    estimate_pct: float
    low_pct: float
    high_pct: float

    def decide(self, tolerance_pct: float) -> Decision:
        """Return what the interval says of a tolerance, which holds in both directions.

        ``same``: all of it lies within the tolerance, so the mode is as good as ``off`` (a test of
        equivalence by the inclusion of an interval). ``felt``: all of it lies beyond, on one side.
        ``undecided``: it reaches across an end of the tolerance, so it takes more rounds, longer ones, or a
        quieter machine.
        """
        if -tolerance_pct <= self.low_pct and self.high_pct <= tolerance_pct:
            return "same"
        if self.low_pct > tolerance_pct or self.high_pct < -tolerance_pct:
            return "felt"
        return "undecided"


def difference(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """Return the difference of a mode from pairs of each round's value with the bus off and in the mode.

    A pair that is not of positive values has no ratio and is left out; fewer than two give None.
    """
    logs = [math.log(value / off) for off, value in pairs if off > 0 and value > 0]
    if len(logs) < 2:
        return None
    mean = statistics.fmean(logs)
    half = mean_half_width(logs)
    return Interval(
        rounds=len(logs),
        estimate_pct=_percent(mean),
        low_pct=_percent(mean - half),
        high_pct=_percent(mean + half),
    )


def _percent(log_ratio: float) -> float:
    return 100.0 * math.expm1(log_ratio)
