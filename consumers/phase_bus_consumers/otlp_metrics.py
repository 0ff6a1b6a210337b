"""A phase's counts as OTLP metrics, by the semantic conventions for clients of generative models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from phase_bus import Verdict
from phase_bus.aggregation import Buckets, ExponentialHistogram, MetricState
from phase_bus_consumers.extras import needs
from phase_bus_consumers.otlp_logs import of_threshold
from phase_bus_consumers.otlp_runs import LATENCY, Phase, Temporality
from phase_bus_consumers.otlp_values import attributes, unix_ns
from phase_bus_consumers.verdicts import passed

with needs("otlp"):
    from opentelemetry.proto.metrics.v1.metrics_pb2 import (
        AggregationTemporality,
        DataPointFlags,
        ExponentialHistogramDataPoint,
        Metric,
        NumberDataPoint,
    )

_TEMPORALITY: Mapping[Temporality, Any] = {
    "cumulative": AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE,
    "delta": AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA,
}


class _Instrument(NamedTuple):
    name: str
    unit: str
    description: str
    attributes: Mapping[str, str] = {}


_TOKENS = ("gen_ai.client.token.usage", "{token}", "Tokens of requests and of their answers.")
_HISTOGRAMS = {
    LATENCY: _Instrument(
        "gen_ai.client.operation.duration", "s", "How long requests took, with their whole answer."
    ),
    "time_to_first_token": _Instrument(
        "gen_ai.client.operation.time_to_first_chunk", "s", "How long the first piece of an answer took."
    ),
    "input_sequence_length": _Instrument(*_TOKENS, {"gen_ai.token.type": "input"}),
    "output_sequence_length": _Instrument(*_TOKENS, {"gen_ai.token.type": "output"}),
    "inter_token_latency": _Instrument(
        "phase_bus.request.inter_token_latency",
        "s",
        "The mean time between an answer's tokens, one value a request.",
    ),
}
_REQUESTS = _Instrument("phase_bus.requests", "{request}", "Requests that ended, failed or not.")
_ERRORS = _Instrument("phase_bus.request.errors", "{request}", "Requests that failed, by type of error.")

_PASSED = _Instrument(
    "phase_bus.threshold.passed",
    "1",
    "Whether the run keeps to the threshold: 1, or 0; without a value as long as nobody can tell.",
)


def points(
    phase: Phase, now_ns: int, temporality: Temporality, max_buckets: int, common: Mapping[str, Any]
) -> Iterator[Metric]:
    """Yield what a phase counted, up to a time: metrics with one point each.

    Args:
        common: attributes of all of them.
    """
    kind = _TEMPORALITY[temporality]
    times: dict[str, Any] = {"start_time_unix_nano": phase.since_ns, "time_unix_nano": now_ns}

    def counter(instrument: _Instrument, value: int, error: str | None) -> Metric:
        metric = _metric(instrument)
        named = attributes({**common, "error.type": error})
        point = NumberDataPoint(as_int=value, attributes=named, **times)
        metric.sum.data_points.append(point)
        metric.sum.aggregation_temporality = kind
        metric.sum.is_monotonic = True
        return metric

    yield counter(_REQUESTS, phase.requests, None)
    for error, count in phase.errors.items():
        yield counter(_ERRORS, count, error)
    for (column, error), state in phase.values.items():
        instrument = _HISTOGRAMS[column]
        metric = _metric(instrument)
        named = attributes({**common, **instrument.attributes, "error.type": error or None})
        point = ExponentialHistogramDataPoint(attributes=named, **times)
        _fill(point, histogram_of(state, max_buckets))
        metric.exponential_histogram.data_points.append(point)
        metric.exponential_histogram.aggregation_temporality = kind
        yield metric


def threshold_point(verdict: Verdict, now_ns: int) -> Metric:
    """Return how a threshold stands at a time, by the last verdict on it: a gauge."""
    metric = _metric(_PASSED)
    point = metric.gauge.data_points.add(
        time_unix_nano=unix_ns(now_ns), attributes=attributes(of_threshold(verdict))
    )
    known = passed(verdict)
    if known is None:
        point.flags = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
    else:
        point.as_int = int(known)
    return metric


def histogram_of(state: MetricState, max_buckets: int) -> ExponentialHistogram:
    """Return the finest histogram that has no more buckets of one sign."""
    found = state.exponential()
    while max(len(found.positive.counts), len(found.negative.counts)) > max_buckets:
        found = found.coarser(found.scale - 1)
    return found


def _metric(instrument: _Instrument) -> Metric:
    return Metric(name=instrument.name, unit=instrument.unit, description=instrument.description)


def _fill(point: ExponentialHistogramDataPoint, histogram: ExponentialHistogram) -> None:
    point.scale = histogram.scale
    point.count, point.sum = histogram.count, histogram.sum
    point.zero_count = histogram.zeros
    if histogram.min is not None and histogram.max is not None:
        point.min, point.max = histogram.min, histogram.max
    _fill_buckets(point.positive, histogram.positive)
    _fill_buckets(point.negative, histogram.negative)


def _fill_buckets(target: ExponentialHistogramDataPoint.Buckets, buckets: Buckets) -> None:
    if buckets.counts:
        target.offset = (
            buckets.offset - 1
        )  # a bucket is named by its lower end there, by its upper end here
        target.bucket_counts.extend(buckets.counts)
