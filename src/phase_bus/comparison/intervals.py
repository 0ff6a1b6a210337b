"""Confidence intervals of the difference between two sides, whose unit of repetition is the run.

Each side is a sample of one number a run. With means m, the spread s pooled over both sides, and n runs on
one and k on the other,

    (m2 - m1) ± t(n + k - 2, 1 - a/2) · s · √(1/n + 1/k)

is the interval of the difference at level 1 - a by Student's t. Of sides that differ in their number of
runs the wider one of this and Welch's is taken, which pools nothing: pooling is wrong by much if the side
with fewer runs has the larger spread. A side of one run has no spread of its own, and is taken to have the
other's.

For several differences at once a is divided by their number (Bonferroni). Why not by resampling the runs is
in decision 25: with 3 to 10 runs a percentile bootstrap finds differences that are not there.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct

from phase_bus.core.classes import import_extra

CONFIDENCE = 0.95
POWER = 0.8
"""How likely a difference is to be found by the number of runs that is said to tell it."""
MOST_RUNS = 200
"""What needs more runs a side than this is said to need more."""
_FAR = 1000.0  # standard errors, beyond the quantile for two runs a side


class Interval(Struct, frozen=True, kw_only=True):
    """A difference between two sides, candidate less base, with its simultaneous confidence interval.

    Attributes:
        spread: the standard deviation between runs that it was made with.
    """

    estimate: float
    low: float
    high: float
    spread: float


def difference(
    base: Sequence[float], candidate: Sequence[float], family: int, floor: float = 0.0
) -> Interval:
    """Return the difference of the means of two samples.

    Args:
        base: a number for each run.
        candidate: the same of the other side. The sides have three runs or more between them.
        family: of how many differences this is one.
        floor: what the spread between runs is at least.

    Raises:
        ConfigError: if scipy is not installed.
        ValueError: if there are fewer than three runs, or none on a side.
    """
    n, k = len(base), len(candidate)
    if min(n, k) < 1 or n + k < 3:
        raise ValueError(f"{n} and {k} runs have no spread")
    estimate = statistics.fmean(candidate) - statistics.fmean(base)
    variances = [statistics.variance(side) if len(side) > 1 else 0.0 for side in (base, candidate)]
    pooled = ((n - 1) * variances[0] + (k - 1) * variances[1]) / (n + k - 2)
    spread = max(math.sqrt(pooled), floor)
    half = _student_t(n + k - 2, family) * spread * math.sqrt(1 / n + 1 / k)
    if n != k and min(n, k) > 1:
        half = max(half, _welch(variances, (n, k), family))
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half, spread=spread)


def runs_to_see(size: float, spread: float, family: int) -> int | None:
    """Return how many runs a side it takes for an interval that most likely does not reach so far.

    That is: with so many on each side, a true difference of this size is found with a probability of
    :data:`POWER`; and so is that a difference lies within bounds which are this far away from it.

    Returns:
        None if it takes more than :data:`MOST_RUNS`.
    """
    special = import_extra("scipy.special", "report")

    def is_enough(runs: int) -> bool:
        away = size / (spread * math.sqrt(2 / runs)) if spread else _FAR
        freedom = 2 * runs - 2
        # Far out the distribution is not computed, and nothing is missed.
        return away >= _FAR or special.nctdtr(freedom, away, _student_t(freedom, family)) <= 1 - POWER

    numbers = range(2, MOST_RUNS + 1)
    place = bisect_left(numbers, True, key=is_enough)
    return numbers[place] if place < len(numbers) else None


def _welch(variances: Sequence[float], runs: Sequence[int], family: int) -> float:
    """Return half the width of Welch's interval."""
    of_means = [variance / n for variance, n in zip(variances, runs, strict=True)]
    if not (total := sum(of_means)):
        return 0.0
    freedom = total**2 / sum(v**2 / (n - 1) for v, n in zip(of_means, runs, strict=True))
    return _student_t(freedom, family) * math.sqrt(total)


@lru_cache(4096)
def _student_t(freedom: float, family: int) -> float:
    """Return the quantile of Student's t for one of several two-sided intervals."""
    special = import_extra("scipy.special", "report")
    return float(special.stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2 / family))
