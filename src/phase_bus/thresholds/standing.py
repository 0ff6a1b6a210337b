"""How a threshold stands, from one second to the next and in the end."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from phase_bus.aggregation.rates import TOKEN_METRICS
from phase_bus.events import VerdictState
from phase_bus.thresholds.cells import seconds
from phase_bus.thresholds.measure import Measure
from phase_bus.thresholds.threshold import BaselineLimit, Metric, Quantity, Rate, Threshold, compare


class Assessment(NamedTuple):
    """What was measured, what that makes of a threshold, and what there is to say, empty for nothing."""

    state: VerdictState
    found: Measure
    reason: str


def assess(threshold: Threshold, found: Measure) -> Assessment:
    """Return how a threshold, whose limit is a number, stands by what was measured."""
    assert not isinstance(threshold.limit, BaselineLimit)
    if not found.samples or found.value is None:
        return Assessment("unknown", found, _lack_of(threshold.quantity, found.samples))
    if found.samples < threshold.at_least:
        return Assessment("unknown", found, f"{found.samples:,} of at least {threshold.at_least:,} samples")
    holds = compare(found.value, threshold.operator, threshold.limit)
    return Assessment("passed" if holds else "failed", found, "")


def _lack_of(quantity: Quantity, samples: int) -> str:
    """Return why there is no value, in words."""
    match quantity:
        case Metric(name=name):
            return f"no value of {name}"
        case Rate(name=rate) if samples and rate in TOKEN_METRICS:
            return f"no value of {' and '.join(TOKEN_METRICS[rate])}"
        case _:
            return "no requests"


class Standing(Struct):
    """How a threshold stands.

    Attributes:
        state: what counts.
        pending, since_s: the state that it would have, if it lasts, and since which second.
        windows, failing: how many windows were judged, and how many of these did not keep to it.
        first_failing_s: how long the phase had taken when the first of these ended.
        ever_failed: whether the state was ever ``failed``.
        worst, worst_samples: the value that is furthest from what it should be, of all windows.
    """

    state: VerdictState = "unknown"
    pending: VerdictState = "unknown"
    since_s: int = 0
    windows: int = 0
    failing: int = 0
    first_failing_s: float | None = None
    ever_failed: bool = False
    worst: float | None = None
    worst_samples: int = 0

    def note_window(self, threshold: Threshold, now: Assessment, taken_s: float | None) -> None:
        """Count a window, that ended when the phase had taken so long."""
        self.windows += 1
        value, samples = now.found
        if now.state == "failed":
            self.failing += 1
            if self.first_failing_s is None:
                self.first_failing_s = taken_s
        if value is None or now.state == "unknown":
            return
        low_is_good = threshold.operator in ("<", "<=")
        if self.worst is None or (value > self.worst) == low_is_good:
            self.worst, self.worst_samples = value, samples

    def settle(self, now: VerdictState, second: int, for_s: float) -> bool:
        """Note how it is in a second; return whether what counts has changed."""
        if now == self.state:
            self.pending, self.since_s = now, second
            return False
        if now != self.pending:
            self.pending, self.since_s = now, second
        if second - self.since_s < for_s:
            return False
        self.state = now
        self.ever_failed |= now == "failed"
        return True

    def conclude_windows(self, threshold: Threshold) -> Assessment:
        """Return how a threshold on windows stands in the end: each of them has to keep to it."""
        worst = Measure(self.worst, self.worst_samples)
        if self.ever_failed:
            first = self.first_failing_s
            since = "" if first is None else f", the first {first:,.0f} s after the phase began"
            return Assessment("failed", worst, f"in {self.failing:,} of {self.windows:,} windows{since}")
        if self.state == "passed":
            return Assessment("passed", worst, "")
        width = f"{seconds(threshold.over_s):,} s"
        if not self.windows:
            return Assessment("unknown", worst, f"there was no whole window of {width}")
        return Assessment("unknown", worst, f"in no window of {width} was there enough to judge by")

    def conclude(self, threshold: Threshold, now: Assessment) -> Assessment:
        """Return how a threshold on whole phases stands in the end, by what these come to."""
        state, found, _ = now
        if threshold.abort and self.ever_failed:
            return Assessment("failed", found, "it failed earlier, and was set to end the run")
        if not threshold.for_s or state == self.state:
            return now
        lasting = f"{threshold.for_s:g} s"
        if self.state == "unknown":
            return Assessment(self.state, found, f"no state lasted {lasting}")
        return Assessment(self.state, found, f"{state} in the end, but not for {lasting}")
