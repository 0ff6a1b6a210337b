"""What is compared: a figure of each run, and which way it gets better."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

from msgspec import Struct

from phase_bus.aggregation.rates import Figures, RateName, unit_of_rate
from phase_bus.aggregation.units import METRICS, describe
from phase_bus.errors import ConfigError, suggest

Better: TypeAlias = Literal["lower", "higher"]
"""Which way a figure gets better."""

# Figures of the phases as a whole: which way is better, what a table calls it.
_RATES: dict[RateName, tuple[Better, str]] = {
    "request_throughput": ("higher", "requests/s"),
    "input_token_throughput": ("higher", "input tokens/s"),
    "output_token_throughput": ("higher", "output tokens/s"),
    "total_token_throughput": ("higher", "tokens/s"),
    "error_rate": ("lower", "errors"),
    "success_rate": ("higher", "successes"),
}
_SHORT = {
    "request_latency": "latency",
    "time_to_first_token": "TTFT",
    "inter_token_latency": "ITL",
}
_PERCENTILE = re.compile(r"p\d+(\.\d+)?")
_STATISTICS = ("mean", "std", "min", "max")
# Of a metric that is named without a statistic.
_OF_METRIC = ("mean", "p50", "p99")


class Measure(Struct, frozen=True):
    """A figure of a run: a rate of its profiling phases, or a statistic of a metric's values in them.

    Attributes:
        metric: the name, as AIPerf or the summary calls it.
        statistic: ``mean``, ``std``, ``min``, ``max``, ``p0`` to ``p100``; empty for a rate.
        better: which way it gets better.
    """

    metric: str
    statistic: str
    better: Better

    @property
    def key(self) -> str:
        """Its name in one word, as ``--metric`` takes it."""
        return f"{self.metric}:{self.statistic}" if self.statistic else self.metric

    @property
    def unit(self) -> str:
        """The unit of its values on the bus."""
        return unit_of_rate(self.metric) if self.metric in _RATES else describe(self.metric).unit

    @property
    def title(self) -> str:
        """What people call it."""
        if self.metric in _RATES:
            return _RATES[self.metric][1]
        return f"{_SHORT.get(self.metric, self.metric)} {self.statistic}"

    @property
    def in_points(self) -> bool:
        """Whether a difference is told in percentage points: that to 0 % errors has no percentage."""
        return self.unit == "fraction"

    def of(self, figures: Figures) -> float | None:
        """Return what it comes to, None where there is nothing to measure."""
        if self.metric in _RATES:
            return figures.rate(self.metric)
        values = figures.metrics.get(self.metric)
        return None if values is None or not values.count else values.statistic(self.statistic)


DEFAULT_MEASURES = (
    *(
        Measure(metric, statistic, "lower")
        for metric in ("request_latency", "time_to_first_token", "inter_token_latency")
        for statistic in ("p50", "p99")
    ),
    Measure("request_throughput", "", "higher"),
    Measure("output_token_throughput", "", "higher"),
    Measure("error_rate", "", "lower"),
)
"""What is compared unless told otherwise: few, since every further one widens the intervals of all."""


def parse_measures(texts: Iterable[str]) -> tuple[Measure, ...]:
    """Return the measures named by ``NAME[:STATISTIC[:lower|higher]]``, each once.

    A metric without a statistic stands for its mean, median and 99th percentile. Which way is better is
    known of rates, of times, and of whatever is called a throughput; of others it has to be said.

    Raises:
        ConfigError: if a text is none.
    """
    found = [measure for text in texts for measure in _parse(text)]
    return tuple({measure.key: measure for measure in found}.values())


def _parse(text: str) -> list[Measure]:
    name, *words = text.split(":")
    better: Better | None = None
    if words and words[-1] in ("lower", "higher"):
        better = "lower" if words.pop() == "lower" else "higher"
    if name in _RATES:
        if words:
            raise ConfigError(f"--metric {text!r}: {name} is one figure of a run; leave {words[0]!r} out")
        return [Measure(name, "", better or _RATES[name][0])]
    if not name or len(words) > 1 or not all(map(_is_statistic, words)):
        wrong = f"{words[-1]!r} is no statistic" if name and words else "it names no metric"
        raise ConfigError(
            f"--metric {text!r}: {wrong}; write NAME:STATISTIC with mean, std, min, max or p0 to p100, and "
            "':lower' or ':higher' after it for what is better"
        )
    way = better or _way_of(name)
    if way is None:
        known = suggest(name, [*_RATES, *METRICS]) if name not in METRICS else ""
        near = known if "did you mean" in known else ""
        example = f"{name}:{words[0] if words else 'mean'}:higher"
        raise ConfigError(
            f"--metric {text!r}: it is not known which way {name!r} gets better; write {example!r} or "
            f"':lower'{near}"
        )
    return [Measure(name, statistic, way) for statistic in words or _OF_METRIC]


def _is_statistic(word: str) -> bool:
    return word in _STATISTICS or bool(_PERCENTILE.fullmatch(word) and float(word[1:]) <= 100)


def _way_of(name: str) -> Better | None:
    """Return which way a metric gets better: a time is better when shorter."""
    if "throughput" in name:
        return "higher"
    return "lower" if describe(name).unit in ("ns", "sec") else None
