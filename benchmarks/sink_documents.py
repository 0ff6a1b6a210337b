"""Stores of documents that records are written to by HTTP: by the sinks, one by one, and in bulk."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.harness import Child
from benchmarks.sink_databases import Server
from benchmarks.sink_load import Load, Place, Row, Work, chunks, feed
from phase_bus import Secret
from phase_bus_consumers.elasticsearch import ElasticsearchSink
from phase_bus_consumers.splunk import SplunkSink
from tests.support.servers.hec import TOKEN, Hec
from tests.support.servers.opensearch import OpenSearch

_BULK = 5000
_KIND = "phase_bus:records"
_JSON = {"Content-Type": "application/json"}


@contextmanager
def opensearch(directory: str) -> Iterator[Server]:
    """Run a server of its interface, in memory."""
    with OpenSearch(Path(directory)) as server:
        yield Server(server.url, lambda name: server.count(f"{name}-records"))


@contextmanager
def elasticsearch_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink, writing plain indexes: this server has no data streams."""
    consumer = ElasticsearchSink(
        place.url, stream=f"{place.name}-{{kind}}", data_stream=False, max_rows_per_s=0
    )
    with feed(consumer, load, place.name) as work:
        yield work


@contextmanager
def document_requests(load: Load, place: Place) -> Iterator[Work]:
    """A request for each document, on one connection."""
    with connected(place.url) as connection:

        def work() -> None:
            for row in load.rows:
                post(connection, f"/{place.name}-records/_doc", json.dumps(row).encode(), _JSON)

        yield work


@contextmanager
def bulk_requests(load: Load, place: Place) -> Iterator[Work]:
    """A bulk request for some thousand documents."""
    with connected(place.url) as connection:

        def work() -> None:
            for some in chunks(load.rows, _BULK):
                said = post(connection, f"/{place.name}-records/_bulk", _bulk_body(some), _JSON)
                if json.loads(said)["errors"]:
                    raise RuntimeError(said[:1000])

        yield work


@contextmanager
def collector(_directory: str) -> Iterator[Server]:
    """Run Splunk's collector, as the tests have it, in a process of its own."""
    with Child(_collect) as child:
        url: str = child.ready()

        def count(name: str) -> int:
            child.connection.send(name)
            found: int = child.connection.recv()
            return found

        yield Server(url, count)


def _collect(connection: Connection) -> None:
    """Be the collector; say how many events of records a source has."""
    counts: Counter[str] = Counter()
    with Hec() as hec:
        connection.send(hec.url)
        while True:
            name = connection.recv()
            indexed, hec.indexed = hec.indexed, []
            counts.update(event["source"] for event in indexed if event["sourcetype"] == _KIND)
            connection.send(counts[name])


@contextmanager
def splunk_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink."""
    os.environ["PHASE_BUS_BENCHMARK"] = TOKEN
    token = Secret("env:PHASE_BUS_BENCHMARK")
    with feed(SplunkSink(token, place.url, source=place.name, max_rows_per_s=0), load, place.name) as work:
        yield work


@contextmanager
def event_requests(load: Load, place: Place) -> Iterator[Work]:
    """A request for each event."""
    with _events_requests(load, place, 1) as work:
        yield work


@contextmanager
def events_requests(load: Load, place: Place) -> Iterator[Work]:
    """A request for a thousand events; it is not waited for acknowledgements."""
    with _events_requests(load, place, 1000) as work:
        yield work


@contextmanager
def _events_requests(load: Load, place: Place, size: int) -> Iterator[Work]:
    headers = {"Authorization": f"Splunk {TOKEN}", "X-Splunk-Request-Channel": str(uuid.uuid4())}
    with connected(place.url) as connection:

        def work() -> None:
            for some in chunks(load.rows, size):
                events = (
                    {
                        "time": row["request_end_ns"] / 1e9,
                        "source": place.name,
                        "sourcetype": _KIND,
                        "event": row,
                    }
                    for row in some
                )
                body = "".join(map(json.dumps, events)).encode()
                post(connection, "/services/collector/event", body, headers)

        yield work


def _bulk_body(rows: Sequence[Row]) -> bytes:
    return "".join(f'{{"create":{{}}}}\n{json.dumps(row)}\n' for row in rows).encode()


@contextmanager
def connected(url: str) -> Iterator[HTTPConnection]:
    """Yield a connection that is kept open."""
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.connect()
        yield connection


def post(connection: HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Make a request; return the answer's body."""
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"{answer.status}: {said[:1000]!r}")
    return said
