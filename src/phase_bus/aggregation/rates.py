"""The figures of requests as a whole, by the names that the summary has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from msgspec import Struct

if TYPE_CHECKING:
    from phase_bus.aggregation.metric import MetricState


RateName: TypeAlias = Literal[
    "requests",
    "failed",
    "error_rate",
    "success_rate",
    "request_throughput",
    "input_token_throughput",
    "output_token_throughput",
    "total_token_throughput",
]
"""A figure of a phase as a whole, called as in the aggregator's summary."""
RATES: tuple[RateName, ...] = get_args(RateName)
TOKEN_METRICS: Mapping[RateName, tuple[str, ...]] = {
    "input_token_throughput": ("input_sequence_length",),
    "output_token_throughput": ("output_sequence_length",),
    "total_token_throughput": ("input_sequence_length", "output_sequence_length"),
}
"""The metrics whose sums a throughput of tokens is made of."""


def unit_of_rate(name: RateName) -> str:
    """Return the unit of a figure on the bus."""
    match name:
        case "requests" | "failed":
            return "requests"
        case "error_rate" | "success_rate":
            return "fraction"
        case "request_throughput":
            return "requests/sec"
        case _:
            return "tokens/sec"


def is_per_second(name: RateName) -> bool:
    """Return whether a figure is so many of something in a second."""
    return name == "request_throughput" or name in TOKEN_METRICS


class Figures(Struct, frozen=True, kw_only=True):
    """What figures are made of: the requests of a phase, of several, or of a stretch of their time.

    Attributes:
        failed: how many of the requests failed.
        duration_s: how long they took, in seconds, None if it is not known.
        metrics: the states of their metrics, by name.
    """

    requests: int
    failed: int
    duration_s: float | None
    metrics: Mapping[str, MetricState]

    def rate(self, name: RateName) -> float | None:
        """Return what a figure comes to, None where there is nothing to make it of.

        As AIPerf defines them: throughputs are of successful requests, which alone have lengths.
        """
        successful = self.requests - self.failed
        match name:
            case "requests":
                return float(self.requests)
            case "failed":
                return float(self.failed)
            case "error_rate":
                return _ratio(self.failed, self.requests)
            case "success_rate":
                return _ratio(successful, self.requests)
            case "request_throughput":
                return _ratio(successful, self.duration_s)
            case _:
                states = [self.metrics.get(metric) for metric in TOKEN_METRICS[name]]
                sums = [state.sum for state in states if state is not None]
                return _ratio(sum(sums), self.duration_s) if len(sums) == len(states) else None


def _ratio(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None
