"""What a threshold's quantity comes to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from phase_bus.aggregation import rates
from phase_bus.aggregation.metric import MetricState
from phase_bus.events import PhaseRef
from phase_bus.thresholds.cells import Part, Parts
from phase_bus.thresholds.threshold import Goodput, Metric, Quantity, Rate, Saturation

# By how much the throughput has to rise, from one half of a window to the next, to make up for latency.
_RISING = 1.05
_NO_PHASE = PhaseRef("")


class Measure(NamedTuple):
    """A quantity's value, None without one, and how many requests or values it is from."""

    value: float | None
    samples: int


def united(parts: Iterable[Part]) -> Part:
    """Return some parts as one, itself if there is one, empty if there is none."""
    first, *others = [*parts] or [Part(_NO_PHASE)]
    if not others:
        return first
    whole = Part(first.state.phase)
    whole.merge(first, *others)
    return whole


def measure(quantity: Quantity, part: Part, duration_s: float | None) -> Measure:
    """Return what a quantity other than saturation comes to.

    Args:
        part: the requests.
        duration_s: how long they took, None if that is not known.
    """
    state = part.state
    requests = state.requests
    match quantity:
        case Metric(name=name, statistic=statistic):
            metric = state.metrics.get(name)
            if metric is None or not metric.count:
                return Measure(0.0 if statistic in ("count", "sum") else None, 0)
            return Measure(metric.statistic(statistic), metric.count)
        case Goodput(conditions=conditions):
            return Measure(part.good[conditions] / requests if requests else None, requests)
        case Rate(name=name):
            figures = rates.Figures(
                requests=requests, failed=state.failed, duration_s=duration_s, metrics=state.metrics
            )
            return Measure(figures.rate(name), requests)
        case Saturation():
            raise AssertionError("it takes two halves of a window")


def is_per_second(quantity: Quantity) -> bool:
    """Return whether a quantity is something per second: 0, and not unknown, if nothing comes."""
    return isinstance(quantity, Rate) and rates.is_per_second(quantity.name)


def measure_saturation(quantity: Saturation, first: Parts, second: Parts, at_least: int) -> Measure:
    """Return the rise of a latency from one half of a window to the other, and the fewer values of it."""
    before, after = (united(parts.values()).state for parts in (first, second))
    empty = MetricState()
    latencies = [state.metrics.get(quantity.metric, empty) for state in (before, after)]
    samples = min(metric.count for metric in latencies)
    low, high = (metric.percentile(50.0) for metric in latencies)
    if samples < max(at_least, 1) or not low or high is None:
        return Measure(None, samples)
    keeps_up = after.requests - after.failed >= (before.requests - before.failed) * _RISING
    return Measure(0.0 if keeps_up else max(high / low - 1.0, 0.0), samples)
