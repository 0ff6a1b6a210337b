"""What metrics, logs and spans of OTLP have in common: attributes, ids, and requests to send them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeAlias

from phase_bus import PhaseRef, __version__
from phase_bus_consumers.extras import needs

with needs("otlp"):
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError, Message
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
        ExportLogsServiceRequest,
        ExportLogsServiceResponse,
    )
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )
    from opentelemetry.proto.common.v1.common_pb2 import (
        AnyValue,
        ArrayValue,
        InstrumentationScope,
        KeyValue,
    )
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

Signal: TypeAlias = Literal["metrics", "logs", "traces"]

# The last version of the general conventions that the GenAI ones are part of. Those go on by themselves,
# under other names, which few backends know so far.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"

_SCOPE = InstrumentationScope(name="phase-bus", version=__version__)
_RESPONSES: dict[Signal, Any] = {
    "metrics": ExportMetricsServiceResponse,
    "logs": ExportLogsServiceResponse,
    "traces": ExportTraceServiceResponse,
}
_REJECTED = ("rejected_data_points", "rejected_log_records", "rejected_spans")


class Item(NamedTuple):
    """A metric with one point, a log record or a span, of a run."""

    signal: Signal
    run_id: str
    message: Any


class Rejection(NamedTuple):
    """What a receiver says that took a request: how many items of it it did not take, and why."""

    rejected: int
    reason: str


def attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    """Return attributes of texts, numbers, flags, and lists of texts; those that are None are left out."""
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items() if value is not None]


def text(value: str) -> AnyValue:
    """Return a text as a value."""
    return AnyValue(string_value=value)


def _value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case list() | tuple():
            return AnyValue(array_value=ArrayValue(values=map(_value, value)))
    return text(str(value))


def unix_ns(value: float | None) -> int:
    """Return a time as OTLP has it; 0 stands for one that is not known."""
    return 0 if value is None else min(max(int(value), 0), (1 << 64) - 1)


def trace_id(run_id: str) -> bytes:
    """Return the id of a run's trace, always the same."""
    return _digest(16, run_id)


def run_span_id(run_id: str) -> bytes:
    """Return the id of the span of a run."""
    return _digest(8, "run", run_id)


def phase_span_id(run_id: str, phase: PhaseRef) -> bytes:
    """Return the id of the span of a phase."""
    return _digest(8, "phase", run_id, phase.name, str(phase.index))


def request_span_id(key: str) -> bytes:
    """Return the id of the span of a request, whose record a key names."""
    return _digest(8, "request", key)


def _digest(size: int, *parts: str) -> bytes:
    return blake2b("\0".join(parts).encode(), digest_size=size).digest()


def build_request(signal: Signal, items: Iterable[Item], of_resource: Mapping[str, Any]) -> bytes:
    """Return the request, encoded, that sends items of one signal.

    Args:
        of_resource: the attributes of each run's resource, besides its ids.
    """
    by_run: dict[str, list[Any]] = {}
    for item in items:
        by_run.setdefault(item.run_id, []).append(item.message)
    request: Message
    match signal:
        case "metrics":
            request = metrics = ExportMetricsServiceRequest()
            for run_id, messages in by_run.items():
                of_run = metrics.resource_metrics.add(resource=_resource(run_id, of_resource))
                of_run.schema_url = SCHEMA_URL
                _add_metrics(of_run.scope_metrics.add(scope=_SCOPE, schema_url=SCHEMA_URL), messages)
        case "logs":
            request = logs = ExportLogsServiceRequest()
            for run_id, messages in by_run.items():
                of_logs = logs.resource_logs.add(resource=_resource(run_id, of_resource))
                of_logs.schema_url = SCHEMA_URL
                of_logs.scope_logs.add(scope=_SCOPE, schema_url=SCHEMA_URL, log_records=messages)
        case "traces":
            request = traces = ExportTraceServiceRequest()
            for run_id, messages in by_run.items():
                of_spans = traces.resource_spans.add(resource=_resource(run_id, of_resource))
                of_spans.schema_url = SCHEMA_URL
                of_spans.scope_spans.add(scope=_SCOPE, schema_url=SCHEMA_URL, spans=messages)
    return request.SerializeToString()


def rejection_in(signal: Signal, answer: bytes) -> Rejection:
    """Return what an answer that is a success says of a part that was not taken.

    Raises:
        ValueError: if it is no answer of this protocol, in protobuf or in JSON.
    """
    response = _RESPONSES[signal]()
    try:
        if answer.lstrip()[:1] == b"{":
            json_format.Parse(answer, response)
        else:
            response.ParseFromString(answer)
            response.DiscardUnknownFields()
            if answer and not response.ByteSize():  # some texts look like fields that nobody knows
                raise DecodeError
    except (DecodeError, json_format.ParseError) as error:
        raise ValueError("an answer that is none of OTLP") from error
    partial = response.partial_success
    rejected = next(getattr(partial, name) for name in _REJECTED if hasattr(partial, name))
    return Rejection(rejected, partial.error_message)


def _resource(run_id: str, others: Mapping[str, Any]) -> Resource:
    ids = {"service.instance.id": run_id, "phase_bus.run_id": run_id}
    return Resource(attributes=attributes({**others, **ids}))


def _add_metrics(scope: Any, messages: Iterable[Any]) -> None:
    """Add metrics of one point each to a scope, those of one name together."""
    by_name: dict[str, Any] = {}
    for message in messages:
        kind = message.WhichOneof("data")
        known = by_name.get(message.name)
        if known is None:
            by_name[message.name] = known = scope.metrics.add()
            known.CopyFrom(message)
        else:
            getattr(known, kind).data_points.extend(getattr(message, kind).data_points)
