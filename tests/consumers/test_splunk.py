"""The ``splunk`` sink, against a collector that follows the published rules, and with faults."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
from aiohttp import web

from phase_bus import ConfigError, EventBase, OptionError, Records, RunStart, Secret
from phase_bus.consumer.options import build_consumer
from phase_bus.testing import MemoryBus, make_run
from phase_bus.testing.memory import MemoryRun
from phase_bus.testing.waiting import until
from phase_bus_consumers.splunk import SplunkSink
from tests.support.servers.app import App
from tests.support.servers.faults import CUT, LOSE_ANSWER, FaultProxy, answer
from tests.support.servers.hec import TOKEN, Hec
from tests.support.workplace import Workplace

EVENT, ACK = "/services/collector/event", "/services/collector/ack"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once; the token is in the environment."""
    monkeypatch.setattr("phase_bus.consumer.patience._back_off", lambda *_: 0.0)
    monkeypatch.setenv("HEC_TOKEN", TOKEN)


def sink(url: str, **options: Any) -> SplunkSink:
    return SplunkSink(**{"url": url, "token": Secret("env:HEC_TOKEN"), "what": "records", **options})


def consumer(url: str, *events: EventBase, **options: Any) -> MemoryRun[SplunkSink]:
    bus = MemoryBus()
    bus.publish(*events)
    return bus.consumer(sink(url, **options), name="splunk")


async def fill(url: str, *events: EventBase, **options: Any) -> MemoryRun[SplunkSink]:
    """Send events; return the run."""
    async with consumer(url, *events, **options) as running:
        await running.catch_up()
    return running


def run_of(records: int) -> tuple[EventBase, ...]:
    return tuple(make_run(records=records, phases=["profiling"], run_id="r"))


def keys(hec: Hec) -> Counter[str]:
    return Counter(event["fields"]["key"] for event in hec.indexed)


class Scripted(App):
    """A collector whose answers to events a test gives: a code, with more of the answer; then success."""

    def __init__(self, *answers: tuple[int, dict[str, Any]]) -> None:
        super().__init__({f"POST {EVENT}": self._on_event, f"POST {ACK}": self._on_ack})
        self.answers = list(answers)
        self.got: list[list[str]] = []
        self.acks: list[int] = []
        self.lost: set[int] = set()

    async def _on_event(self, request: web.Request) -> web.Response:
        self.got.append([event["fields"]["key"] for event in _objects(await request.text())])
        status, said = self.answers.pop(0) if self.answers else (200, {})
        default = {"text": "Success", "code": 0, "ackId": len(self.got)}
        return web.json_response(said or default, status=status)

    async def _on_ack(self, request: web.Request) -> web.Response:
        self.acks = (await request.json())["acks"]
        return web.json_response({"acks": {str(each): each not in self.lost for each in self.acks}})


def _objects(text: str) -> Iterator[Any]:
    at, decoder = 0, json.JSONDecoder()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value


# ---- what arrives ----


async def test_every_record_and_event_is_indexed_once(hec: Hec, no_leaks: None) -> None:
    run = make_run(records=500)
    running = await fill(hec.url, *run, what="all", request_bytes=20_000)
    assert running.receipt.complete
    kinds = Counter(event["sourcetype"] for event in hec.indexed)
    assert kinds["phase_bus:records"] == sum(e.count for e in run if isinstance(e, Records)) == 1000
    receipt = 1
    assert kinds["phase_bus:events"] == sum(not isinstance(e, Records) for e in run) + receipt
    assert set(keys(hec).values()) == {1}


async def test_what_an_event_says(hec: Hec) -> None:
    hec.indexes = ("bench",)
    options = {"index": "bench", "source": "s", "sourcetype": "t:{kind}", "host": "h", "service": "llm"}
    await fill(hec.url, RunStart(run_id="r", ts_ns=1_769_860_810_250_000_001), what="events", **options)
    (event,) = hec.indexed
    document = event.pop("event")
    assert list(event.pop("fields")) == ["key"]
    assert event == {
        "time": 1769860810.25,
        "host": "h",
        "source": "s",
        "sourcetype": "t:events",
        "index": "bench",
    }
    assert document["event"]["action"] == "run_start"
    assert document["service"] == {"name": "llm"}
    assert document["@timestamp"] == "2026-01-31T12:00:10.250000001Z"


async def test_odd_values(hec: Hec) -> None:
    start = RunStart(run_id="r", label="a\0\u2028\x1b[1m" + "x" * 100_000, variation={"": float("nan")})
    running = await fill(hec.url, start, what="events", request_bytes=100)
    assert not running.dead_letters
    assert len(hec.indexed) == 1


# ---- acknowledgements ----


async def test_a_batch_waits_until_it_is_indexed(hec: Hec) -> None:
    """The checkpoint moves with the acknowledgement, not with the acceptance."""
    hec.index_after_s = 0.3
    async with consumer(hec.url, *run_of(100)) as running:
        await running.catch_up()
        assert await running.flush()
        assert sum(keys(hec).values()) == 100
    assert running.receipt.complete


async def test_what_is_not_acknowledged_is_sent_again() -> None:
    """The collector forgets what it has not indexed when it is killed; the key tells what came twice."""
    with Hec(index_after_s=30.0) as hec:
        async with consumer(hec.url, *run_of(100), ack_timeout_s=0.5) as running:
            task = asyncio.create_task(running.catch_up())
            await until(lambda: hec.accepted == 100)
            hec.kill()
            hec.index_after_s = 0.0
            hec.start()
            await task
        assert running.receipt.complete
        assert sum(keys(hec).values()) == 100
        assert hec.accepted == 200


async def test_only_the_requests_that_were_lost_are_sent_again() -> None:
    with Scripted() as server:
        server.lost = {2}
        run = run_of(40)
        async with consumer(server.url, *run, ack_timeout_s=0.3, request_bytes=5000) as running:
            await running.catch_up()
        assert running.receipt.complete
        requests = [len(each) for each in server.got]
        twice = [key for key, count in Counter(chain.from_iterable(server.got)).items() if count > 1]
    assert len(requests) > 3
    assert twice == server.got[1]


async def test_an_acknowledgement_number_of_another_life_is_not_ours() -> None:
    """Two requests of a batch with one number: the collector has begun to count anew between them."""
    again = {"text": "Success", "code": 0, "ackId": 7}
    with Scripted((200, again), (200, again)) as server:
        running = await fill(server.url, *run_of(14), request_bytes=5000)
        assert running.receipt.complete
        first, _, *others = server.got
        assert [key for keys_ in others for key in keys_][-len(first) :] == first


async def test_a_token_without_acknowledgement(hec: Hec, capsys: pytest.CaptureFixture[str]) -> None:
    hec.ack = False
    running = await fill(hec.url, *run_of(100))
    assert running.receipt.complete
    await until(lambda: sum(keys(hec).values()) == 100)
    assert capsys.readouterr().out.count("no indexer acknowledgement") == 1


async def test_acknowledgement_that_is_not_wanted(hec: Hec) -> None:
    running = await fill(hec.url, *run_of(100), ack=False)
    assert running.receipt.complete
    assert hec.accepted == 100


async def test_acknowledgement_that_is_turned_off_meanwhile(hec: Hec) -> None:
    async with consumer(hec.url, *run_of(100)) as running:
        hec.ack = False
        await running.catch_up()
    assert running.receipt.complete
    await until(lambda: sum(keys(hec).values()) == 100)


# ---- what goes wrong ----


async def test_faults(hec: Hec, fault_proxy: Callable[..., FaultProxy]) -> None:
    """Nothing is lost; doubles are what was taken though the answer was lost, and have the same key."""
    proxy = fault_proxy(hec.url, only=EVENT)
    async with consumer(proxy.url, *run_of(500), batch_rows=50) as running:
        proxy.next(LOSE_ANSWER, CUT, answer(429), answer(503, '{"text":"Server is busy","code":9}'))
        await running.catch_up()
    assert running.receipt.complete
    assert len(keys(hec)) == 500
    assert 0 < sum(keys(hec).values()) - 500 <= 100


async def test_lost_answers_about_acknowledgements(
    hec: Hec, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(hec.url, only=ACK)
    async with consumer(proxy.url, *run_of(100), ack_timeout_s=0.5) as running:
        proxy.next(CUT, answer(503), LOSE_ANSWER, LOSE_ANSWER, LOSE_ANSWER)
        await running.catch_up()
    assert running.receipt.complete
    assert len(keys(hec)) == 100


@pytest.mark.parametrize("keeps", [False, True])
async def test_an_event_that_is_refused_is_named(hec: Hec, keeps: bool) -> None:
    """All others are there; those before it perhaps twice, since no rule says whether they were kept."""
    bad: set[str] = set()
    check = hec._check

    def strict(event: Any, number: int) -> None:
        key = event["fields"]["key"]
        if key in bad or (not bad and number == 3):
            bad.add(key)
            event = {**event, "event": ""}
        check(event, number)

    hec._check = strict  # type: ignore[method-assign]
    hec.keeps_before_bad = keeps
    running = await fill(hec.url, *run_of(30))
    assert not running.receipt.complete
    (letter,) = running.dead_letters
    assert "row 3: Event field cannot be blank (code 13)" in letter.error
    assert len(keys(hec)) == 29
    assert not bad & keys(hec).keys()
    assert max(keys(hec).values()) == (2 if keeps else 1)


@pytest.mark.parametrize("code", [7, 10, 11])
async def test_what_all_events_have_in_common_refuses_none(code: int) -> None:
    """A wrong index or channel is put right at the server, and everything arrives."""
    with Scripted((400, {"text": "wrong", "code": code, "invalid-event-number": 0})) as server:
        running = await fill(server.url, *run_of(20))
        assert running.receipt.complete
        assert server.got[0] == server.got[1]


async def test_a_request_that_is_too_large_is_halved() -> None:
    with Scripted((413, {"text": "too large"}), (413, {"text": "too large"})) as server:
        running = await fill(server.url, *run_of(20))
        assert running.receipt.complete
        assert [len(each) for each in server.got] == [20, 10, 5, 5, 10]


async def test_what_is_no_answer_is_not_taken_for_one() -> None:
    class Portal(Scripted):
        async def _on_event(self, request: web.Request) -> web.Response:
            if not self.got:
                self.got.append([])
                return web.Response(text="<html>log in</html>")
            return await super()._on_event(request)

    with Portal() as server:
        running = await fill(server.url, *run_of(20))
        assert running.receipt.complete
        assert [len(each) for each in server.got] == [0, 20]


async def test_what_answers_in_json_is_not_always_a_collector() -> None:
    class Other(Scripted):
        async def _on_event(self, request: web.Request) -> web.Response:
            if not self.got:
                self.got.append([])
                return web.json_response({"ok": True})
            return await super()._on_event(request)

    with Other() as server:
        running = await fill(server.url, *run_of(20))
        assert running.receipt.complete
        assert [len(each) for each in server.got] == [0, 20]


# ---- who may ----


@pytest.mark.parametrize("ack", [True, False])
async def test_a_wrong_token(hec: Hec, ack: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEC_TOKEN", "wrong-7f3a")
    with pytest.raises(ConfigError) as caught:
        await fill(hec.url, *run_of(10), ack=ack)
    assert str(caught.value).endswith("answers 403: Invalid token (code 4)")
    assert "7f3a" not in str(caught.value)
    monkeypatch.setenv("HEC_TOKEN", TOKEN)
    hec.token_disabled = True
    with pytest.raises(ConfigError, match="Token disabled"):
        await fill(hec.url, *run_of(10), ack=ack)


@pytest.mark.slow
def test_a_wrong_token_is_one_line(workplace: Workplace, hec: Hec) -> None:
    """The command ends with 2; the token is in no output or file."""
    with_ = f"splunk:url={hec.url},token=env:HEC_TOKEN"
    done = workplace.run(
        "exec",
        "--with",
        with_,
        "--",
        sys.executable,
        "-m",
        "phase_bus",
        "simulate",
        "-n",
        "100",
        HEC_TOKEN="wrong-7f3a",
    )
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if "Invalid token" in line]) == 1
    for file in workplace.directory.rglob("*"):
        assert not file.is_file() or b"wrong-7f3a" not in file.read_bytes()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "token.*is required"),
        ({"token": "s3cret-7f3a"}, "not given in clear"),
        ({"token": "env:X", "ack_timeout_s": "0"}, "must be more than 0"),
        ({"token": "env:X", "request_bytes": "0"}, "must be more than 0"),
        ({"token": "env:X", "url": "127.0.0.1:8088"}, "begins with http"),
    ],
)
def test_options(values: dict[str, str], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        build_consumer(SplunkSink, "splunk", values)
