"""The comparison of two sides, each of one run or several: differences, intervals, and a word for each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from phase_bus.aggregation.sketch import RELATIVE_ERROR
from phase_bus.comparison.difference import Difference, differences, not_comparable
from phase_bus.comparison.intervals import CONFIDENCE, Interval, difference, runs_to_see
from phase_bus.comparison.measure import Better, Measure
from phase_bus.comparison.run import Aspect, MeasuredRun
from phase_bus.errors import ConfigError

Word: TypeAlias = Literal["regressed", "improved", "equivalent", "cannot tell"]

MARGIN_PCT = 2.0
ERROR_MARGIN_PCT = 0.5  # in points: a difference of 2 % of all requests is one that everybody minds
_ORDER: tuple[Word, ...] = ("regressed", "improved", "cannot tell", "equivalent")


class Side(Struct, frozen=True):
    """One side of a comparison: what it is called, and its runs."""

    name: str
    runs: tuple[MeasuredRun, ...]


class Compared(Struct, frozen=True, kw_only=True):
    """A measure of both sides.

    Attributes:
        metric, statistic, title, unit, better: the measure; ``unit`` is that of the bus.
        base, candidate: the value of each run, in ``unit``.
        base_value, candidate_value: the side's geometric mean over its runs; the mean where ``in_points``.
        difference_pct: by how much the candidate's is higher, in percent of the base's.
        in_points: whether it is in percentage points instead.
        low_pct, high_pct: its interval; None if there is none.
        within_runs: whether the interval is that within one run a side, by blocks of its time.
        margin_pct: how large a difference is none.
        verdict: what the interval says.
        runs_to_tell: how many runs on each side would most likely tell, if the difference and the spread
            are what they seem; None if that is not known, or told already.
    """

    metric: str
    statistic: str
    title: str
    unit: str
    better: Better
    base: tuple[float, ...]
    candidate: tuple[float, ...]
    base_value: float
    candidate_value: float
    difference_pct: float
    in_points: bool
    low_pct: float | None
    high_pct: float | None
    within_runs: bool
    margin_pct: float
    verdict: Word
    runs_to_tell: int | None = None


class LeftOut(Struct, frozen=True):
    """A measure that is not compared, and why."""

    metric: str
    reason: str


class Comparison(Struct, frozen=True, kw_only=True):
    """What a comparison came to.

    Attributes:
        version: of this form.
        verdict: ``regressed`` if anything did; else ``improved`` if anything did; else ``cannot tell`` if
            there is anything that cannot be told; else ``equivalent``.
        confidence: that all intervals together hold what they say.
        base, candidate: the sides.
        metrics: each measure that both sides have.
        left_out: those that are not compared.
        allowed: in what the runs are not comparable, and were compared all the same.
        whole: whether no run lacks anything.
    """

    version: int = 1
    verdict: Word
    confidence: float = CONFIDENCE
    base: Side
    candidate: Side
    metrics: tuple[Compared, ...]
    left_out: tuple[LeftOut, ...] = ()
    allowed: tuple[Difference, ...] = ()
    whole: bool = True

    def count(self, word: Word) -> int:
        """Return how many measures a word is said of."""
        return sum(each.verdict == word for each in self.metrics)


def compare(
    base: Side,
    candidate: Side,
    measures: Sequence[Measure],
    *,
    margins_pct: Mapping[str, float] | None = None,
    allow: Sequence[Aspect] = (),
) -> Comparison:
    """Compare two sides.

    Args:
        base: what the candidate is held against.
        candidate: the other side. Their runs have values of the measures; if either side has one run only
            and the other too, also by blocks.
        measures: what to compare.
        margins_pct: how large a difference is none, in percent: by a measure's key or metric, or for all
            under an empty key.
        allow: in what runs may differ that are compared, and what they may lack.

    Raises:
        NotComparableError: if the runs are not comparable otherwise.
        ConfigError: if there is nothing to compare, or scipy is not installed.
    """
    both = {run.run_id for run in base.runs} & {run.run_id for run in candidate.runs}
    if both:
        raise ConfigError(f"run {min(both)!r} is on both sides; a run cannot be compared with itself")
    found = differences(base.runs, candidate.runs)
    if refused := [each for each in found if each.aspect not in allow]:
        raise not_comparable(base.name, candidate.name, refused)
    reasons = {measure: _why_left_out(measure, base, candidate) for measure in measures}
    left_out = tuple(LeftOut(measure.key, why) for measure, why in reasons.items() if why)
    compared = [measure for measure, why in reasons.items() if not why]
    if not compared:
        told = "; ".join(f"{each.metric}: {each.reason}" for each in left_out)
        raise ConfigError(f"there is nothing to compare {base.name!r} and {candidate.name!r} by: {told}")
    metrics = tuple(
        _compare(measure, base, candidate, len(compared), _margin(measure, margins_pct or {}))
        for measure in compared
    )
    return Comparison(
        verdict=next(word for word in _ORDER if any(each.verdict == word for each in metrics)),
        base=base,
        candidate=candidate,
        metrics=metrics,
        left_out=left_out,
        allowed=tuple(found),
        whole=not any(run.faults for run in (*base.runs, *candidate.runs)),
    )


def _margin(measure: Measure, margins_pct: Mapping[str, float]) -> float:
    default = ERROR_MARGIN_PCT if measure.in_points else margins_pct.get("", MARGIN_PCT)
    return margins_pct.get(measure.key, margins_pct.get(measure.metric, default))


def _why_left_out(measure: Measure, base: Side, candidate: Side) -> str:
    runs = [*base.runs, *candidate.runs]
    without = [run.run_id for run in runs if measure.key not in run.values]
    if len(without) == len(runs):
        return "no run has any"
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        return f"run {without[0]} has none{more}"
    if not measure.in_points and any(run.values[measure.key] <= 0 for run in runs):
        return "a value that is not positive has no ratio to others"
    return ""


def _compare(measure: Measure, base: Side, candidate: Side, family: int, margin_pct: float) -> Compared:
    one, other = (tuple(run.values[measure.key] for run in side.runs) for side in (base, candidate))
    scale = _Points() if measure.in_points else _Ratio()
    taken, taken_other = (list(map(scale.take, side)) for side in (one, other))
    base_value, candidate_value = statistics.fmean(taken), statistics.fmean(taken_other)
    single = len(taken) == len(taken_other) == 1
    verdict: Word = "cannot tell"
    low_pct = high_pct = runs_to_tell = None
    if single:
        (run,), (other_run,) = base.runs, candidate.runs
        interval = _within_runs(measure, scale, candidate_value - base_value, run, other_run, family)
    else:
        floor = _spread_of_counts(measure, [*base.runs, *candidate.runs])
        interval = difference(taken, taken_other, family, floor)
    blur = _blur(measure, [*base.runs, *candidate.runs])
    if interval is not None:
        low_pct, high_pct = scale.percent(interval.low - blur), scale.percent(interval.high + blur)
        # Without any spread the runs are copies, or made alike: repetitions of nothing.
        alike = not interval.spread and not blur and interval.estimate
        if not single and not alike:
            verdict = _word(low_pct, high_pct, margin_pct, measure.better)
        if not single and not alike and verdict == "cannot tell":
            most = max(len(taken), len(taken_other))
            runs_to_tell = _runs_to_tell(interval, scale.size(margin_pct), blur, family, most)
    return Compared(
        metric=measure.metric,
        statistic=measure.statistic,
        title=measure.title,
        unit=measure.unit,
        better=measure.better,
        base=one,
        candidate=other,
        base_value=scale.give(base_value),
        candidate_value=scale.give(candidate_value),
        difference_pct=scale.percent(candidate_value - base_value),
        in_points=measure.in_points,
        low_pct=low_pct,
        high_pct=high_pct,
        within_runs=single,
        margin_pct=margin_pct,
        verdict=verdict,
        runs_to_tell=runs_to_tell,
    )


def _word(low_pct: float, high_pct: float, margin_pct: float, better: Better) -> Word:
    if -margin_pct <= low_pct and high_pct <= margin_pct:
        return "equivalent"
    if low_pct <= 0 <= high_pct:
        return "cannot tell"
    return "improved" if (low_pct > 0) == (better == "higher") else "regressed"


def _runs_to_tell(interval: Interval, margin: float, blur: float, family: int, runs: int) -> int | None:
    """Return how many runs a side would tell a difference, or that it lies within the margin."""
    # Whichever of the two is larger takes fewer runs to see.
    size = max(abs(interval.estimate), margin - abs(interval.estimate)) - blur
    needed = runs_to_see(size, interval.spread, family) if size > 0 else None
    # What seemed enough and was not takes one more, at least.
    return None if needed is None else max(needed, runs + 1)


def _blur(measure: Measure, runs: Sequence[MeasuredRun]) -> float:
    """Return by how much a difference may be wrong since values are from a sketch, as a logarithm."""
    return 2 * math.log1p(RELATIVE_ERROR) if any(measure.key in run.inexact for run in runs) else 0.0


def _within_runs(
    measure: Measure, scale: _Scale, estimate: float, run: MeasuredRun, other: MeasuredRun, family: int
) -> Interval | None:
    """Return the interval by the spread of the blocks within one run a side, None without blocks."""
    blocks, blocks_of_other = (each.blocks.get(measure.key, []) for each in (run, other))
    if min(len(blocks), len(blocks_of_other)) < 2 or not all(map(scale.can_take, blocks + blocks_of_other)):
        return None
    found = difference(list(map(scale.take, blocks)), list(map(scale.take, blocks_of_other)), family)
    # About what is known of the runs as wholes: the mean of blocks' percentiles is not the run's.
    moved = estimate - found.estimate
    return Interval(estimate=estimate, low=found.low + moved, high=found.high + moved, spread=found.spread)


def _spread_of_counts(measure: Measure, runs: Sequence[MeasuredRun]) -> float:
    """Return the spread between runs that a share of requests has at least, by chance alone.

    So that three times no error, and once one in each run, is no difference that is sure.
    """
    total = sum(run.requests for run in runs)
    if not measure.in_points or not total:
        return 0.0
    share = (sum(run.values[measure.key] * run.requests for run in runs) + 1) / (total + 2)
    return math.sqrt(share * (1 - share) / statistics.harmonic_mean([max(run.requests, 1) for run in runs]))


class _Ratio:
    """Values whose differences are ratios: what disturbs a measurement does so by a factor."""

    def can_take(self, value: float) -> bool:
        return value > 0

    def take(self, value: float) -> float:
        return math.log(value)

    def give(self, value: float) -> float:
        return math.exp(value)

    def percent(self, difference: float) -> float:
        return 100 * math.expm1(min(difference, 700.0))  # an interval of few runs may be that wide

    def size(self, percent: float) -> float:
        return math.log1p(percent / 100)


class _Points:
    """Shares, whose differences are percentage points."""

    def can_take(self, value: float) -> bool:
        return math.isfinite(value)

    def take(self, value: float) -> float:
        return value

    def give(self, value: float) -> float:
        return value

    def percent(self, difference: float) -> float:
        return 100 * difference

    def size(self, percent: float) -> float:
        return percent / 100


_Scale: TypeAlias = _Ratio | _Points
