"""Systems that get figures made of records: from the sinks, and from each record by itself."""

from __future__ import annotations

import re
import urllib.request
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from struct import Struct

import cramjam
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from benchmarks.harness import Child
from benchmarks.sink_databases import Server
from benchmarks.sink_documents import connected, post
from benchmarks.sink_load import METRICS, RECORDS_PER_S, Load, Place, Row, Work, chunks, feed
from phase_bus_consumers.otlp import OtlpSink
from phase_bus_consumers.prometheus import PrometheusEndpoint
from phase_bus_consumers.remote_write import RemoteWrite
from tests.support.servers.otlp import OtlpReceiver
from tests.support.servers.process import free_port
from tests.support.servers.prometheus import Prometheus

_STEP_NS = 10**9 // RECORDS_PER_S
_INTERVAL_S = 5  # what the otlp sink has by default
_FIRST = METRICS[0]
_BOUNDS = tuple(digit * 10.0**power for power in range(10) for digit in (1, 2, 5))
_DOUBLE = Struct("<Bd").pack  # a protocol buffer's key and number
_SAMPLES = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}


# ---- a Prometheus that scrapes ----


@contextmanager
def scraped(_directory: str) -> Iterator[Server]:
    """No server: each side ends with a scrape of its own, which has the count."""
    yield Server("", lambda _name: 0)


@contextmanager
def endpoint(load: Load, place: Place) -> Iterator[Work]:
    """The sink."""
    port = free_port()

    def scrape() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return _count_in(answer.read().decode(), "phase_bus_request_duration_seconds")

    with feed(PrometheusEndpoint(port=port), load, place.name, scrape) as work:
        yield work


@contextmanager
def observe(load: Load, _place: Place) -> Iterator[Work]:
    """Each metric of each record by itself."""
    registry, histograms = _histograms({"phase": "profiling"})

    def work() -> int:
        for row in load.rows:
            for name, histogram in histograms:
                histogram.observe(row[name])
        return _count_in(generate_latest(registry).decode(), _FIRST)

    yield work


@contextmanager
def bucket_loop(load: Load, _place: Place) -> Iterator[Work]:
    """The same without a library."""

    def work() -> int:
        counting = _Counting()
        for row in load.rows:
            counting.add(row)
        return sum(counting.counts[_FIRST])

    yield work


class _Counting:
    """Buckets and sums of each metric."""

    def __init__(self) -> None:
        self.counts = {name: [0] * (len(_BOUNDS) + 1) for name in METRICS}
        self.sums = dict.fromkeys(METRICS, 0.0)

    def add(self, row: Row) -> None:
        """Add a record."""
        for name in METRICS:
            value = row[name]
            self.counts[name][bisect_left(_BOUNDS, value)] += 1
            self.sums[name] += value


def _histograms(labels: dict[str, str]) -> tuple[CollectorRegistry, list[tuple[str, Histogram]]]:
    registry = CollectorRegistry()
    made = [Histogram(name, name, [*labels], registry=registry, buckets=_BOUNDS) for name in METRICS]
    return registry, [(name, each.labels(**labels)) for name, each in zip(METRICS, made, strict=True)]


def _count_in(text: str, name: str) -> int:
    found = re.search(rf"^{name}_count(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


# ---- a Prometheus that is written to ----


@contextmanager
def prometheus(directory: str) -> Iterator[Server]:
    """Run one."""
    with Prometheus(Path(directory)) as server:

        def count(name: str) -> int:
            window = f'{{round="{name}"}}[1h]'
            ways = (
                f"max_over_time(phase_bus_requests_total{window})",
                f"max_over_time({_FIRST}_count{window})",
                f"count_over_time({_FIRST}{window})",
            )
            found = server.query(" or ".join(f"sum({way})" for way in ways))
            return int(float(found[0]["value"][1])) if found else 0

        yield Server(server.write_url, count)


@contextmanager
def remote_write_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink: all series, each second of the run."""
    consumer = RemoteWrite(place.url, labels={"round": place.name}, max_rows_per_s=0)
    with feed(consumer, load, place.name) as work:
        yield work


@contextmanager
def write_records(load: Load, place: Place) -> Iterator[Work]:
    """A request for each record, with the values as samples."""
    labels = {"phase": "profiling", "round": place.name}
    with connected(place.url) as connection:

        def work() -> None:
            for number, row in enumerate(load.rows):
                samples = [(name, labels, float(row[name])) for name in METRICS]
                body = _encode(samples, load.start_ns + number * _STEP_NS)
                post(connection, "/api/v1/write", body, _SAMPLES)

        yield work


@contextmanager
def write_seconds(load: Load, place: Place) -> Iterator[Work]:
    """Each metric of each record is observed by itself; all series go out once a second of the run."""
    labels = {"phase": "profiling", "round": place.name}
    registry, histograms = _histograms(labels)
    with connected(place.url) as connection:

        def work() -> None:
            time_ns = load.start_ns
            for second in chunks(load.rows, RECORDS_PER_S):
                for row in second:
                    for name, histogram in histograms:
                        histogram.observe(row[name])
                time_ns += 10**9
                families = registry.collect()
                samples = [(s.name, s.labels, s.value) for family in families for s in family.samples]
                post(connection, "/api/v1/write", _encode(samples, time_ns), _SAMPLES)

        yield work


def _encode(samples: Iterable[tuple[str, dict[str, str], float]], time_ns: int) -> bytes:
    """Return a request with a sample for each of some series, for which there is no client library."""
    moment = b"\x10" + _varint(time_ns // 1_000_000)
    body = b"".join(
        _message(0x0A, _labels(name, tuple(labels.items())) + _message(0x12, _DOUBLE(0x09, value) + moment))
        for name, labels, value in samples
    )
    return bytes(cramjam.snappy.compress_raw(body))


@cache
def _labels(name: str, labels: tuple[tuple[str, str], ...]) -> bytes:
    ordered = sorted([("__name__", name), *labels])
    return b"".join(
        _message(0x0A, _message(0x0A, key.encode()) + _message(0x12, value.encode()))
        for key, value in ordered
    )


def _message(key: int, content: bytes) -> bytes:
    return bytes((key,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes((*parts, number))


# ---- OTLP ----


@contextmanager
def otlp_receiver(_directory: str) -> Iterator[Server]:
    """Run a receiver in a process of its own."""
    with Child(_receive) as child:
        url: str = child.ready()

        def count(name: str) -> int:
            child.connection.send(name)
            found: int = child.connection.recv()
            return found

        yield Server(url, count)


def _receive(connection: Connection) -> None:
    """Be the receiver; say how many requests the points of a service are about."""
    counts: Counts[str] = Counts()
    with OtlpReceiver() as receiver:
        connection.send(receiver.url)
        while True:
            name = connection.recv()
            for point in receiver.points(_FIRST):
                counts[point.place.resource["service.name"]] += point.point.count
            for point in receiver.points("gen_ai.client.operation.duration"):
                service = point.place.resource["service.name"]
                counts[service] = max(counts[service], point.point.count)
            receiver.metrics.clear()
            connection.send(counts[name])


@contextmanager
def otlp_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink; of the requests one of a hundred is a span, too."""
    with feed(OtlpSink(place.url, service=place.name, max_rows_per_s=0), load, place.name) as work:
        yield work


@contextmanager
def export_records(load: Load, place: Place) -> Iterator[Work]:
    """A request for each record, with a histogram of one value for each metric."""
    with connected(place.url) as connection:

        def work() -> None:
            for number, row in enumerate(load.rows):
                counting = _Counting()
                counting.add(row)
                body = _export(counting, place.name, load.start_ns + number * _STEP_NS, _STEP_NS)
                post(connection, "/v1/metrics", body, {"Content-Type": "application/x-protobuf"})

        yield work


@contextmanager
def export_intervals(load: Load, place: Place) -> Iterator[Work]:
    """Each metric of each record is counted by itself; histograms go out every few seconds of the run."""
    with connected(place.url) as connection:

        def work() -> None:
            time_ns = load.start_ns
            for some in chunks(load.rows, _INTERVAL_S * RECORDS_PER_S):
                counting = _Counting()
                for row in some:
                    counting.add(row)
                body = _export(counting, place.name, time_ns, len(some) * _STEP_NS)
                post(connection, "/v1/metrics", body, {"Content-Type": "application/x-protobuf"})
                time_ns += len(some) * _STEP_NS

        yield work


def _export(counting: _Counting, service: str, start_ns: int, took_ns: int) -> bytes:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    attribute = resource.resource.attributes.add(key="service.name")
    attribute.value.string_value = service
    scope = resource.scope_metrics.add()
    for name, counts in counting.counts.items():
        histogram = scope.metrics.add(name=name).histogram
        histogram.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
        point = histogram.data_points.add(
            start_time_unix_nano=start_ns, time_unix_nano=start_ns + took_ns, count=sum(counts),
            sum=counting.sums[name], bucket_counts=counts, explicit_bounds=_BOUNDS,
        )  # fmt: skip
        point.attributes.add(key="phase").value.string_value = "profiling"
    return request.SerializeToString()
