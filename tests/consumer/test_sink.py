"""What every sink is given: batches, patience, and a dead letter for what will never be taken."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from phase_bus import (
    Answer,
    ConfigError,
    DeniedError,
    EventBase,
    Limits,
    Records,
    RefusedRowsError,
    Row,
    RunComplete,
    Sink,
    UnavailableError,
)
from phase_bus.consumer.options import build_consumer, options_of
from phase_bus.errors import OptionError
from phase_bus.testing import MemoryBus, make_run
from phase_bus.testing.waiting import until

Behaviour = Callable[[Sequence[Row]], Answer | None]


class Server:
    """Takes rows, or does what a test tells it first; counts what it has by key."""

    def __init__(self, *faults: Behaviour) -> None:
        self.faults = list(faults)
        self.rows: dict[str, Any] = {}
        self.batches: list[int] = []
        self.doubles = 0

    def take(self, rows: Sequence[Row]) -> Answer | None:
        self.batches.append(len(rows))
        if self.faults:
            return self.faults.pop(0)(rows)
        return self.apply(rows)

    def apply(self, rows: Sequence[Row]) -> Answer | None:
        for row in rows:
            self.doubles += row.key in self.rows
            self.rows[row.key] = row.data
        return None


class Bytes(Sink):
    """Send a row for each record."""

    def __init__(self, server: Any, word: str = "", **limits: Any) -> None:
        super().__init__(**limits)
        self.server: Server = server

    def rows(self, event: EventBase) -> list[bytes]:
        return [b"%d" % n for n in range(event.count)] if isinstance(event, Records) else []

    async def send(self, rows: Sequence[Row]) -> Answer | None:
        return self.server.take(rows)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once: how long they wait is tested where that is the question."""
    monkeypatch.setattr("phase_bus.consumer.patience._back_off", lambda *_: 0.0)


def bus_with(records: int) -> MemoryBus:
    """Return a bus with a run of so many records, of one phase."""
    bus = MemoryBus()
    bus.publish(*make_run(records=records, phases=["profiling"]))
    return bus


def raising(error: Exception) -> Behaviour:
    def behave(_rows: Sequence[Row]) -> Answer | None:
        raise error

    return behave


async def test_every_row_arrives_once_in_batches() -> None:
    server = Server()
    outcome = await bus_with(1000).run_consumer(Bytes(server, batch_rows=64))
    assert len(server.rows) == 1000
    assert max(server.batches) == 64
    assert server.doubles == 0
    assert outcome.receipt.complete


async def test_a_batch_ends_with_its_bytes() -> None:
    server = Server()
    await bus_with(100).run_consumer(Bytes(server, batch_bytes=10))
    assert len(server.rows) == 100
    assert max(server.batches) <= 10


@pytest.mark.parametrize(
    "error", [UnavailableError("away"), DeniedError("no"), OSError("reset"), RuntimeError("a bug")]
)
async def test_what_is_not_taken_is_sent_again(error: Exception) -> None:
    server = Server(*[raising(error)] * 3)
    outcome = await bus_with(100).run_consumer(Bytes(server))
    assert len(server.rows) == 100
    assert outcome.receipt.complete
    assert not outcome.dead_letters


async def test_a_row_that_is_refused_is_found_and_named() -> None:
    """The whole batch is refused for a few rows: their events are dead letters, all others are there."""
    bad = {17, 71}

    class Strict(Server):
        def take(self, rows: Sequence[Row]) -> Answer | None:
            if any(int(row.data) in bad for row in rows):
                raise RefusedRowsError("no such field")
            return self.apply(rows)

    server = Strict()
    bus = bus_with(100)
    outcome = await bus.run_consumer(Bytes(server))
    batches = [event.count for event in bus.events(Records)]
    lost = sum(number in bad for count in batches for number in range(count))
    assert lost
    assert len(server.rows) == 100 - lost
    assert not outcome.receipt.complete
    failed = sum(topic.failed for topic in outcome.receipt.topics.values())
    assert failed == len([count for count in batches if count > min(bad)])


async def test_rows_that_are_refused_one_by_one() -> None:
    def answer(rows: Sequence[Row]) -> Answer:
        server.apply([rows[2]])
        others = [n for n in range(len(rows)) if n > 2]
        return Answer(refused={0: "bad", 1: "worse"}, again=others, reason="busy")

    server = Server(answer)
    async with bus_with(100).consumer(Bytes(server)) as running:
        await running.catch_up()
    assert len(server.rows) == 98
    assert server.doubles == 0
    assert not running.receipt.complete


async def test_nothing_more_is_taken_while_the_server_is_away() -> None:
    """The handler waits, so that the journal keeps what comes."""
    server = Server()
    sink = Bytes(server, batch_rows=10)
    server.faults = [raising(UnavailableError("away"))] * 10_000
    bus = bus_with(1000)
    async with bus.consumer(sink) as running:
        task = asyncio.create_task(running.catch_up())
        await until(lambda: len(server.faults) < 9_900)
        assert not task.done()
        assert len(sink._waiting) + len(sink._sending) < 1000
        server.faults.clear()
        await task
    assert len(server.rows) == 1000


async def test_what_is_young_waits_and_the_checkpoint_with_it() -> None:
    server = Server()
    bus = MemoryBus()
    run = make_run(records=300, phases=["profiling"])
    bus.publish(*run[:-1])
    async with bus.consumer(Bytes(server, batch_age_s=60, batch_rows=10_000), name="s") as running:
        await running.catch_up()
        await running.flush()
        assert not server.rows
        await running.crash()
    async with bus.consumer(Bytes(server, batch_age_s=60, batch_rows=10_000), name="s") as running:
        bus.publish(run[-1])
        await running.catch_up()
        assert len(server.rows) == 300
        assert running.receipt.complete


async def test_what_is_sent_again_after_a_crash_has_the_same_keys() -> None:
    server = Server()
    bus = bus_with(300)
    async with bus.consumer(Bytes(server, batch_rows=50), name="s") as running:
        server.faults = [server.apply] * 3 + [raising(UnavailableError("away"))] * 10_000
        task = asyncio.create_task(running.catch_up())
        await until(lambda: len(server.faults) < 9_900)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await running.crash()
    assert len(server.rows) == 150
    server.faults.clear()
    await bus.run_consumer(Bytes(server, batch_rows=50), name="s")
    assert len(server.rows) == 300


@pytest.mark.parametrize(
    "fault", [DeniedError("wrong token"), ConfigError("no such index"), RefusedRowsError("not like this")]
)
async def test_who_is_not_let_in_does_not_start(fault: Exception) -> None:
    calls: list[str] = []

    class Closed(Bytes):
        async def connect(self) -> None:
            raise fault

        async def stop(self) -> None:
            calls.append("stop")

    with pytest.raises(ConfigError, match=f"^consumer 'Closed': {fault}$"):
        await bus_with(10).run_consumer(Closed(Server()))
    assert calls == ["stop"]  # it lets go of its connections


def test_the_limits_are_options_of_every_sink() -> None:
    assert {"server", "word", *Limits.__annotations__} <= set(options_of(Typed))
    sink = build_consumer(Typed, "t", {"word": "a", "batch_rows": "7"})
    assert isinstance(sink, Typed)
    assert sink._batch_rows == 7
    with pytest.raises(OptionError, match=r"batch_row'.*did you mean 'batch_rows'"):
        build_consumer(Typed, "t", {"batch_row": "7"})
    with pytest.raises(OptionError, match="batch_rows must be at least 1"):
        build_consumer(Typed, "t", {"batch_rows": "0"})


class Typed(Bytes):
    """Hand the limits on."""

    def __init__(self, server: str = "", word: str = "", **limits: Any) -> None:
        super().__init__(server, word, **limits)


async def test_the_rate_is_bounded() -> None:
    server = Server()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    sink = Bytes(server, batch_rows=100, max_rows_per_s=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phase_bus.consumer.sink.asyncio.sleep", sleep)
        await bus_with(1000).run_consumer(sink)
    assert len(server.rows) == 1000
    assert max(waits) > 0.5


async def test_a_server_that_is_away_at_the_start_is_looked_for_before_the_first_batch() -> None:
    """What connect() prepares there is there when rows come."""
    calls: list[str] = []

    class Prepared(Bytes):
        async def connect(self) -> None:
            calls.append("connect")
            if len(calls) < 3:
                raise UnavailableError("away")

        async def send(self, rows: Sequence[Row]) -> Answer | None:
            calls.append("send")
            return await super().send(rows)

    server = Server()
    await bus_with(100).run_consumer(Prepared(server, batch_rows=50))
    assert calls == ["connect", "connect", "connect", "send", "send"]
    assert len(server.rows) == 100


async def test_a_server_is_left_alone_for_as_long_as_it_asks() -> None:
    """Also by later flushes: each of them tries for a while only."""
    asked = 0.3
    times: list[float] = []

    class Busy(Server):
        def take(self, rows: Sequence[Row]) -> Answer | None:
            times.append(time.monotonic())
            if len(times) < 4:
                raise UnavailableError("slow down", asked)
            return super().take(rows)

    server = Busy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phase_bus.consumer.sink._FLUSH_S", 0.5)
        async with bus_with(10).consumer(Bytes(server)) as running:
            await running.catch_up()
            while not await running.flush():
                pass
    assert len(server.rows) == 10
    assert min(b - a for a, b in pairwise(times)) >= asked


async def test_the_last_flush_does_not_wait_for_a_server_that_asks_for_minutes() -> None:
    server = Server(raising(UnavailableError("slow down", 3600.0)))
    began_s = time.monotonic()
    outcome = await bus_with(10).run_consumer(Bytes(server, batch_age_s=0.0))
    assert time.monotonic() - began_s < 3
    assert server.batches == [10]
    assert not outcome.receipt.complete
    assert not outcome.dead_letters


@pytest.mark.parametrize("after_s", [-5.0, 0.0, math.nan])
async def test_times_that_no_server_should_ask_for(after_s: float) -> None:
    server = Server(raising(UnavailableError("later", after_s)))
    outcome = await bus_with(10).run_consumer(Bytes(server))
    assert outcome.receipt.complete


@pytest.mark.parametrize(
    "answer",
    [
        Answer(refused={0: "bad"}, again=[0]),
        Answer(again=[1, 1]),
        Answer(refused={10: "?"}),
        Answer(again=[-1]),
    ],
)
async def test_an_answer_that_makes_no_sense_says_nothing_of_any_row(answer: Answer) -> None:
    server = Server(lambda _rows: answer)
    outcome = await bus_with(10).run_consumer(Bytes(server))
    assert len(server.rows) == 10
    assert server.batches == [10, 10]
    assert outcome.receipt.complete


async def test_a_request_that_is_cancelled_by_what_sends_it() -> None:
    """Its rows go out again; those that wait are not there twice."""

    def cancelled(_rows: Sequence[Row]) -> Answer | None:
        raise asyncio.CancelledError

    server = Server(cancelled)
    outcome = await bus_with(100).run_consumer(Bytes(server, batch_rows=10))
    assert len(server.rows) == 100
    assert server.doubles == 0
    assert outcome.receipt.complete


async def test_the_end_of_a_run_that_makes_no_rows_is_its_end_all_the_same() -> None:
    """No receipt is given for rows that are young and wait."""

    class Fails(Bytes):
        def rows(self, event: EventBase) -> list[bytes]:
            if isinstance(event, RunComplete):
                raise ValueError("no row for that")
            return super().rows(event)

    server = Server()
    async with bus_with(10).consumer(Fails(server, batch_age_s=60)) as running:
        await running.catch_up()
        assert len(server.rows) == 10
    assert not running.receipt.complete
    assert len(running.dead_letters) == 1


async def test_a_row_that_is_larger_than_a_batch_goes_alone() -> None:
    class Large(Bytes):
        def size_of(self, data: Any) -> int:
            return 1 << 30 if data == b"3" else 1

    server = Server()
    outcome = await bus_with(200).run_consumer(Large(server, batch_bytes=50))
    assert outcome.receipt.complete
    assert len(server.rows) == 200
    assert 1 in server.batches


async def test_in_a_group_each_partition_sends_its_own() -> None:
    server = Server()
    bus = MemoryBus()
    for number in range(4):
        bus.publish(*make_run(run_id=f"run-{number}", records=100, phases=["profiling"]))

    outcome = await bus.run_group(Bytes, server=server, batch_age_s=60.0, batch_rows=30)
    assert len(server.rows) == 400
    assert server.doubles == 0
    assert all(receipt.complete for receipt in outcome.receipts.values())
    assert len(outcome.receipts) == 4


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_limits_that_are_none(value: float) -> None:
    for limits in (Limits(batch_age_s=value), Limits(max_rows_per_s=value)):
        with pytest.raises(ValueError, match="must not be negative"):
            Bytes(Server(), **limits)


async def test_rows_that_are_kept_together_count_for_more() -> None:
    """A sink that sends columns has one row for an event's records: its batches are as long as others'."""

    class Columns(Bytes):
        def rows(self, event: EventBase) -> list[bytes]:
            return [bytes(event.count)] if isinstance(event, Records) else []

        def weight_of(self, data: bytes) -> int:
            return len(data)

    bus = MemoryBus()
    bus.publish(*make_run(records=1000, phases=["profiling"]))
    counts = [event.count for event in bus.events(Records)]
    server = Server()
    await bus.run_consumer(Columns(server, batch_rows=2 * max(counts)))
    assert sum(len(data) for data in server.rows.values()) == 1000
    assert 1 < len(server.batches) < len(counts)


async def test_a_question_is_asked_until_it_is_answered() -> None:
    answers: list[Any] = [UnavailableError("away"), OSError("reset"), 7]

    async def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await Bytes(Server()).insist(lambda: ask()) == 7
    answers[:] = [UnavailableError("away")] * 10
    with pytest.raises(UnavailableError, match="away"):
        await Bytes(Server()).insist(ask, within_s=0.0)


async def test_the_next_batch_is_gathered_while_one_is_sent() -> None:
    """The consumer goes on with events while the server works, one batch ahead and no more."""
    arrived, answered = asyncio.Event(), asyncio.Event()

    class Slow(Bytes):
        async def send(self, rows: Sequence[Row]) -> Answer | None:
            arrived.set()
            await answered.wait()
            return self.server.take(rows)

    server = Server()
    sink = Slow(server, batch_rows=64)
    async with bus_with(1000).consumer(sink) as running:
        task = asyncio.create_task(running.catch_up())
        await arrived.wait()
        await until(lambda: sink._waiting_rows >= 64)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        assert len(sink._sending) == 64
        assert sink._waiting_rows < 128
        answered.set()
        await task
    assert len(server.rows) == 1000
    assert running.receipt.complete


async def test_blocking_work_is_over_before_its_connection_goes() -> None:
    done: list[str] = []
    began, go_on = threading.Event(), threading.Event()

    class Blocking(Bytes):
        async def send(self, rows: Sequence[Row]) -> Answer | None:
            return await self.in_thread(self.work)

        def work(self) -> None:
            began.set()
            go_on.wait(30)
            done.append("work")

    sink = Blocking(Server(), batch_rows=10)
    async with bus_with(10).consumer(sink) as running:
        await running.catch_up()
        sink._launch()
        await asyncio.to_thread(began.wait)
        abandoning = asyncio.create_task(sink.abandon())
        for _ in range(20):  # turns, in which it would come to its end if it did not wait
            await asyncio.sleep(0)
        assert not abandoning.done()
        go_on.set()
        await abandoning
        assert done == ["work"]
        await running.crash()
