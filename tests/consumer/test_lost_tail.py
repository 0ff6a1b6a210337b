"""Consumers whose bus comes back without the end of its journal, or with another journal.

A truth is kept apart from the bus: the numbers of the events that were published, and acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest

from phase_bus.consumer.consumer import named
from phase_bus.core.control import ClientInfo
from phase_bus.core.position import Position
from phase_bus.errors import PhaseBusError
from phase_bus.events import PhaseStart, Receipt, Records, Summary
from phase_bus.harness.dead_letters import event_of
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.rows import DeadLetter
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing import LiveBus
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import until
from phase_bus_consumers.sql import SqlSink
from tests.support.groups import members
from tests.support.recorder import PHASE, WithRecords, running, start
from tests.support.sql import dump

pytestmark = pytest.mark.usefixtures("no_leaks")
SEED = random.randrange(2**32)


@pytest.fixture
def bus() -> Iterator[LiveBus]:
    """A bus in a process of its own."""
    print(f"seed {SEED}")
    with LiveBus("--silent-after-s", "2") as bus:
        yield bus


class Load:
    """A publisher in this process, and what it has published: event and record for each number."""

    def __init__(self, bus: LiveBus) -> None:
        self.publisher = Publisher(bus.address, batch_records=1)
        self.published = 0
        self._bus = bus
        self._standing: sqlite3.Connection | None = None

    async def cut(self, chance: random.Random) -> int:
        """End the bus as a power cut may: without a part of its log. Return how many events are left."""
        await asyncio.to_thread(self._bus.kill)
        self.let_copy()
        log = self._bus.directory / "journal" / f"{FILE_NAME}-wal"
        data = log.read_bytes()
        log.write_bytes(data[: chance.randrange(len(data) // 4, len(data) * 3 // 4)])
        await asyncio.to_thread(self._bus.start)
        with self._bus.reader() as reader:
            return reader.head.offset

    def keep_from_copying(self) -> None:
        """Keep the log from being copied into the journal's file: no power cut takes what was copied."""
        if self._standing is None:
            path = self._bus.directory / "journal" / FILE_NAME
            self._standing = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
            self._standing.execute("BEGIN")
            self._standing.execute("SELECT count(*) FROM events").fetchone()

    def let_copy(self) -> None:
        """Let it be copied."""
        if self._standing is not None:
            self._standing.close()
            self._standing = None

    async def publish(self, count: int, run_id: str = "r", *, end: bool = False) -> None:
        """Publish numbers; return when the bus has acknowledged them."""
        for number in range(self.published, self.published + count):
            self.publisher.publish(start(number, run_id))
            self.publisher.record(run_id, PHASE, {"n": number}, {})
        self.published += count
        if end:
            self.publisher.complete_run(run_id, "completed")
        assert await asyncio.to_thread(self.publisher.flush, 20)


@asynccontextmanager
async def load(bus: LiveBus) -> AsyncIterator[Load]:
    """A publisher that lives as long as the test."""
    made = Load(bus)
    try:
        yield made
    finally:
        made.let_copy()
        await asyncio.to_thread(made.publisher.close)


class Summing(WithRecords):
    """Has its result in memory, and keeps it in its checkpoint."""

    total = 0

    async def on_records(self, event: Records) -> None:
        await super().on_records(event)
        self.total += event.count

    def state(self) -> bytes:
        return msgspec.json.encode((self.total, self.numbers))

    def restore(self, state: bytes) -> None:
        self.total, numbers = json.loads(state)
        self.events = [start(number) for number in numbers]


def losses(bus: LiveBus, name: str) -> list[str]:
    """What the bus's status says that a consumer found lost."""
    infos: list[ClientInfo] = [client for client in bus.status().clients if client.name == name]
    return [str(loss) for info in infos for loss in info.journal_losses]


def two_losses(bus: LiveBus, name: str) -> list[str]:
    """The same, once there are two."""
    return found if len(found := losses(bus, name)) == 2 else []


def receipts(bus: LiveBus, run_id: str) -> dict[str, Receipt]:
    """The last receipt of each consumer."""
    with bus.reader() as reader:
        return {receipt.consumer: receipt for receipt in reader.events(run_id, Receipt)}


def whole(count: int) -> list[int]:
    return list(range(count))


async def test_consumers_that_go_on(bus: LiveBus, caplog: pytest.LogCaptureFixture) -> None:
    """What they had is theirs, what comes is handled once, and what was lost is told."""
    chance = random.Random(SEED)
    plain, summing = WithRecords(), Summing()
    sink = SqlSink(f"sqlite:///{bus.directory}/test.db")
    async with (
        load(bus) as source,
        running(named(plain, "plain"), bus.address),
        running(named(summing, "summing"), bus.address),
        running(named(sink, "sql"), bus.address) as runner,
    ):
        for _ in range(2):
            source.keep_from_copying()
            await source.publish(200)
            await until(lambda: plain.numbers == summing.numbers == whole(source.published))
            await until(lambda: runner.share.dispatcher.received >= 2 * source.published)
            left = await source.cut(chance)
            assert left < 2 * source.published
        await source.publish(50)
        await source.publish(10, "next", end=True)
        await until(lambda: plain.ended and summing.ended)
        await source.publish(40, end=True)
        await until(lambda: receipts(bus, "r").keys() == {"plain", "summing", "sql"})
        for consumer in (plain, summing):
            assert consumer.numbers == whole(source.published)
            assert consumer.counted == source.published
        assert summing.total == source.published
        for name in ("plain", "summing", "sql"):
            (first, second) = await until(partial(two_losses, bus, name))
            assert "the journal lost its end" in first
            assert "the journal lost its end" in second
            said = receipts(bus, "r")[name]
            assert len(said.journal_losses) == 2
            assert said.complete, said  # it has all: by the publisher's counts
    check_rows(bus, source.published)
    assert caplog.text.count("'plain': the journal lost its end: offset") == 2


def check_rows(bus: LiveBus, published: int) -> None:
    """Check that each event and record is in the tables, once."""
    tables = dump(f"sqlite:///{bus.directory}/test.db")
    numbers = [row["ts_ns"] for row in tables["events"] if row["kind"] == "phase_start"]
    assert sorted(numbers) == whole(published)
    assert sorted(row["metrics"]["n"] for row in tables["records"]) == whole(published)


async def test_consumers_that_were_restarted(bus: LiveBus) -> None:
    """What came after the cut is handled, though its offsets are those of what the consumer stored."""
    chance = random.Random(SEED)
    url = f"sqlite:///{bus.directory}/test.db"
    async with load(bus) as source:
        summing = Summing()
        async with (
            running(named(SqlSink(url), "sql"), bus.address),
            running(named(summing, "summing"), bus.address) as runner,
        ):
            source.keep_from_copying()
            await source.publish(300)
            await until(lambda: summing.numbers == whole(300) and runner.share.commit is None)
        left = await source.cut(chance)
        again = Summing()
        async with (
            running(named(SqlSink(url), "sql"), bus.address),
            running(named(again, "summing"), bus.address),
        ):
            await source.publish(250, "new", end=True)
            await source.publish(1, end=True)
            await until(lambda: {"sql", "summing"} <= receipts(bus, "r").keys())
            assert again.numbers[-251:] == list(range(300, 551))
            assert len(again.numbers) < 551
            assert sorted(set(again.numbers)) == again.numbers
            for name in ("sql", "summing"):
                assert receipts(bus, "new")[name].complete
                said = receipts(bus, "r")[name]
                assert not said.complete
                kept = (left + 1) // 2
                assert said.topics["phase_start.r$"].received == kept + 1
                assert said.topics["phase_start.r$"].published == 301
            assert "the journal lost its end" in (await until(lambda: losses(bus, "sql")))[0]
    check_rows(bus, source.published)


async def test_a_new_journal(bus: LiveBus) -> None:
    """Nothing of it is taken for the old one's, nothing is doubled, and that it is another one is told."""
    url = f"sqlite:///{bus.directory}/test.db"
    plain, summing = WithRecords(), Summing()
    async with load(bus) as source, running(named(plain, "plain"), bus.address):
        async with (
            running(named(summing, "summing"), bus.address),
            running(named(SqlSink(url), "sql"), bus.address),
        ):
            await source.publish(200)
            await until(lambda: summing.numbers == whole(200))
        await until(lambda: plain.numbers == whole(200))
        await asyncio.to_thread(bus.kill)
        (bus.directory / "journal").rename(bus.directory / "old")
        await asyncio.to_thread(bus.start)
        async with running(named(SqlSink(url), "sql"), bus.address):
            await source.publish(150, end=True)
            await until(lambda: receipts(bus, "r").keys() == {"plain", "sql"})
            assert plain.numbers == whole(350)
            told = await until(lambda: losses(bus, "plain"))
            assert len(told) == 1
            assert "another journal than before" in told[0]
            assert receipts(bus, "r")["plain"].complete
            # This process of `sql` knows nothing of the old journal: it says what it did not see.
            assert receipts(bus, "r")["sql"].topics["phase_start.r$"].missed == 200
    check_rows(bus, 350)


async def test_the_directory_is_moved_under_a_running_bus(bus: LiveBus) -> None:
    """The publisher keeps what the bus refuses; consumers that go on have each event once."""
    url = f"sqlite:///{bus.directory}/test.db"
    plain = WithRecords()
    async with (
        load(bus) as source,
        running(named(plain, "plain"), bus.address),
        running(named(SqlSink(url), "sql"), bus.address),
    ):
        await source.publish(200)
        (bus.directory / "journal").rename(bus.directory / "old")
        publishing = asyncio.create_task(source.publish(200))
        log = bus.directory / "bus.log"
        await until(lambda: "was moved or deleted" in log.read_text())
        assert not publishing.done()
        await asyncio.to_thread(bus.kill)
        await asyncio.to_thread(bus.start)
        await publishing
        await source.publish(1, end=True)
        await until(lambda: receipts(bus, "r").keys() == {"plain", "sql"})
        assert plain.numbers == whole(401)
        assert receipts(bus, "r")["plain"].complete
        assert receipts(bus, "r")["sql"].complete
    check_rows(bus, 401)


async def test_the_log_is_deleted_under_a_running_bus(bus: LiveBus) -> None:
    """The bus says so at once, though nothing is published, and nothing that it acknowledged is lost."""
    plain = WithRecords()
    async with load(bus) as source, running(named(plain, "plain"), bus.address):
        await source.publish(100)
        for end in ("-wal", "-shm"):
            (bus.directory / "journal" / f"{FILE_NAME}{end}").unlink()
        log = bus.directory / "bus.log"
        await until(lambda: "the log beside it was moved or deleted" in log.read_text())
        await asyncio.to_thread(bus.kill)
        await asyncio.to_thread(bus.start)
        await source.publish(100, end=True)
        await until(lambda: plain.ended)
        assert plain.numbers == whole(200)
        assert losses(bus, "plain") == []
    late = WithRecords()
    async with running(named(late, "late"), bus.address):
        await until(lambda: late.ended)
    assert late.numbers == whole(200)


async def test_a_copy_that_is_restored(bus: LiveBus) -> None:
    """An older copy of the journal goes on in its own way: what is common is common, the rest is told."""
    plain, journal = WithRecords(), bus.directory / "journal"
    async with load(bus) as source, running(named(plain, "plain"), bus.address):
        await source.publish(100)
        await until(lambda: plain.numbers == whole(100))
        await asyncio.to_thread(bus.kill)
        shutil.copytree(journal, bus.directory / "copy")
        await asyncio.to_thread(bus.start)
        await source.publish(100)
        await until(lambda: plain.numbers == whole(200))
        await asyncio.to_thread(bus.kill)
        shutil.rmtree(journal)
        (bus.directory / "copy").rename(journal)
        await asyncio.to_thread(bus.start)
        await source.publish(100, end=True)
        await until(lambda: plain.ended)
        assert plain.numbers == whole(300)
        (loss,) = await until(lambda: losses(bus, "plain"))
        assert "another journal than before" in loss
        await until(lambda: "plain" in receipts(bus, "r"))
        assert receipts(bus, "r")["plain"].complete


@pytest.mark.parametrize("moved", [False, True])
async def test_a_group(bus: LiveBus, *, moved: bool) -> None:
    """It goes on from what the journal has; its receipt and its summary say what is missing."""
    chance = random.Random(SEED)
    async with load(bus) as source, members(2, bus.address):
        source.keep_from_copying()
        await source.publish(320)
        await until(lambda: received(bus) >= 640)
        if moved:
            await asyncio.to_thread(bus.kill)
            (bus.directory / "journal").rename(bus.directory / "old")
            await asyncio.to_thread(bus.start)
            kept = 0
        else:
            await source.cut(chance)
            with bus.reader() as reader:
                kept = sum(entry.records for entry in reader.entries("r"))
        await source.publish(160, end=True)
        await source.publish(160, "next", end=True)
        await until(lambda: "totals" in receipts(bus, "next") and "totals" in receipts(bus, "r"))
        said, after = receipts(bus, "r")["totals"], receipts(bus, "next")["totals"]
        assert after.complete
        assert not said.complete
        got = sum(t.received for name, t in said.topics.items() if name.startswith("records"))
        assert got == kept + 160
        assert sum(t.published or 0 for n, t in said.topics.items() if n.startswith("records")) == 480
        (loss, *_) = await until(lambda: losses(bus, "totals"))
        assert ("another journal" if moved else "lost its end") in loss
        summaries = {event.run_id: event for event in bus.events(Summary)}
        assert (summaries["r"].final, summaries["r"].result["records"]) == (False, kept + 160)
        assert (summaries["next"].final, summaries["next"].result["records"]) == (True, 160)


def received(bus: LiveBus) -> int:
    """How many events the members of all groups have received."""
    return sum(client.received for client in bus.status().clients if client.group)


async def test_what_is_damaged_is_told_by_those_who_miss_it(bus: LiveBus) -> None:
    """The receipt counts what was left out, and names its place."""
    async with load(bus) as source:
        await source.publish(50, end=True)
        await asyncio.to_thread(bus.kill)
        db = sqlite3.connect(bus.directory / "journal" / FILE_NAME)
        with db:
            db.execute("UPDATE events SET payload = zeroblob(length(payload)) WHERE offset IN (10, 11, 40)")
        db.close()
        await asyncio.to_thread(bus.start)
        plain = WithRecords()
        async with running(named(plain, "plain"), bus.address):
            await until(lambda: "plain" in receipts(bus, "r"))
        said = receipts(bus, "r")["plain"]
        assert not said.complete
        assert sum((t.published or 0) - t.received for t in said.topics.values()) == 3
        assert [(loss.first, loss.last) for loss in said.journal_losses] == [(10, 11), (40, 40)]
        assert "3 events do not match their checksums" in (bus.directory / "bus.log").read_text()


class Failing(WithRecords):
    """Takes no event."""

    async def on_phase_start(self, event: PhaseStart) -> None:
        raise RuntimeError("no luck today")


async def test_a_dead_letter_whose_event_is_lost(bus: LiveBus) -> None:
    """It is not retried on the event that is at its offset now."""
    async with load(bus) as source:
        async with running(named(Failing(), "failing"), bus.address):
            await source.publish(3)
            await until(lambda: len(letters(bus)) == 3)
        await asyncio.to_thread(bus.kill)
        (bus.directory / "journal" / f"{FILE_NAME}-wal").write_bytes(b"")
        await asyncio.to_thread(bus.start)
        async with running(named(Failing(), "failing"), bus.address):
            await source.publish(1)
            await until(lambda: len(letters(bus)) == 1)
    (letter,) = letters(bus)
    with bus.reader() as reader:
        assert event_of(reader, letter) == start(3)
        for lost in (Position(letter.stream, 99), Position("e" * 32, letter.offset)):
            moved = msgspec.structs.replace(letter, stream=lost.stream, offset=lost.offset)
            with pytest.raises(PhaseBusError, match=r"has lost its event .* cannot be retried"):
                event_of(reader, moved)
    assert "acknowledged 6 events of publisher" in (bus.directory / "bus.log").read_text()


def letters(bus: LiveBus) -> list[DeadLetter]:
    with bus.reader() as reader:
        return reader.dead_letters("failing")


@pytest.mark.parametrize("durability", ["write", "fsync"])
def test_what_is_acknowledged_is_as_durable_as_was_asked_for(
    tmp_path: Path, ipc_dir: Path, durability: str
) -> None:
    """By the system calls of the bus's loop: one sync for each turn's events, or none."""
    options = ("--durability", durability, "--data", str(tmp_path / "journal"), "--heartbeat-s", "60")
    log, calls = tmp_path / "bus.log", tmp_path / "calls"
    # The tracer is the grandchild, so that it is the bus that is killed at the end.
    strace = ("strace", "-D", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(calls))
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    with (
        BusProcess(log, f"ipc://{ipc_dir}", options=options, under=strace),
        Publisher(f"ipc://{ipc_dir}") as publisher,
    ):
        before = 0
        for number in range(6):
            publisher.publish(start(number))
            assert publisher.flush(20)
            before = before or len(calls.read_text().splitlines())  # with the first the log is begun
        synced = len(calls.read_text().splitlines()) - before
    assert synced >= 5 if durability == "fsync" else synced == 0
