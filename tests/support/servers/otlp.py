"""A receiver of OTLP over HTTP that decodes with the official protocol and is strict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web
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
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.servers.app import App, Handler

M = TypeVar("M", bound=Message)
PROTOBUF = "application/x-protobuf"
_INVALID_ARGUMENT = 3


@dataclass(frozen=True)
class Place:
    """What an item was sent under."""

    resource: dict[str, Any]
    scope: str
    resource_schema: str
    scope_schema: str


@dataclass(frozen=True)
class Point:
    """A data point as it was received.

    Attributes:
        kind: "sum", "exponential_histogram" and so on.
        temporality: as in the protocol: 1 is delta, 2 cumulative, 0 for a gauge.
        point: the protocol's own message.
    """

    place: Place
    name: str
    unit: str
    description: str
    kind: str
    temporality: int
    attributes: dict[str, Any]
    point: Any

    @property
    def identity(self) -> tuple[Any, ...]:
        """What no two points may have in common: the stream and its times."""
        stream = (_frozen(self.place.resource), self.place.scope, self.name, _frozen(self.attributes))
        return (*stream, self.point.start_time_unix_nano, self.point.time_unix_nano)


class OtlpReceiver(App):
    """A receiver that keeps over ``kill()`` what it received.

    It refuses another path (404), another content type (415), a missing header (401) and what is not
    protobuf (400), as well as an item without what the protocol requires of it (400).

    Args:
        headers: those that each request must have.

    Attributes:
        metrics, logs, traces: the decoded requests, in order.
        refused: the reasons of all refusals.
        partial: how many items of each following request are called rejected in a partial success.
    """

    def __init__(self, headers: dict[str, str] | None = None) -> None:
        super().__init__(
            {
                "POST /v1/metrics": self._strict(self._on_metrics),
                "POST /v1/logs": self._strict(self._on_logs),
                "POST /v1/traces": self._strict(self._on_traces),
            }
        )
        self._headers = headers or {}
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.logs: list[ExportLogsServiceRequest] = []
        self.traces: list[ExportTraceServiceRequest] = []
        self.refused: list[str] = []
        self.partial = 0

    def points(self, name: str = "") -> list[Point]:
        """Return all data points, or those of one metric."""
        return [
            point for request in self.metrics for point in _points_in(request) if name in ("", point.name)
        ]

    def log_records(self) -> list[tuple[Place, LogRecord]]:
        """Return all log records."""
        return [found for request in self.logs for found in _logs_in(request)]

    def spans(self) -> list[tuple[Place, Span]]:
        """Return all spans."""
        return [found for request in self.traces for found in _spans_in(request)]

    def repeated(self) -> dict[str, int]:
        """Return how many points, logs and spans came more than once, counting each further time.

        Points are told by stream and times, spans by their ids, logs by all they say.
        """
        logs = (
            (_frozen(place.resource), record.SerializeToString(deterministic=True))
            for place, record in self.log_records()
        )
        return {
            "points": _surplus(point.identity for point in self.points()),
            "logs": _surplus(logs),
            "spans": _surplus((span.trace_id, span.span_id) for _, span in self.spans()),
        }

    def _strict(self, work: Callable[[web.Request], Awaitable[Message]]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            try:
                return _answer(await work(request))
            except _RefusedError as refused:
                self.refused.append(refused.reason)
                # google.rpc.Status: code, message.
                text = refused.reason.encode()[:100]
                body = bytes([0x08, _INVALID_ARGUMENT, 0x12, len(text)]) + text
                return web.Response(status=refused.status, body=body, content_type=PROTOBUF)

        return handle

    async def _on_metrics(self, request: web.Request) -> Message:
        body = await self._decode(request, ExportMetricsServiceRequest())
        for point in _points_in(body):
            _check_point(point)
        self.metrics.append(body)
        return ExportMetricsServiceResponse(partial_success=self._rejected("data_points"))

    async def _on_logs(self, request: web.Request) -> Message:
        body = await self._decode(request, ExportLogsServiceRequest())
        for _, record in _logs_in(body):
            attributes_of(record.attributes)
        self.logs.append(body)
        return ExportLogsServiceResponse(partial_success=self._rejected("log_records"))

    async def _on_traces(self, request: web.Request) -> Message:
        body = await self._decode(request, ExportTraceServiceRequest())
        for _, span in _spans_in(body):
            _check_span(span)
        self.traces.append(body)
        return ExportTraceServiceResponse(partial_success=self._rejected("spans"))

    def _rejected(self, what: str) -> Any:
        return {f"rejected_{what}": self.partial, "error_message": "partial"} if self.partial else None

    async def _decode(self, request: web.Request, message: M) -> M:
        for name, value in self._headers.items():
            _require(request.headers.get(name) == value, f"header {name}", 401)
        _require(request.content_type == PROTOBUF, f"content type {request.content_type}", 415)
        try:
            message.ParseFromString(await request.read())  # whose gzip aiohttp has undone
        except (DecodeError, web.HTTPBadRequest) as error:
            raise _RefusedError(str(error)) from error
        return message


class _RefusedError(Exception):
    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


def _require(holds: bool, reason: str, status: int = 400) -> None:
    if not holds:
        raise _RefusedError(reason, status)


def _check_point(point: Point) -> None:
    _require(point.point.time_unix_nano > 0, f"{point.name}: a point without a time")
    if point.kind != "gauge":
        _require(point.temporality in (1, 2), f"{point.name}: no temporality")
    if point.kind == "exponential_histogram":
        buckets = sum(point.point.positive.bucket_counts) + sum(point.point.negative.bucket_counts)
        adds_up = buckets + point.point.zero_count == point.point.count
        _require(adds_up, f"{point.name}: counts do not add up")


def _check_span(span: Span) -> None:
    attributes_of(span.attributes)
    _require(len(span.trace_id) == 16 and any(span.trace_id), "a trace id is 16 bytes, not all zero")
    _require(len(span.span_id) == 8 and any(span.span_id), "a span id is 8 bytes, not all zero")
    _require(len(span.parent_span_id) in (0, 8), "a parent's id is 8 bytes")
    _require(bool(span.name), "a span has a name")
    _require(0 < span.start_time_unix_nano <= span.end_time_unix_nano, "a span ends after its start")


def _points_in(request: ExportMetricsServiceRequest) -> Iterator[Point]:
    for each in request.resource_metrics:
        for scoped in each.scope_metrics:
            place = _place(each, scoped)
            for metric in scoped.metrics:
                yield from _points_of(metric, place)


def _logs_in(request: ExportLogsServiceRequest) -> Iterator[tuple[Place, LogRecord]]:
    for each in request.resource_logs:
        for scoped in each.scope_logs:
            place = _place(each, scoped)
            for record in scoped.log_records:
                yield place, record


def _spans_in(request: ExportTraceServiceRequest) -> Iterator[tuple[Place, Span]]:
    for each in request.resource_spans:
        for scoped in each.scope_spans:
            place = _place(each, scoped)
            for span in scoped.spans:
                yield place, span


def plain(value: AnyValue) -> Any:
    """Return an attribute's value as Python's."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Return attributes as a dictionary; a key that is there twice is refused."""
    found: dict[str, Any] = {}
    for pair in pairs:
        _require(pair.key not in found, f"attribute {pair.key!r} is empty, or there twice")
        found[pair.key] = plain(pair.value)
    return found


def _points_of(metric: Metric, place: Place) -> Iterator[Point]:
    kind = metric.WhichOneof("data")
    if kind is None:
        raise _RefusedError(f"{metric.name} has no data")
    data = getattr(metric, kind)
    temporality = getattr(data, "aggregation_temporality", 0)
    for point in data.data_points:
        attributes = attributes_of(point.attributes)
        yield Point(
            place, metric.name, metric.unit, metric.description, kind, temporality, attributes, point
        )


def _place(each: Any, scoped: Any) -> Place:
    resource = attributes_of(each.resource.attributes)
    return Place(resource, scoped.scope.name, each.schema_url, scoped.schema_url)


def _frozen(attributes: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, repr(value)) for key, value in attributes.items()))


def _surplus(identities: Iterator[Any]) -> int:
    return sum(count - 1 for count in Counter(identities).values())


def _answer(message: Message) -> web.Response:
    return web.Response(body=message.SerializeToString(), content_type=PROTOBUF)
