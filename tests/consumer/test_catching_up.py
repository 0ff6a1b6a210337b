"""Joining late, being overrun, and where to begin: what is missing comes from the journal."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.consumer.consumer import named
from phase_bus.core.address import Address
from phase_bus.core.position import Position
from phase_bus.events import EventBase, PhaseStart, Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.clients import Subscriber
from tests.support.recorder import PHASE, Recorder, WithRecords, publish, running, start

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("kind", [Recorder, WithRecords])
async def test_joining_late(kind: type[Recorder], kept: DurableBus) -> None:
    """A consumer that joins late gets what came before, and then what comes live, as one sequence."""
    with Publisher(kept.address, batch_records=1) as publisher:
        for number in range(300):
            publisher.publish(start(number))
        assert await asyncio.to_thread(publisher.flush, 10)
        late = kind()
        async with running(late, kept.address):
            for number in range(300, 600):
                publisher.publish(start(number))
                publisher.record("r", PHASE, {"n": 1}, {})
            publisher.complete_run("r", "completed")
            await until(lambda: late.ended)
    assert late.numbers == list(range(600))


async def test_what_is_past_is_asked_for_at_once(
    ipc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to happen first: no message, no heartbeat, no time."""
    monkeypatch.setattr("phase_bus.consumer.runner.FLUSH_S", 3600.0)
    bus = DurableBus(ipc_dir, tmp_path / "journal", BusOptions(heartbeat_s=3600.0))
    try:
        await asyncio.to_thread(publish, bus.address, 10)
        late = Recorder()
        async with running(late, bus.address):
            await until(lambda: late.numbers == list(range(10)))
    finally:
        bus.close()


async def test_after_the_end(kept: DurableBus) -> None:
    """The whole run is there, and the receipt says that it was replayed."""
    await asyncio.to_thread(publish, kept.address, 200, end=True)
    late = WithRecords()
    with Subscriber(kept.address, "receipt.") as subscriber:
        async with running(late, kept.address):
            await until(lambda: late.ended)
            (receipt,) = await until(lambda: subscriber.of(Receipt))
    assert (late.numbers, late.counted) == (list(range(200)), 200)
    topic = receipt.topics["phase_start.r$"]
    assert (topic.published, topic.received, topic.replayed, topic.missed) == (200, 200, 200, 0)
    assert receipt.complete


@pytest.mark.parametrize("kind", [Recorder, WithRecords])
async def test_overflow(kind: type[Recorder], ipc_dir: Path, tmp_path: Path) -> None:
    """A slow consumer with short queues, overrun twice: nothing lost, in order, no duplicates."""

    async def slow(_event: EventBase) -> None:
        await asyncio.sleep(0.0005)

    bus = DurableBus(ipc_dir, tmp_path / "journal", BusOptions(heartbeat_s=0.1, high_water_mark=10))
    try:
        consumer = kind(slow)
        async with running(consumer, bus.address, high_water_mark=10):
            for first in (0, 400):
                await asyncio.to_thread(publish, bus.address, 400, first, f"r{first}", end=True)
                await until(lambda: consumer.ended and len(consumer.numbers) > first)  # noqa: B023
        assert consumer.numbers == list(range(800))
        if isinstance(consumer, WithRecords):
            assert consumer.counted == 800
    finally:
        bus.close()


async def test_a_long_handler_does_not_read_what_it_cannot_take(kept: DurableBus) -> None:
    """The live queue is left alone while the journal is read: it may overflow, and does no harm."""
    release = asyncio.Event()

    async def wait(event: EventBase) -> None:
        if event.ts_ns == 3:
            await release.wait()

    consumer = Recorder(wait)
    async with running(consumer, kept.address, high_water_mark=2):
        await asyncio.to_thread(publish, kept.address, 3000, end=True)
        release.set()
        await until(lambda: consumer.ended)
    assert consumer.numbers == list(range(3000))


async def test_a_greeting_that_is_lost(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue may be full when the bus greets a consumer; it asks again."""
    sockets = kept.bus._sockets
    greet = sockets.greet_subscribers
    lost: list[bytes] = []

    def lose_the_first() -> None:
        if lost:
            greet()
        while not lost:
            message = sockets.xpub.recv()
            if b"ready." in message:
                lost.append(message)

    monkeypatch.setattr(sockets, "greet_subscribers", lose_the_first)
    consumer = Recorder()
    async with running(consumer, kept.address):
        assert lost
        await asyncio.to_thread(publish, kept.address, 10)
        await until(lambda: len(consumer.events) >= 10)


async def test_origins(kept: DurableBus) -> None:
    """start, now, an offset, a checkpoint; the first time a checkpoint is the start."""
    await asyncio.to_thread(publish, kept.address, 10)  # offsets 1 to 20, an event and its record in turn

    async def numbers_from(origin: Any, name: str, last: int) -> list[int]:
        consumer = named(Recorder(), name)
        async with running(consumer, kept.address, origin=origin):
            if origin == "now":
                await asyncio.to_thread(publish, kept.address, 1, last)
            await until(lambda: last in consumer.numbers)
        return consumer.numbers

    assert await numbers_from("checkpoint", "a", 9) == list(range(10))
    assert await numbers_from("start", "a", 9) == list(range(10))
    assert await numbers_from(10, "b", 9) == [5, 6, 7, 8, 9]
    assert await numbers_from("now", "c", 10) == [10]
    assert await numbers_from("checkpoint", "a", 10) == [10]


async def test_state_is_kept_with_the_position(kept: DurableBus) -> None:
    """A consumer whose result lives in memory goes on where an earlier process left."""

    class Adding(Recorder):
        """Adds up."""

        total = 0

        async def on_phase_start(self, event: PhaseStart) -> None:
            self.total += event.ts_ns
            await self._on(event)

        def state(self) -> bytes:
            return str(self.total).encode()

        def restore(self, state: bytes) -> None:
            self.total = int(state)

    for first in (0, 100, 200):
        await asyncio.to_thread(publish, kept.address, 100, first)
        consumer = Adding()
        async with running(consumer, kept.address):
            await until(lambda: first + 99 in consumer.numbers)  # noqa: B023
        assert consumer.numbers == list(range(first, first + 100))
        assert consumer.total == sum(range(first + 100))


async def test_another_journal(ipc_dir: Path, tmp_path: Path) -> None:
    """A bus that begins a new journal: its offsets are not taken for those of the old one."""

    class Placed(WithRecords):
        """Stores its own checkpoint for each journal."""

        def __init__(self) -> None:
            super().__init__()
            self.places: dict[str, Position] = {}

        async def on_phase_start(self, event: PhaseStart) -> None:
            self.places[self.journal_id] = Position(self.stream, self.offset)
            await super().on_phase_start(event)

        async def position(self) -> Position | None:
            return self.places.get(self.journal_id)

    bus = DurableBus(ipc_dir, tmp_path / "one")
    consumer = Placed()
    try:
        async with running(consumer, bus.address) as runner:
            await asyncio.to_thread(publish, bus.address, 100, 0)
            await until(lambda: len(consumer.numbers) == 100)
            bus.close()
            bus.data = tmp_path / "two"
            bus.open()
            await asyncio.to_thread(publish, bus.address, 50, 100)
            await until(lambda: len(consumer.numbers) == 150)
            await until(lambda: runner.share.checkpoint >= 99 and runner.share.commit is None)
        assert consumer.numbers == list(range(150))
        assert len(consumer.places) == 2
    except BaseException:
        bus.close()
        raise
    bus.close()
    with JournalReader(tmp_path / "two") as journal:
        checkpoint = journal.checkpoint("recorder")
        assert checkpoint is not None
        assert 99 <= checkpoint.offset <= journal.head.offset < 110


@pytest.mark.slow
async def test_memory_only_after_a_burst(ipc_dir: Path) -> None:
    """Without a journal a consumer that lost the end of a burst goes on with the next event."""
    release = asyncio.Event()

    async def wait(event: EventBase) -> None:
        await release.wait()

    bus = Bus([Address.parse(f"ipc://{ipc_dir}")], BusOptions(heartbeat_s=0.1, high_water_mark=5))
    bus.bind()
    thread = threading.Thread(target=bus.run)
    thread.start()
    consumer = Recorder(wait)
    try:
        async with running(consumer, str(bus.addresses[0]), high_water_mark=5) as runner:
            await asyncio.to_thread(publish, str(bus.addresses[0]), 2000)
            release.set()
            # One more is the run's end, published by the bus as the publisher left; then comes a receipt.
            await until(lambda: (runner.share.follower.event_number or 0) >= 2001)
            assert len(consumer.events) + runner.share.follower.missed == 2001
            assert runner.share.follower.missed > 0
            await asyncio.to_thread(publish, str(bus.addresses[0]), 1, 5000)
            await until(lambda: 5000 in consumer.numbers)
    finally:
        bus.stop()
        await asyncio.to_thread(thread.join)
        bus.close()
