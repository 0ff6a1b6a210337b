"""The ``dashboard`` page's server: what it tells viewers, whom it tells anything, and its bounds."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

from phase_bus.consumer.options import build_consumer
from phase_bus.core.records import RecordBatch
from phase_bus.core.secret import Secret
from phase_bus.errors import ConfigError, OptionError
from phase_bus.events import (
    Drop,
    PhaseProgress,
    Receipt,
    Records,
    RunStart,
    Verdict,
)
from phase_bus.plugins.registry import Registry
from phase_bus.testing import MemoryBus, make_event, make_records, make_run, make_stats
from phase_bus.testing.waiting import until
from phase_bus_consumers import dashboard_feeds
from phase_bus_consumers.dashboard import Dashboard
from phase_bus_consumers.dashboard_feeds import Feed, Viewer
from phase_bus_consumers.dashboard_statistics import Statistics
from tests.support.journals import HOSTILE, Made, Phase

TOKEN = "a-token-of-some-length"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the page change as soon as anything does."""
    monkeypatch.setattr("phase_bus_consumers.dashboard._TICK_S", 0.02)


class Page:
    """What a viewer has been told, as the page in a browser keeps it."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.run: dict[str, Any] = {}
        self.statistics: dict[str, Any] = {}
        self.columns: dict[str, dict[str, list[float | None]]] = {}
        self.bus: dict[str, Any] = {}
        self.told: list[tuple[str, int]] = []  # the kinds of the events, and their size

    def take(self, kind: str, text: str) -> None:
        self.told.append((kind, len(text)))
        news = json.loads(text)
        if kind == "runs":
            self.runs = {} if news["all"] else self.runs
            self.runs |= {run["id"]: run for run in news["runs"]}
            self.runs = {run_id: run for run_id, run in self.runs.items() if run_id not in news["gone"]}
        elif kind == "run":
            self.run[news["id"]] = news
        elif kind == "bus":
            self.bus = news
        elif kind == "statistics":
            self.statistics[news["id"]] = news
            if "windows" in news:
                before = self.columns.get(news["id"], {})
                first = news["windows"]["from"]
                self.columns[news["id"]] = {
                    name: [*before.get(name, [])[:first], *values]
                    for name, values in news["windows"]["columns"].items()
                }


@asynccontextmanager
async def viewer(url: str, *runs: str) -> AsyncIterator[Page]:
    """Follow a dashboard as long as inside."""
    page = Page()

    async def read() -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 22) as session,
            session.get(f"{url}events", params=[("run", run) for run in runs]) as answer,
        ):
            assert answer.status == 200
            kind = ""
            async for line in answer.content:
                name, _, value = line.decode().strip().partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    page.take(kind, value)

    reading = asyncio.create_task(read())
    try:
        yield page
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def asked(
    url: str, path: str = "", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body of an answer; the Host header can be any."""
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.putrequest(method, f"/{path}", skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


async def ask(*arguments: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return await asyncio.to_thread(asked, *arguments, **headers)


def latencies_ms(events: list[Any], phase: str) -> np.ndarray[Any, Any]:
    batches = [RecordBatch(e) for e in events if isinstance(e, Records) and e.phase.name == phase]
    return np.concatenate([batch.values("request_latency") for batch in batches]) / 1e6


async def test_a_viewer_sees_a_run_from_its_start_to_its_end(no_leaks: None) -> None:
    """Numbers are those of the records; what is told bit by bit comes to what a late viewer is told."""
    events = make_run(records={"warmup": 50, "profiling": 3000}, error_rate=0.05)
    bus = MemoryBus()
    async with bus.consumer(Dashboard(port=0)) as running:
        url = running.consumer.url
        async with viewer(url, "run-1") as page:
            await until(lambda: bool(page.told))
            for first in range(0, len(events), 10):
                bus.publish(*events[first : first + 10])
                await running.catch_up()
                await asyncio.sleep(0)
            await until(lambda: page.runs.get("run-1", {}).get("status") == "completed")
            await until(lambda: page.statistics.get("run-1", {}).get("records") == 3050)
            await until(lambda: page.run["run-1"]["status"] == "completed")
            numbers = {phase["name"]: phase for phase in page.statistics["run-1"]["numbers"]}
            found = numbers["profiling"]
            assert found["requests"] == 3000
            failed = sum(len(e.errors) for e in events if isinstance(e, Records))
            assert numbers["all phases"]["failed"] == failed
            assert sum(e["count"] for e in page.statistics["run-1"]["errors"]) == failed
            values = latencies_ms(events, "profiling")
            for name, quantile in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
                assert found["request_latency"][name] == pytest.approx(
                    np.quantile(values, quantile), rel=0.01
                )
            (done,) = {phase["state"] for phase in page.run["run-1"]["phases"]}
            assert done == "done"
            columns = page.columns["run-1"]
            assert sum(v or 0 for v in columns["throughput"]) == 3050 - failed
            async with viewer(url, "run-1") as late:
                await until(lambda: "run-1" in late.columns)
                assert late.columns == page.columns
                assert late.runs == page.runs


async def test_changes_are_small() -> None:
    """Of a long run a viewer is told what is new, not all of it again."""
    made = Made("r", [Phase("profiling", 500, 5000)], status=None)
    events = list(made.events())
    last = [event for event in events if isinstance(event, Records)][-1]
    bus = MemoryBus()
    async with bus.consumer(Dashboard(port=0)) as running:
        bus.publish(*(event for event in events if event is not last))
        await running.catch_up()
        async with viewer(running.consumer.url, "r") as page:
            await until(lambda: page.statistics.get("r", {}).get("records") == 5000 - last.count)
            (whole,) = [size for kind, size in page.told if kind == "statistics"]
            bus.publish(last)
            await running.catch_up()
            await until(lambda: page.statistics["r"]["records"] == 5000)
            change = [size for kind, size in page.told if kind == "statistics"][-1]
            assert change < whole / 2
            assert len(page.columns["r"]["throughput"]) >= 499


async def test_many_runs_are_few_to_a_viewer() -> None:
    """The list is sent once, then what changes; runs beyond those to keep are gone."""
    bus = MemoryBus()
    async with bus.consumer(Dashboard(port=0, keep_runs=10)) as running:
        for number in range(12):
            bus.publish(*make_run(records=5, run_id=f"r{number}"))
        await running.catch_up()
        async with viewer(running.consumer.url) as page:
            await until(lambda: len(page.runs) == 10)
            assert {"r2", "r11"} <= set(page.runs)
            told = len(page.told)
            bus.publish(make_event(RunStart, run_id="new"), make_event(Drop, run_id="never-begun"))
            await running.catch_up()
            await until(lambda: "new" in page.runs)
            assert page.runs["new"]["status"] == "running"
            first = next(size for kind, size in page.told[:told] if kind == "runs")
            assert page.told[-1][1] < first / 4
            bus.publish(make_event(Receipt, run_id="r0"), make_records(5, run_id="r0"))  # let go of
            await running.catch_up()
            assert len(running.consumer._runs) == 10
            bus.publish(*(make_event(RunStart, run_id=f"open-{number}") for number in range(150)))
            await running.catch_up()
            assert len(running.consumer._runs) <= 10 + 100
            assert "open-149" in running.consumer._runs


def verdict(state: Any, ts_ns: int = 1, **values: Any) -> Verdict:
    return Verdict(
        run_id="run-1", ts_ns=ts_ns, producer="thresholds", threshold="p99 < 500 ms", state=state, **values
    )


async def test_thresholds_and_receipts_are_told() -> None:
    start, *others, end = make_run(records=20)
    bus = MemoryBus()
    async with (
        bus.consumer(Dashboard(port=0)) as running,
        viewer(running.consumer.url, "run-1") as page,
    ):
        bus.publish(start, verdict("unknown"), *others)
        bus.publish(verdict("failed", 2, value=612e6, limit=500e6, unit="ns", samples=20, abort=True))
        await running.catch_up()
        await until(lambda: page.runs.get("run-1", {}).get("thresholds", {}).get("failed") == 1)
        (told,) = page.run["run-1"]["judged"]
        assert (told["state"], told["value"], told["limit"]) == ("failed", "612.00 ms", "500.00 ms")
        assert told["changes"] == [[1, "unknown"], [2, "failed"]]
        assert told["abort"]
        bus.publish(end, verdict("failed", 3, final=True))
        await running.catch_up()
        await until(lambda: page.run["run-1"]["judged"][0]["final"])
        assert page.run["run-1"]["judged"][0]["changes"] == told["changes"]
        await until(lambda: page.run["run-1"]["receipts"])
        (receipt,) = page.run["run-1"]["receipts"]
        assert receipt["consumer"] == "Dashboard"


async def test_it_goes_on_where_it_was(no_leaks: None) -> None:
    """After a restart, and after a crash, with what the bus has told before."""
    events = make_run(records=400, error_rate=0.1)
    middle = len(events) // 2
    bus = MemoryBus()
    bus.publish(*make_run(records=10, run_id="past"), *events[:middle])
    async with bus.consumer(Dashboard(port=0), name="d") as running:
        await running.catch_up()
        bus.publish(verdict("passed"))
        await running.catch_up()
    bus.publish(*events[middle:-1])
    async with bus.consumer(Dashboard(port=0), name="d") as running:
        await running.catch_up()
        await running.crash()
        await running.consumer.stop()  # what the end of its process does: it writes nothing
    bus.publish(events[-1])
    async with bus.consumer(Dashboard(port=0), name="d") as running:
        await running.catch_up()
        async with viewer(running.consumer.url, "run-1", "past") as page:
            await until(lambda: page.statistics.get("run-1", {}).get("records") == 800)
            assert page.runs["run-1"]["status"] == "completed"
            assert page.run["run-1"]["judged"][0]["state"] == "passed"
            assert page.runs["past"]["status"] == "completed"
            await until(lambda: "no journal" in page.statistics.get("past", {}).get("problem", ""))


async def test_a_group_counts_and_its_leader_shows() -> None:
    bus = MemoryBus()
    bus.publish(*make_run(records=500))
    outcome = await bus.run_group(Dashboard, name="g", port=0)
    told = outcome.consumer._runs["run-1"].statistics
    assert told is not None
    assert told.whole()["records"] == 1000
    assert all(not part._tasks for part in outcome.partitions.values())


async def test_hostile_names_stay_text() -> None:
    """Nothing of an event ends a line of the stream, and what is too long is cut."""
    bus = MemoryBus()
    bus.publish(*HOSTILE.events())
    run_id = HOSTILE.run_id
    hostile = "x\n\ndata: {}\r\u2028\u202e" + "y" * 5000
    bus.publish(
        Verdict(
            run_id=run_id, producer=hostile, threshold=hostile, state="failed", reason=hostile, unit=hostile
        ),
        make_event(Receipt, run_id=run_id, consumer=hostile),
    )
    async with bus.consumer(Dashboard(port=0)) as running:
        await running.catch_up()
        async with viewer(running.consumer.url, run_id) as page:
            await until(lambda: run_id in page.run and run_id in page.statistics)
            (judged,) = page.run[run_id]["judged"]
            assert len(judged["threshold"]) <= 300
            assert not set("\n\r\u2028\u202e") & set(judged["threshold"] + judged["reason"])
            assert page.run[run_id]["reason"] == HOSTILE.reason
            assert page.statistics[run_id]["numbers"][0]["name"] == HOSTILE.phases[0].name


async def test_what_is_kept_of_a_run_is_bounded() -> None:
    bus = MemoryBus()
    bus.publish(make_event(RunStart))
    for number in range(300):
        event = msgspec.structs.replace(verdict("passed"), threshold=f"t{number}")
        bus.publish(event, make_event(Receipt, consumer=f"c{number}"))
        bus.publish(make_event(PhaseProgress, phase=f"p{number}", stats=make_stats()))
        bus.publish(verdict("failed" if number % 2 else "passed", number))
    async with bus.consumer(Dashboard(port=0)) as running:
        await running.catch_up()
        document = running.consumer._runs["run-1"].run.document(0)
        assert (len(document["judged"]), len(document["receipts"]), len(document["phases"])) == (
            100,
            50,
            100,
        )
        assert max(len(each["changes"]) for each in document["judged"]) == 20
        assert len(running.consumer.state()) < 200_000


async def test_nobody_looks_and_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty viewers cost one computation; none cost none."""
    made: list[int] = []

    class Counted(Statistics):
        def __init__(self, summary: Mapping[str, Any]) -> None:
            made.append(1)
            super().__init__(summary)

    class Looked(set[Viewer]):
        times = 0

        def __len__(self) -> int:
            self.times += 1
            return super().__len__()

    monkeypatch.setattr("phase_bus_consumers.dashboard._TICK_S", 0.01)
    monkeypatch.setattr("phase_bus_consumers.dashboard.Statistics", Counted)
    start, *others, _ = make_run(records=100)
    bus = MemoryBus()
    async with bus.consumer(Dashboard(port=0)) as running:
        bus.publish(start, *others)
        await running.catch_up()
        looked = running.consumer._server.viewers = Looked()  # type: ignore[union-attr]
        await until(lambda: looked.times > 3)
        assert made == []
        contexts = [viewer(running.consumer.url, "run-1") for _ in range(20)]
        pages = [await context.__aenter__() for context in contexts]
        await until(lambda: all("run-1" in page.statistics for page in pages))
        assert len(made) == 1
        for context in contexts:
            await context.__aexit__(None, None, None)
        await until(lambda: not running.consumer._server.viewers)  # type: ignore[union-attr]


async def test_a_slow_viewer_skips_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent all of the last version when it can take more, and let go of if it never can."""
    feed, sent, gate = Feed("f"), list[bytes](), asyncio.Event()

    async def write(data: bytes) -> None:
        sent.append(data)
        await gate.wait()

    slow = Viewer(())
    feed.put(lambda: {"all": 1})
    following = asyncio.create_task(slow.follow(lambda _: [feed], write))
    await until(lambda: len(sent) == 1)
    for number in range(2, 1000):
        feed.put(lambda number=number: {"all": number}, {"change": number})  # type: ignore[misc]
        slow.tell()
    gate.set()
    await until(lambda: len(sent) == 2)
    assert json.loads(sent[1].partition(b"data: ")[2]) == {"all": 999}
    feed.put(lambda: {"all": 1000}, {"change": 1000})
    slow.tell()
    await until(lambda: len(sent) == 3)
    assert json.loads(sent[2].partition(b"data: ")[2]) == {"change": 1000}
    monkeypatch.setattr(dashboard_feeds, "_WRITE_S", 0.05)
    gate.clear()
    feed.put(lambda: {})
    slow.tell()
    with pytest.raises(TimeoutError):
        await following


async def test_a_viewer_that_reads_nothing_is_let_go_of(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """Its connection is cut; others and the consumer go on."""
    monkeypatch.setattr(dashboard_feeds, "_WRITE_S", 0.3)
    bus = MemoryBus()
    bus.publish(make_event(RunStart))
    async with bus.consumer(Dashboard(port=0)) as running:
        await running.catch_up()
        consumer = running.consumer
        server = consumer._server
        assert server is not None
        host, _, port = consumer.url.removeprefix("http://").rstrip("/").rpartition(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            await until(lambda: len(server.viewers) == 1)

            def flood() -> bool:
                consumer._list.put(lambda: "x" * 1_000_000)
                server.tell()
                return not server.viewers

            await until(flood)
        async with viewer(consumer.url) as page:
            await until(lambda: bool(page.told))


# ---- who may look ----


async def test_the_page_runs_nothing_but_its_own(no_leaks: None) -> None:
    """All of it comes from here, under a strict policy."""
    async with MemoryBus().consumer(Dashboard(port=0)) as running:
        url = running.consumer.url
        for name in ("", "page.css", "page.js", "charts.js", "uPlot.min.css", "uPlot.iife.min.js"):
            status, headers, body = await ask(url, name)
            assert (status, bool(body)) == (200, True)
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert b"http://" not in body.replace(b"http://www.w3.org", b"")
        status, headers, _ = await ask(url, "events/../registry.yaml")
        assert status == 404
        assert "content-security-policy" in (await ask(url, "session"))[1]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:9470", 200),
        (socket.gethostname(), 200),
        ("bench.example:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
async def test_names_that_lead_here_are_not_trusted(host: str, status: int) -> None:
    """A page of somebody else's, whose name is made to lead here, is told nothing (DNS rebinding)."""
    async with MemoryBus().consumer(Dashboard(port=0, names=["bench.example"])) as running:
        found, _, body = await ask(running.consumer.url, "", Host=host)
        assert found == status
        assert (b"<html" in body) == (status == 200)


async def test_a_token_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there is the page without any data; with it there is a cookie, also after a restart."""
    monkeypatch.setenv("DASH", TOKEN)
    cookie = ""
    for _ in range(2):
        async with MemoryBus().consumer(Dashboard(port=0, token=Secret("env:DASH"))) as running:
            url = running.consumer.url
            assert (await ask(url))[0] == 200
            for path in ("events", "session", "report?run=x"):
                assert (await ask(url, path))[0] == 401
                assert (await ask(url, path, Cookie=f"phase_bus_dashboard_{port_of(url)}={TOKEN}"))[
                    0
                ] == 401
            for given in ("", TOKEN[:-1], TOKEN + "x", "ünïcode"):
                refused = await ask(
                    url, "login", "POST", Authorization=f"Bearer {given}".encode().decode("latin-1")
                )
                assert refused[0] == 401
                assert "set-cookie" not in refused[1]
            status, headers, _ = await ask(url, "login", "POST", Authorization=f"Bearer {TOKEN}")
            assert status == 204
            given_cookie = headers["set-cookie"]
            assert "HttpOnly" in given_cookie
            assert "SameSite=Strict" in given_cookie
            assert TOKEN not in given_cookie
            value = given_cookie.partition(";")[0].partition("=")[2]
            assert cookie in ("", value)
            cookie = value
            assert (await ask(url, "session", Cookie=f"phase_bus_dashboard_{port_of(url)}={value}"))[
                0
            ] == 204


async def test_what_is_no_request_is_refused_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can connect sends what he likes, and the terminal of the benchmark is not his."""
    monkeypatch.setenv("DASH", TOKEN)
    async with MemoryBus().consumer(Dashboard(port=0, token=Secret("env:DASH"))) as running:
        url = running.consumer.url
        cookie = b"Cookie: phase_bus_dashboard_" + port_of(url).encode()
        for sent, status in (
            (b"POST /login HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe", 401),
            (b"GET /session HTTP/1.1\r\nHost: localhost\r\n" + cookie + b"=\xff\xfe", 401),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example", 400),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000, 400),
            (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port_of(url)))
            writer.write(sent + b"\r\n\r\n")
            async with asyncio.timeout(10):
                answer = await reader.readline()
            assert int(answer.split()[1]) == status
            writer.close()
            await writer.wait_closed()
    assert "Error handling request" not in caplog.text


def port_of(url: str) -> str:
    return url.rstrip("/").rpartition(":")[2]


WRONG = [
    ({"host": "0.0.0.0"}, r"give token=env:NAME"),
    ({"host": "bench.example"}, r"give token=env:NAME"),
    ({"port": "70000"}, "0 to 65535"),
    ({"keep_runs": "0"}, "at least 1"),
    ({"token": TOKEN}, "not given in clear"),
]


@pytest.mark.parametrize(("values", "said"), WRONG)
def test_options_that_do_not_fit(values: dict[str, Any], said: str) -> None:
    cls = Registry.load().class_of("consumer", "dashboard")
    with pytest.raises(OptionError, match=said) as caught:
        build_consumer(cls, "d", values)
    assert TOKEN not in str(caught.value)


async def test_what_keeps_it_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASH", "short")
    with pytest.raises(ConfigError, match="less than 16 characters"):
        await MemoryBus().run_consumer(Dashboard(port=0, token=Secret("env:DASH")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: it is taken; give another port"):
            await MemoryBus().run_consumer(Dashboard(port=port))


async def test_no_more_viewers_than_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phase_bus_consumers.dashboard_server.MAX_VIEWERS", 1)
    async with MemoryBus().consumer(Dashboard(port=0)) as running:
        async with viewer(running.consumer.url) as page:
            await until(lambda: bool(page.told))
            assert (await ask(running.consumer.url, "events"))[0] == 503
        await until(lambda: not running.consumer._server.viewers)  # type: ignore[union-attr]
        assert (await ask(running.consumer.url, "report?run=x"))[0] == 503  # there is no journal
