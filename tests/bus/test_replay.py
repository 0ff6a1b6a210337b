"""The journal behind the bus, on real sockets: joining late, overflow, kills, checkpoints, a full disk."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zmq

from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.replay import ReplayClient
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.control import Ack, Beat, Fetch, Fetched, Goodbye, Hello, Refused, Welcome
from phase_bus.core.wire import decode_reply, encode_control
from phase_bus.errors import BusUnreachableError, JournalError
from phase_bus.events import EventBase, PhaseRef, PhaseStart, Receipt, Records, RunComplete
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from tests.chaos.consumers import read_lines
from tests.chaos.processes import JournaledBus, consumer
from tests.helpers import DEADLINE_S, RawClient, Subscriber, until, wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASE = PhaseRef("profiling")
SOURCE = bytes(15) + b"\x07"
OPTIONS = BusOptions(heartbeat_s=0.1)
RAW = Hello(client_id=SOURCE.hex(), role="publisher", name="raw")


def start(number: int = 0, run_id: str = "r") -> PhaseStart:
    """An event with a number in it."""
    return PhaseStart(run_id=run_id, phase=PHASE, ts_ns=number)


class Kept:
    """A bus with a journal, in a thread of this process; it can be closed and opened again."""

    def __init__(self, ipc_dir: Path, data: Path, options: BusOptions = OPTIONS) -> None:
        self.address = f"ipc://{ipc_dir}"
        self.data, self.options = data, options
        self.open()

    def open(self) -> None:
        """Start it."""
        self.journal = Journal(self.data)
        self.bus = Bus([Address.parse(self.address)], self.options, self.journal)
        self.bus.bind()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self.bus.stop()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.bus.run()
        finally:
            self.bus.close()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let its journal take nothing."""

        def refuse(*args: object, **kwargs: object) -> None:
            raise JournalError(self.data, "the disk is full", "free some space")

        methods = vars(self.journal)
        methods.update(dict.fromkeys(("append", "commit", "add_dead_letter"), refuse))
        try:
            yield
        finally:
            for name in ("append", "commit", "add_dead_letter"):
                del methods[name]


@pytest.fixture
def kept(ipc_dir: Path, tmp_path: Path) -> Iterator[Kept]:
    """A bus with a journal."""
    bus = Kept(ipc_dir, tmp_path / "journal")
    yield bus
    bus.close()


class Recorder(Consumer):
    """Remembers all events; does more with some, if the test wants."""

    def __init__(self, then: Callable[[EventBase], Awaitable[None]] | None = None) -> None:
        named(self, "recorder")
        self.events: list[EventBase] = []
        self._then = then

    async def on_phase_start(self, event: PhaseStart) -> None:
        await self._on(event)

    async def on_run_complete(self, event: RunComplete) -> None:
        await self._on(event)

    async def _on(self, event: EventBase) -> None:
        if self._then is not None:
            await self._then(event)
        self.events.append(event)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the phase events so far."""
        return [event.ts_ns for event in self.events if isinstance(event, PhaseStart)]

    @property
    def ended(self) -> bool:
        """Whether a run's end was the last."""
        return bool(self.events) and isinstance(self.events[-1], RunComplete)


class WithRecords(Recorder):
    """Takes batches of records too."""

    def __init__(self, then: Callable[[EventBase], Awaitable[None]] | None = None) -> None:
        super().__init__(then)
        self.counted = 0

    async def on_records(self, event: Records) -> None:
        self.counted += event.count
        if self._then is not None:
            await self._then(event)


@asynccontextmanager
async def running(consumer: Consumer, address: str, **options: Any) -> AsyncIterator[ConsumerRunner]:
    """Run a consumer, from when it is ready."""
    ready = asyncio.Event()
    runner = ConsumerRunner(consumer, Address.parse(address), on_ready=ready.set, **options)
    task = asyncio.create_task(runner.run())
    try:
        await asyncio.wait_for(ready.wait(), 20)
        yield runner
    finally:
        runner.stop()
        await asyncio.wait_for(task, 20)


def publish(address: str, count: int, first: int = 0, run_id: str = "r", *, end: bool = False) -> None:
    """Publish numbered events, each with a record after it, and wait until the bus has them."""
    with Publisher(address, batch_records=1) as publisher:
        for number in range(first, first + count):
            publisher.publish(start(number, run_id))
            publisher.record(run_id, PHASE, {"n": number}, {})
        if end:
            publisher.complete_run(run_id, "completed")
        assert publisher.flush(20)


# ---- late, slow, or after the end ----


@pytest.mark.parametrize("kind", [Recorder, WithRecords])
async def test_joining_late(kind: type[Recorder], kept: Kept) -> None:
    """Who comes in the middle gets what came before, and then what comes live, as one sequence."""
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
    bus = Kept(ipc_dir, tmp_path / "journal", BusOptions(heartbeat_s=3600.0))
    try:
        await asyncio.to_thread(publish, bus.address, 10)
        late = Recorder()
        async with running(late, bus.address):
            await until(lambda: late.numbers == list(range(10)))
    finally:
        bus.close()


async def test_after_the_end(kept: Kept) -> None:
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
    """A slow consumer with short queues, twice overrun: nothing lost, in order, no double."""

    async def slow(_event: EventBase) -> None:
        await asyncio.sleep(0.0005)

    bus = Kept(ipc_dir, tmp_path / "journal", BusOptions(heartbeat_s=0.1, high_water_mark=10))
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


async def test_a_long_handler_does_not_read_what_it_cannot_take(kept: Kept) -> None:
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


async def test_a_greeting_that_is_lost(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
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


# ---- where to begin ----


async def test_origins(kept: Kept) -> None:
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


async def test_state_is_kept_with_the_position(kept: Kept) -> None:
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


# ---- failures ----


async def test_a_failing_handler(kept: Kept) -> None:
    """It is tried again; what goes on failing is set aside in the journal, and the rest is handled."""
    tries: list[int] = []

    async def fail(event: EventBase) -> None:
        if not isinstance(event, PhaseStart):
            return
        tries.append(event.ts_ns)
        if event.ts_ns == 3 or (event.ts_ns == 5 and tries.count(5) == 1):
            raise ValueError("as the test wants")

    consumer = Recorder(fail)
    async with running(consumer, kept.address):
        await asyncio.to_thread(publish, kept.address, 8)
        await until(lambda: 7 in consumer.numbers)
    assert consumer.numbers == [0, 1, 2, 4, 5, 6, 7]
    assert (tries.count(3), tries.count(5)) == (3, 2)
    with JournalReader(kept.data) as journal:
        (letter,) = journal.dead_letters()
    assert (letter.consumer, letter.offset, letter.attempts) == ("recorder", 7, 3)
    assert "as the test wants" in letter.error


async def test_a_dead_letter_waits_until_the_journal_takes_it(kept: Kept) -> None:
    """Neither a bus that cannot write it nor one that does not know the consumer loses it."""

    async def fail(event: EventBase) -> None:
        if isinstance(event, PhaseStart):
            raise ValueError("as the test wants")

    await asyncio.to_thread(publish, kept.address, 1)
    with kept.full():
        async with running(Recorder(fail), kept.address) as runner:
            await until(lambda: runner.share.dispatcher.dead_letters)
            begin_s = time.monotonic()
            await until(lambda: time.monotonic() > begin_s + 0.5)
            assert len(runner.share.dispatcher.dead_letters) == 1
            kept.close()
            kept.open()
            await until(lambda: not runner.share.dispatcher.dead_letters)
            with JournalReader(kept.data) as journal:
                assert len(journal.dead_letters()) == 1


@pytest.mark.slow
async def test_a_flush_that_fails_keeps_the_checkpoint(kept: Kept) -> None:
    """The position moves, and a run counts as handled, only once everything is written out."""

    class Unwritable(Recorder):
        """Cannot write, at first."""

        broken = True

        async def flush(self) -> None:
            self.attempts += 1
            if self.broken:
                raise OSError("as the test wants")

        attempts = 0

    consumer = Unwritable()
    async with running(consumer, kept.address) as runner:
        await asyncio.to_thread(publish, kept.address, 5, end=True)
        await until(lambda: consumer.ended)
        tried = consumer.attempts
        await until(lambda: consumer.attempts > tried + 1)
        assert "r" not in runner.share.dispatcher.handled
        with JournalReader(kept.data) as journal:
            assert journal.checkpoint("recorder") is None
            consumer.broken = False
            checkpoint = await until(lambda: journal.checkpoint("recorder") or False)
            assert checkpoint.offset >= 11
            assert runner.share.dispatcher.handled == {"r": True}
            (receipt,) = await until(lambda: journal.receipts("r") or False)
            assert receipt.complete


# ---- kills ----


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
async def test_bus_killed(scheme: str, ipc_dir: Path, tmp_path: Path) -> None:
    """A consumer process that lives on gets everything once and in order, over three buses."""
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}" if scheme == "ipc" else "tcp://127.0.0.1:0")
    consumer = WithRecords()
    try:
        with Publisher(bus.address, batch_records=1) as publisher:
            async with running(consumer, bus.address):
                for round_ in range(3):
                    for number in range(round_ * 500, round_ * 500 + 500):
                        publisher.publish(start(number))
                        publisher.record("r", PHASE, {"n": 1}, {})
                    seen = round_ * 500 + 50
                    await until(lambda: len(consumer.numbers) > seen)  # noqa: B023
                    bus.kill()
                    # Waits for nothing: the bus is away for a moment, half a heartbeat, a whole one.
                    await asyncio.sleep(0.1 * round_)
                    bus.start()
                publisher.complete_run("r", "completed")
                await until(lambda: consumer.ended)
        assert consumer.numbers == list(range(1500))
        assert consumer.counted == 1500
    finally:
        bus.kill()


@pytest.mark.slow
@pytest.mark.chaos
def test_consumer_killed(ipc_dir: Path, tmp_path: Path) -> None:
    """At least once, in order; only what came after the last checkpoint comes again."""
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}")
    output = tmp_path / "lines"
    kind = "tests.chaos.consumers:Checking"
    checking = consumer(tmp_path, kind, bus.address, f"output={output}", "delay_s=0.001")
    try:
        with Publisher(bus.address) as publisher, checking, JournalReader(bus.directory) as journal:
            for number in range(4000):
                publisher.publish(start(number))
            assert publisher.flush(20)
            for fewest in (300, 1500):
                wait_until(lambda: len(read_lines(output)) > fewest and journal.checkpoint("checking"))  # noqa: B023
                checking.kill()
                before = len(read_lines(output))
                kept = journal.checkpoint("checking")
                assert kept is not None
                checking.start()
                wait_until(lambda: len(read_lines(output)) > before)  # noqa: B023
                assert read_lines(output)[before][0] == kept.offset + 1
            wait_until(lambda: (lines := read_lines(output)) and lines[-1][0] >= 4000, 60)
        offsets = [line[0] for line in read_lines(output)]
        assert sorted(set(offsets)) == list(range(1, max(offsets) + 1))
        assert all(b <= a + 1 for a, b in pairwise(offsets))
    finally:
        bus.kill()


@pytest.mark.slow
@pytest.mark.chaos
def test_exactly_once(ipc_dir: Path, tmp_path: Path) -> None:
    """Data and offset in one transaction: kills leave neither a missing nor a double row."""
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}")
    output = tmp_path / "once.db"
    once = consumer(tmp_path, "tests.chaos.consumers:Once", bus.address, f"output={output}")

    def rows() -> int:
        try:
            with sqlite3.connect(output) as db:
                (count,) = db.execute("SELECT count(*) FROM numbers").fetchone()
            return int(count)
        except sqlite3.OperationalError:  # no such table yet
            return 0
        finally:
            db.close()

    try:
        with Publisher(bus.address) as publisher, Subscriber(bus.address, "receipt.") as subscriber, once:
            for number in range(3000):
                publisher.publish(start(number))
            assert publisher.flush(20)
            for fewest in (100, 700, 1500):
                wait_until(lambda: rows() > fewest)  # noqa: B023
                once.kill()
                once.start()
            publisher.complete_run("r", "completed")
            (receipt,) = wait_until(lambda: subscriber.of(Receipt), 60)
            assert once.terminate() == 0, once.tail()
        with sqlite3.connect(output) as db:
            numbers = [number for (number,) in db.execute("SELECT number FROM numbers ORDER BY rowid")]
        db.close()
        assert numbers == list(range(3000))
        assert receipt.complete
        assert receipt.topics["phase_start.r$"].received == 3000
    finally:
        bus.kill()


# ---- a journal that cannot be written ----


def test_a_full_disk(ipc_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The publisher is told and keeps everything; once there is room again, all of it arrives, once."""
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}")
    unlimited = resource.prlimit(bus.pid, resource.RLIMIT_FSIZE)
    try:
        with Publisher(bus.address, batch_records=1) as publisher:
            for number in range(50):
                publisher.publish(start(number))
            assert publisher.flush(20)
            with JournalReader(bus.directory) as journal:
                kept = journal.head
            resource.prlimit(bus.pid, resource.RLIMIT_FSIZE, (400_000, unlimited[1]))
            for number in range(50, 3000):
                publisher.publish(start(number))
                publisher.record("r", PHASE, {"n": number}, {"x_request_id": "x" * 300})
            wait_until(lambda: "cannot keep events" in caplog.text)
            assert not publisher.flush(0.3)
            resource.prlimit(bus.pid, resource.RLIMIT_FSIZE, unlimited)
            assert publisher.flush(20)
        with JournalReader(bus.directory) as journal:
            assert journal.verify() == []
            entries = [*journal.read(0, records=True, limit=10_000, limit_bytes=1 << 30)]
        assert kept.offset == 50
        assert [e.source_seq for e in entries if e.source == entries[0].source] == list(range(1, 5951))
    finally:
        bus.kill()


def test_refused_over_another_connection(kept: Kept) -> None:
    """A publisher that was connected anew, unknown to itself, gets no acknowledgement either."""
    with RawClient(kept.address) as first, RawClient(kept.address) as second:
        assert isinstance(first.ask(RAW), Welcome)
        with kept.full():
            second.publish(start(1), SOURCE, 1)
            reply = second.reply()
            assert isinstance(reply, Refused)
            assert reply.seq == 0
        second.publish(start(1), SOURCE, 1)
        assert second.reply() == Ack(seq=1)
    assert kept.journal.head.offset == 1


def test_refused_with_a_hole(kept: Kept) -> None:
    """What was taken in before a hole, in the same turn, is not acknowledged if it is not kept."""
    with RawClient(kept.address) as client:
        assert isinstance(client.ask(RAW), Welcome)
        with kept.full():
            commit = kept.bus._commit
            hold = threading.Event()
            kept.bus._commit = lambda: hold.wait(5) and commit()  # type: ignore[method-assign]
            try:
                client.publish(start(9), SOURCE, 9)  # holds the bus up, so that the others are one turn
                begin_s = time.monotonic()
                wait_until(lambda: time.monotonic() > begin_s + 0.1)
                for seq in (1, 2, 3, 5):
                    client.publish(start(seq), SOURCE, seq)
                wait_until(lambda: time.monotonic() > begin_s + 0.2)
                hold.set()
                replies = [client.reply()]
                while not isinstance(replies[-1], Refused):
                    replies.append(client.reply())
            finally:
                hold.set()
                del kept.bus._commit
        for reply in replies:
            assert isinstance(reply, Ack | Refused)
            assert reply.seq == 0


def test_a_lost_run_while_the_disk_is_full(kept: Kept) -> None:
    """A run always ends: as soon as its end can be kept."""
    with Subscriber(kept.address, "run_complete.") as subscriber, RawClient(kept.address) as client:
        client.ask(RAW)
        client.publish(start(1), SOURCE, 1)
        assert client.reply() == Ack(seq=1)
        with kept.full():
            client.ask(Goodbye(client_id=SOURCE.hex()))
            assert client.status().runs[0].status == "running"
            assert not subscriber.of(RunComplete)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        assert (end.status, end.published) == ("lost", {"phase_start.r$": 1})
        assert client.status().runs[0].status == "lost"


def test_a_lost_run_goes_on_at_the_next_bus(kept: Kept) -> None:
    """The run is its publisher's, not that of the bus which said that it was lost."""
    with RawClient(kept.address) as client:
        client.ask(RAW)
        client.publish(start(1), SOURCE, 1)
        assert client.reply() == Ack(seq=1)
        client.ask(Goodbye(client_id=SOURCE.hex()))
        assert client.status().runs[0].status == "lost"
    kept.close()
    kept.open()
    with RawClient(kept.address) as client:
        client.ask(RAW)
        client.publish(start(2), SOURCE, 2)
        assert client.reply() == Ack(seq=2)
        (run,) = client.status().runs
        assert (run.status, run.events) == ("running", 2)
        client.ask(Goodbye(client_id=SOURCE.hex()))
        assert client.status().runs[0].status == "lost"


# ---- another bus at the same address ----


async def test_another_journal(ipc_dir: Path, tmp_path: Path) -> None:
    """A bus that begins a new journal: its offsets are not taken for those of the old one."""

    class Placed(WithRecords):
        """Keeps its position by itself, for each journal."""

        def __init__(self) -> None:
            super().__init__()
            self.places: dict[str, int] = {}

        async def on_phase_start(self, event: PhaseStart) -> None:
            self.places[self.journal_id] = self.offset
            await super().on_phase_start(event)

        async def position(self) -> int | None:
            return self.places.get(self.journal_id)

    bus = Kept(ipc_dir, tmp_path / "one")
    consumer = Placed()
    try:
        async with running(consumer, bus.address):
            await asyncio.to_thread(publish, bus.address, 100, 0)
            await until(lambda: len(consumer.numbers) == 100)
            bus.close()
            bus.data = tmp_path / "two"
            bus.open()
            await asyncio.to_thread(publish, bus.address, 50, 100)
            await until(lambda: len(consumer.numbers) == 150)
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
            # The run's end, which the bus publishes since the publisher left, is one more.
            await until(lambda: runner.share.follower.event_number == 2001)
            assert len(consumer.events) + runner.share.follower.missed == 2001
            assert runner.share.follower.missed > 0
            await asyncio.to_thread(publish, str(bus.addresses[0]), 1, 5000)
            await until(lambda: 5000 in consumer.numbers)
    finally:
        bus.stop()
        await asyncio.to_thread(thread.join)
        bus.close()


# ---- the replay socket itself ----


async def test_nonsense_does_not_end_the_replay_server(kept: Kept, ipc_dir: Path) -> None:
    """Whatever one consumer asks for, the others go on reading."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"ipc://{ipc_dir}/replay.ipc")
    for frames in (
        [b""],
        [b"\xc1"],
        [b"a", b"b"],
        [encode_control(Beat(client_id="", state="ready"))],
        [encode_control(Fetch(after=2**64 - 1, records=True))],
    ):
        dealer.send_multipart(frames)
    dealer.send(encode_control(Fetch(after=0, records=True)))
    assert await asyncio.to_thread(dealer.poll, 5000)
    while not isinstance(decode_reply(dealer.recv_multipart()[0]), Fetched):
        assert await asyncio.to_thread(dealer.poll, 5000)
    context.destroy(linger=0)


async def test_connecting_anew_ends_a_wait(ipc_dir: Path) -> None:
    """A consumer that waits for a bus that was killed asks the next one at once."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = ReplayClient(context, f"ipc://{ipc_dir}/nobody.ipc")
    try:
        waiting = asyncio.create_task(client.fetch(0, records=True))
        await asyncio.sleep(0.05)
        client.connect(f"ipc://{ipc_dir}/nobody-else.ipc")
        with pytest.raises(BusUnreachableError):
            await asyncio.wait_for(waiting, 2)
    finally:
        client.close()
        context.destroy(linger=0)
