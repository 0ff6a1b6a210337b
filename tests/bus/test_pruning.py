"""What pruning takes from consumers that have not read it, and who says so."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.address import Address
from phase_bus.events import Loss, Receipt, Records, RunStart, Summary
from phase_bus.harness.replayer import Replayer
from phase_bus.journal.reader import JournalReader, PublishedInJournal
from phase_bus.journal.rows import Limits
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until
from tests.support import groups
from tests.support.buses import FAST, BusThread
from tests.support.clients import RawClient, Subscriber
from tests.support.journals import Made, Phase, write_journal
from tests.support.recorder import PHASE, Recorder, WithRecords, publish, running, start

pytestmark = pytest.mark.usefixtures("no_leaks")
REASON = "pruned from the journal before it was read"


class PruningBus:
    """A bus with a journal within limits, which prunes all the time."""

    def __init__(self, ipc_dir: Path, data: Path) -> None:
        self.address, self._data = f"ipc://{ipc_dir}", data
        self.open(Limits())

    def open(self, limits: Limits) -> None:
        """Start it."""
        self.journal = Journal(self._data, limits)
        self.thread = BusThread(self.address, options=FAST, journal=self.journal)

    def close(self) -> None:
        """End it."""
        self.thread.close()

    async def reopen(self, limits: Limits) -> None:
        """Start it anew, with other limits."""
        await asyncio.to_thread(self.close)
        await asyncio.to_thread(self.open, limits)

    def runs(self) -> list[str]:
        """Return the runs in the journal."""
        with JournalReader(self._data) as reader:
            return [row.run_id for row in reader.runs()]


@pytest.fixture
def bus(ipc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PruningBus]:
    """A bus."""
    monkeypatch.setattr("phase_bus.bus.server._PRUNE_EVERY_S", 0.05)
    bus = PruningBus(ipc_dir, tmp_path / "journal")
    yield bus
    bus.close()


async def go(bus: PruningBus, consumer: Recorder, *run_ids: str) -> None:
    """Let a consumer read until it has had the ends of these runs, and has committed that."""
    async with running(consumer, bus.address) as runner:
        await until(lambda: all(run_id in runner.share.dispatcher.handled for run_id in run_ids))


async def test_runs_wait_for_a_consumer_that_is_away(bus: PruningBus) -> None:
    """Four runs pass a bus that keeps two: it gets them all, then the limit holds."""
    await asyncio.to_thread(publish, bus.address, 5, 0, "before", end=True)
    await go(bus, WithRecords(), "before")
    await bus.reopen(Limits(max_runs=2))
    names = [f"r{number}" for number in range(4)]
    for name in names:
        await asyncio.to_thread(publish, bus.address, 5, 0, name, end=True)
    await until(lambda: "before" not in bus.runs())
    assert bus.runs() == names
    back = WithRecords()
    await go(bus, back, *names)
    assert back.counted == 20
    await until(lambda: bus.runs() == names[2:])
    with RawClient(bus.address) as client:
        assert client.status().unread == ()


@pytest.mark.parametrize(("kind", "events", "records"), [(WithRecords, 13, 6), (Recorder, 7, 0)])
async def test_what_went_unread_is_told(
    kind: type[Recorder], events: int, records: int, bus: PruningBus, caplog: pytest.LogCaptureFixture
) -> None:
    """By run and number: in the bus's log and status, in the consumer's log and next receipt, once."""
    half = kind()
    with Publisher(bus.address, batch_records=1) as publisher:
        for number in range(4):
            publisher.publish(start(number, "a"))
            publisher.record("a", PHASE, {"n": number}, {})
        async with running(half, bus.address):
            await until(lambda: len(half.numbers) == 4)
            if isinstance(half, WithRecords):
                await until(lambda: half.counted == 4)
        for number in range(6):
            publisher.publish(start(number, "a"))
            publisher.record("a", PHASE, {"n": number}, {})
        publisher.complete_run("a", "completed")
        assert await asyncio.to_thread(publisher.flush, 10)
    with caplog.at_level(logging.INFO, "phase_bus"):
        await bus.reopen(Limits(max_bytes=0, max_unread_bytes=0))
        await until(lambda: bus.runs() == [])
        with RawClient(bus.address) as client:
            (unread,) = client.status().unread
        await bus.reopen(Limits())
        with RawClient(bus.address) as client:
            assert client.status().unread == (unread,), "after a restart of the bus too"
        expected = ("recorder", "a", events, records)
        assert (unread.consumer, unread.run_id, unread.events, unread.records) == expected
        with Subscriber(bus.address, "receipt.") as subscriber:
            async with running(kind(), bus.address):
                await asyncio.to_thread(publish, bus.address, 1, 0, "b", end=True)
                (receipt,) = await until(lambda: subscriber.of(Receipt))
                await asyncio.to_thread(publish, bus.address, 1, 0, "c", end=True)
                _, clean = await until(lambda: len(subscriber.of(Receipt)) == 2 and subscriber.of(Receipt))
    assert receipt.lost == (Loss(run_id="a", reason=REASON, events=events, records=records),)
    assert not receipt.complete
    assert clean.complete
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    what = f"{events} events with {records} records"
    assert f"run a was pruned from the journal before it was read by recorder ({what})" in logged[0]
    assert f"consumer 'recorder' has lost {what} of run a: {REASON}" in logged


async def test_one_that_was_never_here_has_lost_nothing(bus: PruningBus) -> None:
    """What was pruned before a consumer came for the first time is not its loss."""
    await asyncio.to_thread(publish, bus.address, 3, 0, "a", end=True)
    await bus.reopen(Limits(max_bytes=0, max_unread_bytes=0))
    await until(lambda: bus.runs() == [])
    await bus.reopen(Limits())
    await asyncio.to_thread(publish, bus.address, 3, 0, "b", end=True)
    new = WithRecords()
    with Subscriber(bus.address, "receipt.") as subscriber:
        await go(bus, new, "b")
        (receipt,) = await until(lambda: subscriber.of(Receipt))
    assert receipt.complete
    assert new.counted == 3


async def test_a_run_of_long_ago_is_new_here(
    bus: PruningBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed from a journal of 40 days ago it stays, and is shown with its own times."""
    made = Made("old", [Phase("profiling", 60.0, 100)], start_ns=time.time_ns() - 40 * 86400 * 10**9)
    past = write_journal(tmp_path / "past", made)
    monkeypatch.setattr("phase_bus.bus.clock.ClockWatch.is_steady", lambda _: True)
    replayer = Replayer(Address.parse(bus.address), speed=None, run_id=None, on_sent=lambda _: None)
    with JournalReader(past) as reader:
        events = PublishedInJournal(reader, ["old"])
        await asyncio.to_thread(replayer.publish, events)
        (original,) = reader.runs()
    prunings = 0
    prune = bus.journal.prune

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal prunings
        prunings += 1
        return prune(*args, **kwargs)

    monkeypatch.setattr(bus.journal, "prune", counted)
    await until(lambda: prunings > 2)
    with JournalReader(bus.journal.path) as reader:
        (row,) = reader.runs()
    with RawClient(bus.address) as client:
        (info,) = client.status().runs
    assert (row.started_ns, row.ended_ns) == (made.start_ns, made.start_ns + 60 * 10**9)
    assert (info.started_ns, info.ended_ns) == (row.started_ns, row.ended_ns)
    assert info.events == row.events == original.events == events.count


class Counts(Consumer):
    """Counts each run's records, once."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def state(self) -> bytes:
        return msgspec.msgpack.encode(self.counts)

    def restore(self, state: bytes) -> None:
        self.counts = Counter(msgspec.msgpack.decode(state, type=dict[str, int]))

    async def on_records(self, event: Records) -> None:
        self.counts[event.run_id] += event.count


async def put(publisher: Publisher, run_id: str, records: int, *, end: bool = False) -> None:
    """Publish records, one in each event."""
    for number in range(records):
        publisher.record(run_id, PHASE, {"n": number}, {})
    if end:
        publisher.complete_run(run_id, "completed")
    assert await asyncio.to_thread(publisher.flush, 10)


@pytest.mark.parametrize("seed", range(2))
async def test_what_it_has_and_what_it_lost_is_all(
    seed: int, bus: PruningBus, caplog: pytest.LogCaptureFixture
) -> None:
    """Here and away at random, with tight limits and wide ones: each record is either had or told."""
    random = Random(seed)
    published: Counter[str] = Counter()
    consumer = Counts()
    async with running(consumer, bus.address):
        await asyncio.to_thread(publish, bus.address, 1, 0, "first", end=True)
        await until(lambda: consumer.counts["first"])
    for number in range(12):
        run_id = f"r{number}"
        published[run_id] = random.randint(1, 40)
        half = random.choice((0, published[run_id] // 2))
        with Publisher(bus.address, batch_records=1) as publisher:
            if half:
                consumer = Counts()
                async with running(consumer, bus.address):
                    await put(publisher, run_id, half)
                    if random.random() < 0.5:
                        await until(lambda: consumer.counts[run_id] > half // 2)  # noqa: B023
            await put(publisher, run_id, published[run_id] - half, end=True)
        if random.random() < 0.3:
            kept = random.choice((Limits(max_bytes=0, max_unread_bytes=0), Limits(max_runs=2)))
            await bus.reopen(kept)
            await until(lambda: len(bus.runs()) <= 2 or kept.max_runs == 2)  # noqa: B023
    await bus.reopen(Limits())
    consumer = Counts()
    await asyncio.to_thread(publish, bus.address, 1, 0, "last", end=True)
    async with running(consumer, bus.address):
        await until(lambda: consumer.counts["last"])
    line = re.compile("has lost .* with ([0-9]+) records of run (r[0-9]+):")
    told = [line.search(record.getMessage()) for record in caplog.records]
    lost = Counter({match[2]: int(match[1]) for match in told if match})
    assert consumer.counts + lost == published + Counter(first=1, last=1)
    assert lost.total() > 0


async def test_a_group_says_what_its_shares_lost(bus: PruningBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shares have each lost a part; the leader's receipt has the sum, once."""
    monkeypatch.setattr("phase_bus.consumer.leader._LOOK_S", 0.05)
    async with groups.members(2, bus.address):
        await asyncio.to_thread(groups.publish, bus.address, 100, "before")
        await groups.handled(bus.address, "before")
    for name in ("a", "b"):
        await asyncio.to_thread(groups.publish, bus.address, 700, name)
    await bus.reopen(Limits(max_bytes=0, max_unread_bytes=0))
    await until(lambda: bus.runs() == [])
    await bus.reopen(Limits())
    with RawClient(bus.address) as client:
        lost = {(u.consumer, u.run_id): (u.events, u.records) for u in client.status().unread}
    assert lost[("totals", "a")] == lost[("totals", "b")] == (102, 700)
    with Subscriber(bus.address, "receipt.") as subscriber:
        async with groups.members(2, bus.address):
            for name in ("c", "d"):
                await asyncio.to_thread(groups.publish, bus.address, 700, name)
                await groups.handled(bus.address, name)
            first, second = await until(lambda: len(subscriber.of(Receipt)) == 2 and subscriber.of(Receipt))
    told = {loss.run_id: (loss.events, loss.records) for loss in first.lost}
    assert told == {"a": (102, 700), "b": (102, 700)}
    assert not first.complete
    assert second.complete


@pytest.mark.parametrize(
    "word", [Receipt(run_id="gone", consumer="c"), Summary(run_id="gone", producer="c")]
)
async def test_a_late_word_makes_no_ghost(
    word: Receipt | Summary, bus: PruningBus, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a run that is gone: told and not kept; of one that begins in the same moment: kept."""
    with Publisher(bus.address, name="late") as publisher:
        publisher.publish(word)
        publisher.publish(RunStart(run_id="new"))
        publisher.publish(msgspec.structs.replace(word, run_id="new"))
        assert await asyncio.to_thread(publisher.flush, 10)
    with JournalReader(bus.journal.path) as reader:
        assert [row.run_id for row in reader.runs()] == ["new"]
        assert [entry.kind for entry in reader.entries()][:2] == ["run_start", word.kind]
    assert f"a {word.kind} of 'late' for run gone is not kept" in caplog.text
