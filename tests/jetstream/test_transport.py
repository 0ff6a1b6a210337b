"""Consumers of a stream that are late, cut off, paused, robbed of their names, or sent back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import StreamAddress
from phase_bus.core.position import Position
from phase_bus.errors import NameTakenError, PhaseBusError
from phase_bus.events import EventBase, PhaseStart, Receipt, RunComplete, Summary
from phase_bus.jetstream.notes import CheckpointNote, read_note
from phase_bus.jetstream.stream import cut_stream
from phase_bus.testing import make_event, make_run
from phase_bus.testing.waiting import until
from tests.support.servers.nats import NatsServer
from tests.support.servers.process import free_port
from tests.support.stream_bus import QuickTransport, StreamBus
from tests.support.streams import opened

pytestmark = pytest.mark.usefixtures("no_leaks")


class Recorder(Consumer):
    """Remembers everything that is no receipt."""

    def __init__(self) -> None:
        self.events: list[EventBase] = []
        self.offsets: list[int] = []

    async def on_event(self, event: EventBase) -> None:
        if not isinstance(event, Receipt):
            self.events.append(event)
            self.offsets.append(self.offset)


class Impatient(QuickTransport):
    """Takes a name that is silent for 1.5 s."""

    silent_after_s = 1.5


@asynccontextmanager
async def running(
    url: str, consumer: Consumer, name: str = "a", *, transport: type[QuickTransport] = QuickTransport
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a consumer, and stop it at the end, unless it has ended by itself."""
    runner = ConsumerRunner(named(consumer, name), StreamAddress.parse(url), transport=transport)
    task = asyncio.create_task(runner.run())
    try:
        yield task
    finally:
        runner.stop()
        await asyncio.wait({task}, timeout=20)
        assert task.done()
    if not task.cancelled():
        task.result()


async def published(bus: StreamBus, *events: EventBase) -> None:
    await asyncio.to_thread(bus.publish, *events)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.slow
async def test_it_waits_for_nats_and_for_the_stream_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phase_bus.jetstream.transport._COMPLAIN_AFTER_S", 0.0)
    server = NatsServer(tmp_path / "nats")
    server.port = free_port()
    try:
        await _wait_for(server, caplog)
    finally:
        server.kill()


async def _wait_for(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    consumer = Recorder()
    async with running(server.url, consumer):
        await until(lambda: bool(warnings(caplog)), 15)
        assert "does not answer" in warnings(caplog)[0]
        server.start()
        await until(lambda: len(warnings(caplog)) == 2, 15)
        assert "there is no stream 'phase-bus'" in warnings(caplog)[1]
        assert "phase-bus bus --forward" in warnings(caplog)[1]
        with StreamBus(server.url) as bus:
            await published(bus, *make_run(records=3))
            await until(lambda: bool(consumer.events) and isinstance(consumer.events[-1], RunComplete))
            assert len(warnings(caplog)) == 2
            assert consumer.offsets == list(range(1, len(consumer.events) + 1))
            await until(lambda: bool(bus.events(Receipt)))
            assert bus.events(Receipt)[0].complete


async def test_nothing_is_said_where_nothing_is_wrong(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "phase_bus.jetstream")
    with StreamBus(nats.url) as bus:
        consumer = Recorder()
        async with running(nats.url, consumer):
            await published(bus, *make_run(records=3))
            await until(lambda: bool(bus.events(Receipt)))
        lines = [r.getMessage() for r in caplog.records if r.name == "phase_bus.jetstream"]
        assert lines == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_nats_goes_away_and_comes_back(
    nats: NatsServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Events are handled once and in order, and the receipt says so."""
    consumer = Recorder()
    with StreamBus(nats.url) as bus:
        events = make_run(records=100, batch_records=4)
        half = len(events) // 2
        async with running(nats.url, consumer):
            await published(bus, *events[:half])
            await until(lambda: len(consumer.events) == half)
            nats.kill() if how == "killed" else nats.pause()
            await until(lambda: any("waiting for it" in line for line in warnings(caplog)), 40)
            nats.start() if how == "killed" else nats.resume()
            await until(lambda: bus._opened.connection.client.is_connected)
            await asyncio.to_thread(_publish_again, bus, events[half:])
            await until(lambda: len(consumer.events) == len(events), 40)
            await until(lambda: bool(bus.events(Receipt)), 40)
        assert consumer.offsets == sorted(set(consumer.offsets))
        (receipt,) = bus.events(Receipt)
        assert receipt.complete
        told = [line for line in warnings(caplog) if "waiting for it" in line]
        assert len(told) == 1


def _publish_again(bus: StreamBus, events: Sequence[EventBase]) -> None:
    """Publish, though the server may need a moment."""
    for event in events:
        for _ in range(50):
            try:
                bus.publish(event)
            except Exception:
                bus.do(_pause)
                continue
            break


async def _pause(_: object) -> None:
    await asyncio.sleep(0.2)


async def test_who_is_taken_for_gone_ends_and_commits_nothing_more(nats: NatsServer) -> None:
    """A process that did not answer for long, as if it had been stopped, finds its name taken."""
    first, second = Recorder(), Recorder()
    with StreamBus(nats.url) as bus:
        await published(bus, make_event(PhaseStart))
        with pytest.raises(NameTakenError, match="took the name over"):
            await _sleep_meanwhile(bus, first, second)
        assert _place(bus) == 2


async def _sleep_meanwhile(bus: StreamBus, first: Recorder, second: Recorder) -> None:
    Sleepy.awake.set()
    async with running(bus.address, first, transport=Sleepy) as task:
        await until(lambda: len(first.events) == 1)
        await until(lambda: _place(bus) == 1)
        Sleepy.awake.clear()
        async with running(bus.address, second, transport=Impatient):
            await published(bus, make_event(PhaseStart, phase="ramp"))
            await until(lambda: len(second.events) == 1, 20)
            await until(lambda: _place(bus) == 2)
            Sleepy.awake.set()
            await asyncio.wait({task}, timeout=20)
            assert task.done()


class Sleepy(Impatient):
    """Says nothing while it sleeps."""

    awake = asyncio.Event()

    async def _talk(self) -> None:
        await self.awake.wait()
        await super()._talk()


def _place(bus: StreamBus, name: str = "a") -> int:
    kept = bus.do(lambda opened: opened.keys.get(f"checkpoint.{name}"))
    note = CheckpointNote() if kept is None else read_note(CheckpointNote, name, kept)
    return 0 if note.position is None else note.position.offset


async def test_a_stream_that_lost_its_end_sends_its_consumers_back(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes again is known; what is new is handled; the loss is told."""
    consumer = Recorder()
    with StreamBus(nats.url) as bus:
        events = make_run(records=20, batch_records=2)
        async with running(nats.url, consumer):
            await published(bus, *events[:-1])
            await until(lambda: len(consumer.events) == len(events) - 1)
            await until(lambda: _place(bus) == len(events) - 1)
            bus.do(lambda opened: cut_stream(opened.connection, 4))
            await until(lambda: any("lost its end" in line for line in warnings(caplog)))
            await published(bus, events[-1])
            await until(lambda: len(consumer.events) == len(events))
            await until(lambda: bool(bus.events(Receipt)))
        (receipt,) = bus.events(Receipt)
        assert [loss.reason for loss in receipt.journal_losses] == ["cut"]
        assert consumer.offsets == sorted(set(consumer.offsets))


async def test_a_stream_made_anew_is_read_from_its_start(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = Recorder()
    with StreamBus(nats.url) as bus:
        async with running(nats.url, consumer):
            await published(bus, make_event(PhaseStart), make_event(PhaseStart, phase="ramp"))
            await until(lambda: len(consumer.events) == 2)
            await until(lambda: _place(bus) == 2)
            await _delete(nats.url)
            async with opened(nats.url) as again:
                place = Position(again.stream.id, 1)
            await published(bus, make_event(PhaseStart, phase="soak"))
            await until(lambda: len(consumer.events) == 3, 20)
            assert consumer.offsets[-1] == place.offset
            await until(lambda: _place(bus) == 1)
        assert any("another journal" in line for line in warnings(caplog))


async def _delete(url: str) -> None:
    async with opened(url) as here:
        await here.connection.js.delete_stream(here.stream.name)


async def test_what_the_stream_keeps_no_more_is_told_in_the_receipt(nats: NatsServer) -> None:
    with StreamBus(nats.url) as bus:
        events = make_run(records=20, batch_records=2)
        await published(bus, *events[:3])
        async with running(nats.url, Recorder()):
            await until(lambda: _place(bus) == 3)
        await published(bus, *events[3:])
        bus.do(lambda opened: opened.connection.js.purge_stream(opened.stream.name, seq=7))
        async with running(nats.url, Recorder()):
            await until(lambda: bool(bus.events(Receipt)))
        (receipt,) = bus.events(Receipt)
        assert not receipt.complete
        assert [(loss.reason, loss.first, loss.last) for loss in receipt.journal_losses] == [
            ("removed", 4, 6)
        ]


class Summing(Consumer):
    """Publishes summaries, many or large ones."""

    def __init__(self, make: Callable[[str], list[Summary]]) -> None:
        self._make = make

    async def on_run_complete(self, event: RunComplete) -> None:
        for summary in self._make(event.run_id):
            self.publish(summary)


def _summary(run_id: str, **result: object) -> Summary:
    return Summary(run_id=run_id, producer="a", final=True, result=result)


async def test_what_is_larger_than_a_message_is_published_and_read(nats: NatsServer) -> None:
    text = "x" * 3_000_000
    with StreamBus(nats.url) as bus:
        await published(bus, *make_run(records=3))
        async with running(nats.url, Summing(lambda run_id: [_summary(run_id, text=text)])):
            await until(lambda: bool(bus.events(Receipt)))
        (summary,) = bus.events(Summary)
        assert summary.result == {"text": text}


@pytest.mark.slow
async def test_what_is_published_while_nats_is_killed_is_there_once(nats: NatsServer) -> None:
    with StreamBus(nats.url) as bus:
        await published(bus, *make_run(records=3))
        count = 3000
        consumer = Summing(lambda run_id: [_summary(run_id, n=n) for n in range(count)])
        async with running(nats.url, consumer):
            for _ in range(3):
                await asyncio.sleep(0.15)  # somewhere in the middle
                nats.kill()
                nats.start()
            await until(lambda: bus._opened.connection.client.is_connected)
            await until(lambda: _all_there(bus, count), 60)
            await until(lambda: bool(bus.events(Receipt)))
        assert [event.result["n"] for event in bus.events(Summary)] == list(range(count))


def _all_there(bus: StreamBus, count: int) -> bool:
    try:
        return len(bus.events(Summary)) >= count
    except Exception:  # it has just been started
        return False


class Heavy(Consumer):
    """Has a state that is larger than a message."""

    def __init__(self) -> None:
        self.count = 0
        self.restored = 0

    async def on_phase_start(self, event: PhaseStart) -> None:
        self.count += 1

    def state(self) -> bytes:
        return str(self.count).encode().ljust(2_500_000)

    def restore(self, state: bytes) -> None:
        self.count = self.restored = int(state)


async def test_a_state_that_is_larger_than_a_message(nats: NatsServer) -> None:
    with StreamBus(nats.url) as bus:
        await published(bus, *(make_event(PhaseStart, phase=str(n)) for n in range(7)))
        async with running(nats.url, Heavy()):
            await until(lambda: _place(bus) == 7)
        again = Heavy()
        async with running(nats.url, again):
            await published(bus, make_event(PhaseStart, phase="last"))
            await until(lambda: again.count == 8)
        assert again.restored == 7


async def test_a_consumer_of_events_alone_passes_what_is_not_for_it(nats: NatsServer) -> None:
    """Its place comes to the stream's end, though the last events are records, which it does not read."""

    class Phases(Consumer):
        async def on_phase_start(self, event: PhaseStart) -> None: ...

    with StreamBus(nats.url) as bus:
        events = make_run(records=40, batch_records=2)[:-2]
        async with running(nats.url, Phases()):
            await published(bus, *events)
            await until(lambda: _place(bus) > 0)
        end = _place(bus)
        async with running(nats.url, Phases()):
            await published(bus, make_event(PhaseStart, phase="one"))
            await until(lambda: _place(bus) == len(events) + 1)
        assert end <= len(events)


async def test_a_wrong_stream_ends_it_with_one_line(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        await here.connection.js.add_stream(StreamConfig(name="other", subjects=["other.>"]))
    with pytest.raises(PhaseBusError, match=r"stream 'other'.*was not made by phase-bus"):
        async with running(f"{nats.url}/other", Recorder()) as task:
            await asyncio.wait({task}, timeout=20)
