"""The sinks, each with its server."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow.parquet as pq
from msgspec import structs

from phase_bus.testing.waiting import wait_until
from tests.sinks.case import Proxy, SinkCase, Truth
from tests.sinks.publish import fails, latency_ns
from tests.support.postgres import PASSWORD, Postgres, running_postgres
from tests.support.processes import ROOT
from tests.support.servers import hec, mongodb
from tests.support.servers.hec import Hec
from tests.support.servers.mongodb import MongoDB
from tests.support.servers.opensearch import OpenSearch
from tests.support.servers.otlp import OtlpReceiver, attributes_of
from tests.support.servers.process import HOST, ServerProcess, free_port, listens, request
from tests.support.servers.prometheus import Prometheus
from tests.support.servers.tcp_faults import TcpProxy

TOKEN = "r1ght-t0ken"
_VARIABLE = "SECRET_OF_THE_SINK"
_PAGE = 10_000


class ReferenceServer(ServerProcess):
    """The server of the tests' own sink; see tests/sinks/reference_server.py."""

    def command(self) -> list[str]:
        program = ROOT / "tests" / "sinks" / "reference_server.py"
        return [sys.executable, str(program), str(self.port), str(self.directory / "rows"), TOKEN]

    def answers(self) -> bool:
        return listens(self.port)


class ReferenceCase(SinkCase):
    """The tests' own sink, or one that is wrong in some way."""

    secret = TOKEN

    def __init__(self, directory: Path, kind: str = "Reference") -> None:
        self.name = kind.lower()
        self.use = f"tests.sinks.reference:{kind}"
        super().__init__(directory)
        self.server: ReferenceServer = ReferenceServer(directory / "server")

    def make_proxy(self) -> Proxy:
        return Proxy(self.server.url, only="/rows")

    def settings(self) -> dict[str, str]:
        return {"url": self.http.url, "token": f"env:{_VARIABLE}"}

    def environment(self, secret: str) -> dict[str, str]:
        return {_VARIABLE: f"Token {secret}"}

    def found(self, run_id: str) -> Counter[str]:
        return Counter(request("GET", f"{self.server.url}/{run_id}")[1])


class ElasticsearchCase(SinkCase):
    """A server in memory, which asks for no credentials: both are the proxy's."""

    use = "elasticsearch"
    survives = False
    secret = TOKEN

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server: OpenSearch = OpenSearch(directory / "server")
        self._looked_s = 0.0
        self._count = (0, "")

    def make_proxy(self) -> Proxy:
        return Proxy(self.server.url, only="/_bulk", authorization=f"ApiKey {TOKEN}")

    def settings(self) -> dict[str, str]:
        return {
            "url": self.http.url,
            "api_key": f"env:{_VARIABLE}",
            "stream": "bench-{kind}",
            "data_stream": "false",
        }

    def environment(self, secret: str) -> dict[str, str]:
        return {_VARIABLE: secret}

    def count(self, run_id: str) -> int:
        """A look makes the server build its index anew: one a second is enough."""
        if self._count[1] != run_id or time.monotonic() > self._looked_s + 1.0:
            self._count = (self._count_now(run_id), run_id)
            self._looked_s = time.monotonic()
        return self._count[0]

    def _count_now(self, run_id: str) -> int:
        self.server.count("bench-records")  # which refreshes it
        status, said = request(
            "GET", f"{self.server.url}/bench-records/_count?q=labels.run_id:%22{run_id}%22"
        )
        return int(said["count"]) if status == 200 else 0

    def found(self, run_id: str) -> Counter[str]:
        return Counter(self._ids(run_id))

    def _ids(self, run_id: str) -> Iterator[str]:
        after: list[object] = []
        while True:
            asked: dict[str, object] = {
                "size": _PAGE,
                "query": {"term": {"labels.run_id": run_id}},
                "_source": ["http.request.id"],
                "sort": [{"event.id": "asc"}],
            }
            page = self.server.ask(
                "POST", "/bench-records/_search", {**asked, "search_after": after} if after else asked
            )["hits"]["hits"]
            for hit in page:
                yield hit["_source"]["http"]["request"]["id"]
            if len(page) < _PAGE:
                return
            after = page[-1]["sort"]

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        found = self.server.documents("bench-events")
        return _verdicts_in(
            each["_source"] for each in found if each["_source"]["labels"]["run_id"] == run_id
        )


def _verdicts_in(documents: Iterable[Any]) -> list[tuple[str, str, bool]]:
    """Return the verdicts among events in the names of the Elastic Common Schema."""
    return [
        (each["rule"]["name"], each["phase_bus"]["state"], each["phase_bus"]["final"])
        for each in documents
        if each["event"]["action"] == "verdict"
    ]


class SplunkCase(SinkCase):
    """A collector by the published rules; it cannot tell doubles, but their keys can."""

    use = "splunk"
    secret = hec.TOKEN

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server: Hec = Hec()

    def make_proxy(self) -> Proxy:
        return Proxy(self.server.url, only="/services/collector/event")

    def settings(self) -> dict[str, str]:
        return {"url": self.http.url, "token": f"env:{_VARIABLE}", "ack_timeout_s": "3"}

    def environment(self, secret: str) -> dict[str, str]:
        return {_VARIABLE: secret}

    def count(self, run_id: str) -> int:
        return len(self._events(run_id, "records"))

    def found(self, run_id: str) -> Counter[str]:
        return Counter(each["http"]["request"]["id"] for each in self._events(run_id, "records"))

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        return _verdicts_in(self._events(run_id, "events"))

    def _events(self, run_id: str, kind: str) -> Collection[Any]:
        return {
            each["fields"]["key"]: each["event"]
            for each in list(self.server.indexed)
            if each["event"]["labels"]["run_id"] == run_id and each["sourcetype"] == f"phase_bus:{kind}"
        }.values()


class MongoCase(SinkCase):
    """A server of MongoDB's protocol."""

    use = "mongodb"
    secret = mongodb.PASSWORD
    writes = b"insert"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server: MongoDB = MongoDB(directory / "server", auth=True)

    def make_proxy(self) -> TcpProxy:
        return TcpProxy(self.server.port)

    def settings(self) -> dict[str, str]:
        assert self.proxy is not None
        options = "authSource=admin&directConnection=true&heartbeatFrequencyMS=500"
        return {
            "url": f"mongodb://{HOST}:{self.proxy.port}/?{options}",
            "user": mongodb.USER,
            "password": f"env:{_VARIABLE}",
            "timeout_s": "5",
        }

    def environment(self, secret: str) -> dict[str, str]:
        return {_VARIABLE: secret}

    def count(self, run_id: str) -> int:
        with self.server.client() as client:
            return client["phase_bus"]["records"].count_documents({"run_id": run_id})

    def found(self, run_id: str) -> Counter[str]:
        with self.server.client() as client:
            documents = client["phase_bus"]["records"].find({"run_id": run_id}, {"fields.x_request_id": 1})
            return Counter(document["fields"]["x_request_id"] for document in documents)

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        with self.server.client() as client:
            documents = list(client["phase_bus"]["verdicts"].find({"run_id": run_id}))
        return [(each["threshold"], each["state"], each["final"]) for each in documents]


class TotalsCase(SinkCase):
    """One whose server has no rows: what it has come to at the end is right, or not."""

    has_rows = False
    has_totals = True

    def judge(self, run_id: str, truth: Truth) -> list[str]:
        numbers = range(truth.records)
        wanted = {
            "requests": truth.records,
            "errors": sum(map(fails, numbers)),
            "latency_ms": sum(latency_ns(number) for number in numbers if not fails(number)) // 1_000_000,
        }
        found = self.found(run_id)
        return [
            f"its {name} are {found[name]}, not {value}"
            for name, value in wanted.items()
            if abs(found[name] - value) > (name == "latency_ms")
        ] + self.judge_verdicts(run_id, truth)

    def judge_verdicts(self, run_id: str, truth: Truth) -> list[str]:
        last = [
            (threshold, state, True) for threshold, state in {t: s for t, s, _ in truth.verdicts}.items()
        ]
        return super().judge_verdicts(run_id, structs.replace(truth, verdicts=last))

    def count(self, run_id: str) -> int:
        return self.found(run_id)["requests"]


class OtlpCase(SinkCase):
    """Every request has a span, by which it is found; and the metrics must come to the same."""

    use = "otlp"
    secret = TOKEN
    has_rows = False  # of an event that is retried, the figures cannot be sent anew

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.receiver = OtlpReceiver({"Authorization": f"Bearer {TOKEN}"})
        self.server = self.receiver
        self._looked_at = 0  # requests with spans
        self._spans: dict[bytes, str] = {}  # the request that each is of

    def make_proxy(self) -> Proxy:
        return Proxy(self.receiver.url, only="/v1/")

    def settings(self) -> dict[str, str]:
        return {"url": self.http.url, "headers": "Authorization=env:OTLP_LOGIN", "trace_requests": "1"}

    def environment(self, secret: str) -> dict[str, str]:
        return {"OTLP_LOGIN": f"Bearer {secret}"}

    def found(self, run_id: str) -> Counter[str]:
        new = self.receiver.traces[self._looked_at :]
        self._looked_at += len(new)
        of_runs = (each for request in new for each in request.resource_spans)
        for span in (span for each in of_runs for scope in each.scope_spans for span in scope.spans):
            self._spans[span.span_id] = attributes_of(span.attributes).get("phase_bus.request.id", "")
        return Counter(row for row in self._spans.values() if row.startswith(f"{run_id}."))

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        said = {}
        for place, record in self.receiver.log_records():
            if place.resource["phase_bus.run_id"] == run_id and record.event_name == "phase_bus.verdict":
                named = attributes_of(record.attributes)
                said[named["log.record.uid"]] = named
        return [
            (
                each["phase_bus.threshold.name"],
                each["phase_bus.threshold.state"],
                each["phase_bus.threshold.final"],
            )
            for each in said.values()
        ]

    def judge(self, run_id: str, truth: Truth) -> list[str]:
        wrong = super().judge(run_id, truth)
        points = self.receiver.points("phase_bus.requests")
        counts = [each.point.as_int for each in points if each.place.resource["phase_bus.run_id"] == run_id]
        if counts[-1:] != [truth.records]:
            wrong.append(f"the metrics have {counts[-1:]} requests of {truth.records}")
        return wrong


class RemoteWriteCase(TotalsCase):
    """A real Prometheus that is written to."""

    use = "remote_write"
    secret = TOKEN

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server: Prometheus = Prometheus(directory / "server")

    def make_proxy(self) -> Proxy:
        return Proxy(self.server.url, only="/api/v1/write", authorization=f"Bearer {TOKEN}")

    def settings(self) -> dict[str, str]:
        return {"url": f"{self.http.url}/api/v1/write", "token": f"env:{_VARIABLE}"}

    def environment(self, secret: str) -> dict[str, str]:
        return {_VARIABLE: secret}

    def found(self, run_id: str) -> Counter[str]:
        return Counter(
            {
                "requests": self._last("phase_bus_requests_total", run_id),
                "errors": self._last("phase_bus_request_errors_total", run_id),
                "latency_ms": self._last_sum_ms(run_id),
            }
        )

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        passed = f'last_over_time(phase_bus_threshold_passed{{run_id="{run_id}"}}[10m])'
        return _verdicts_of(self.server.query(passed))

    def _last(self, series: str, run_id: str) -> int:
        values = self.server.query(f'sum(last_over_time({series}{{run_id="{run_id}"}}[10m]))')
        return int(float(values[0]["value"][1])) if values else 0

    def _last_sum_ms(self, run_id: str) -> int:
        series = f'phase_bus_request_duration_seconds{{run_id="{run_id}"}}'
        found = self.server.samples(series, "10m")
        return round(sum(float(each["histograms"][-1][1]["sum"]) for each in found) * 1000)


def _verdicts_of(series: Iterable[Any]) -> list[tuple[str, str, bool]]:
    """Return what gauges say, the last of each."""
    states = {"0": "failed", "1": "passed"}
    return [(each["metric"]["threshold"], states.get(each["value"][1], "unknown"), True) for each in series]


class PrometheusCase(TotalsCase):
    """A real Prometheus that scrapes: figures of runs that overlap are added up."""

    use = "prometheus"
    has_limits = False
    overlaps = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.server: Prometheus = Prometheus(directory / "server", f"{HOST}:{self.port}")

    def settings(self) -> dict[str, str]:
        return {"port": str(self.port)}

    def found(self, run_id: str) -> Counter[str]:
        named = f'and on() phase_bus_run_info{{run_id="{run_id}"}}'
        found: Counter[str] = Counter()
        for name, expression in (
            ("requests", "sum(phase_bus_requests_total)"),
            ("errors", "sum(phase_bus_request_errors_total)"),
            ("latency_ms", "1000 * histogram_sum(sum(phase_bus_request_duration_seconds))"),
        ):
            for each in self.server.query(f"{expression} {named}"):
                found[name] = round(float(each["value"][1]))
        return found

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        named = f'and on() phase_bus_run_info{{run_id="{run_id}"}}'
        return _verdicts_of(self.server.query(f"phase_bus_threshold_passed {named}"))

    def judge(self, run_id: str, truth: Truth) -> list[str]:
        try:
            wait_until(lambda: not super(PrometheusCase, self).judge(run_id, truth), 5.0)  # the next scrape
        except AssertionError:
            return super().judge(run_id, truth)
        return []


class DatabaseCase(SinkCase):
    """One that writes to a database, which can be asked by SQL."""

    use = "sql"

    def count(self, run_id: str) -> int:
        return int(self._ask(run_id, "count(*)")[0])

    def found(self, run_id: str) -> Counter[str]:
        return Counter(self._ask(run_id, "x_request_id"))

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        query = f"SELECT threshold, state, final FROM phase_bus_verdicts WHERE run_id = '{run_id}'"  # noqa: S608
        return [(threshold, state, bool(final)) for threshold, state, final in self.rows(query)]

    def _ask(self, run_id: str, what: str) -> list[Any]:
        query = f"SELECT {what} FROM phase_bus_records WHERE run_id = '{run_id}'"  # noqa: S608 - ours
        try:
            return [row[0] for row in self.rows(query)]
        except Exception as error:
            if "phase_bus_records" in str(error):  # there is no such table yet
                return [0] if what == "count(*)" else []
            raise

    @abstractmethod
    def rows(self, query: str) -> list[Any]:
        """Return the rows of a query."""


class _PostgresServer:
    """PostgreSQL, started with its first use."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._started: Postgres | None = None

    @property
    def postgres(self) -> Postgres:
        assert self._started is not None
        return self._started

    @property
    def runs(self) -> bool:
        return self.postgres.runs

    @property
    def url(self) -> str:
        return self.postgres.url()

    def start(self) -> None:
        if self._started is None:
            self._started = self._stack.enter_context(running_postgres())
        else:
            self.postgres.start()

    def kill(self) -> None:
        self.postgres.kill()

    def remove(self) -> None:
        self._stack.close()


class PostgresCase(DatabaseCase):
    """A real PostgreSQL."""

    secret = PASSWORD
    writes = b"COMMIT"
    name = "postgresql"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server: _PostgresServer = _PostgresServer()

    def close(self) -> None:
        if self.proxy is not None:
            self.proxy.kill()
        self.server.remove()

    def make_proxy(self) -> TcpProxy:
        return TcpProxy(self.server.postgres.socket)

    def settings(self) -> dict[str, str]:
        assert self.proxy is not None
        return {"url": f"postgresql://tester@{HOST}:{self.proxy.port}/postgres"}

    def environment(self, secret: str) -> dict[str, str]:
        return {"PGPASSWORD": secret}

    def rows(self, query: str) -> list[Any]:
        try:
            with psycopg.connect(self.server.url) as connection:
                return connection.execute(query).fetchall()
        except psycopg.OperationalError as error:
            raise OSError(str(error)) from error


class SqliteCase(DatabaseCase):
    """A file that others may read."""

    name = "sqlite"

    def settings(self) -> dict[str, str]:
        return {"url": f"sqlite:///{self.directory / 'results.db'}"}

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.directory / "results.db", timeout=20.0)) as connection:
            return list(connection.execute(query).fetchall())


class DuckdbCase(DatabaseCase):
    """A file that nobody else can open: a copy is looked at."""

    name = "duckdb"

    def settings(self) -> dict[str, str]:
        return {"url": f"duckdb:///{self.directory / 'results.duckdb'}"}

    def count(self, run_id: str) -> int:
        try:
            return super().count(run_id)
        except Exception:  # it was written to while it was copied
            return 0

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        try:
            return super().verdicts(run_id)
        except Exception:  # the same
            return []

    def rows(self, query: str) -> list[Any]:
        with tempfile.TemporaryDirectory(dir=self.directory) as copies:
            for file in self.directory.glob("results.duckdb*"):
                if file.is_file():
                    shutil.copy(file, copies)
            with duckdb.connect(str(Path(copies) / "results.duckdb")) as connection:
                return list(connection.execute(query).fetchall())


class ParquetCase(SinkCase):
    """A folder of files."""

    use = "parquet"

    def settings(self) -> dict[str, str]:
        return {"path": str(self.directory / "results"), "batch_age_s": "1"}

    def count(self, run_id: str) -> int:
        return sum(pq.read_metadata(file).num_rows for file in self._files(run_id))

    def found(self, run_id: str) -> Counter[str]:
        columns = [pq.read_table(file, columns=["x_request_id"]) for file in self._files(run_id)]
        return Counter(row for table in columns for row in table["x_request_id"].to_pylist())

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]]:
        rows = [row for file in self._files(run_id, "verdicts") for row in pq.read_table(file).to_pylist()]
        return [(row["threshold"], row["state"], row["final"]) for row in rows]

    def _files(self, run_id: str, kind: str = "records") -> list[Path]:
        return sorted((self.directory / "results" / f"run_id={run_id}").glob(f"{kind}-*.parquet"))
