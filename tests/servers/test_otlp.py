"""The OTLP receiver that tests use."""

from __future__ import annotations

import gzip
import urllib.request

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from tests.support.servers.otlp import PROTOBUF, OtlpReceiver
from tests.support.servers.process import request


def send(server: OtlpReceiver, signal: str, message: Message, **headers: str) -> int:
    body = gzip.compress(message.SerializeToString())
    given = {"Content-Type": PROTOBUF, "Content-Encoding": "gzip", **headers}
    return request("POST", f"{server.url}/v1/{signal}", body, given)[0]


def metrics(count: int = 3, at_ns: int = 20) -> ExportMetricsServiceRequest:
    """A histogram of three values in three buckets, and a count of it."""
    made = ExportMetricsServiceRequest()
    resource = made.resource_metrics.add(schema_url="https://example.com/schema")
    resource.resource.attributes.add(key="service.name").value.string_value = "test"
    metric = resource.scope_metrics.add().metrics.add(name="m", unit="s")
    metric.exponential_histogram.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
    point = metric.exponential_histogram.data_points.add(
        start_time_unix_nano=10, time_unix_nano=at_ns, count=count, sum=6.0, scale=7
    )
    point.positive.bucket_counts.extend([1, 0, 2])
    point.attributes.add(key="phase").value.string_value = "profiling"
    return made


def logs() -> ExportLogsServiceRequest:
    made = ExportLogsServiceRequest()
    record = made.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=1)
    record.body.string_value = "a phase began"
    return made


def traces(trace_id: bytes = b"t" * 16) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    spans.add(name="run", trace_id=trace_id, span_id=b"s" * 8, start_time_unix_nano=1, end_time_unix_nano=2)
    return made


def test_what_came_is_counted_and_survives_a_kill(otlp_receiver: OtlpReceiver) -> None:
    assert send(otlp_receiver, "metrics", metrics()) == 200
    otlp_receiver.kill()
    with pytest.raises(OSError, match="refused"):
        send(otlp_receiver, "logs", logs())
    otlp_receiver.start()
    assert send(otlp_receiver, "metrics", metrics(at_ns=30)) == 200
    assert send(otlp_receiver, "logs", logs()) == 200
    assert send(otlp_receiver, "traces", traces()) == 200
    first, second = otlp_receiver.points("m")
    assert (first.kind, first.unit, first.temporality) == ("exponential_histogram", "s", 2)
    assert first.attributes == {"phase": "profiling"}
    assert (first.place.resource, first.place.resource_schema) == (
        {"service.name": "test"},
        "https://example.com/schema",
    )
    assert second.point.time_unix_nano == 30
    assert [record.body.string_value for _, record in otlp_receiver.log_records()] == ["a phase began"]
    assert [span.name for _, span in otlp_receiver.spans()] == ["run"]
    assert otlp_receiver.repeated() == {"points": 0, "logs": 0, "spans": 0}


def test_repetitions_are_found(otlp_receiver: OtlpReceiver) -> None:
    for _ in range(3):
        assert send(otlp_receiver, "metrics", metrics()) == 200
        assert send(otlp_receiver, "logs", logs()) == 200
        assert send(otlp_receiver, "traces", traces()) == 200
    assert otlp_receiver.repeated() == {"points": 2, "logs": 2, "spans": 2}


def test_what_is_wrong_is_refused(otlp_receiver: OtlpReceiver) -> None:
    assert send(otlp_receiver, "metrics", metrics(), **{"Content-Type": "text/plain"}) == 415
    assert send(otlp_receiver, "metrics", metrics(count=4)) == 400
    assert send(otlp_receiver, "traces", traces(b"short")) == 400
    headers = {"Content-Type": PROTOBUF}
    assert request("POST", f"{otlp_receiver.url}/v1/logs", b"\xff\xff", headers)[0] == 400
    assert request("POST", f"{otlp_receiver.url}/v1/other", b"", headers)[0] == 404
    assert len(otlp_receiver.refused) == 4
    assert not otlp_receiver.points()


def test_a_header_may_be_wanted() -> None:
    with OtlpReceiver({"Authorization": "Bearer x"}) as receiver:
        assert send(receiver, "logs", logs()) == 401
        assert send(receiver, "logs", logs(), Authorization="Bearer x") == 200


def test_a_part_may_be_called_rejected(otlp_receiver: OtlpReceiver) -> None:
    otlp_receiver.partial = 2
    asked = urllib.request.Request(  # noqa: S310
        f"{otlp_receiver.url}/v1/metrics", metrics().SerializeToString(), {"Content-Type": PROTOBUF}
    )
    with urllib.request.urlopen(asked) as answer:  # noqa: S310
        said = ExportMetricsServiceResponse.FromString(answer.read())
    assert said.partial_success.rejected_data_points == 2
