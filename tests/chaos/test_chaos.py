"""One run in which the bus, consumers and the publisher's connection are killed at random.

The seed is printed; ``PHASE_BUS_CHAOS_SEED`` sets it. ``PHASE_BUS_CHAOS_RECORDS`` and
``PHASE_BUS_CHAOS_KILLS`` make it longer. The order of the kills and the pauses between them are the
seed's; what each of them hits is up to the machine.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event
from phase_bus.errors import BusUnreachableError
from phase_bus.events import Receipt, Records, RunComplete
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry
from phase_bus.testing.waiting import wait_until
from tests.support.postgres import Postgres
from tests.support.processes import Forwarder, JournaledBus, Killable, consumer
from tests.support.writers import read_lines

RECORDS = int(os.environ.get("PHASE_BUS_CHAOS_RECORDS", "200000"))
KILLS = int(os.environ.get("PHASE_BUS_CHAOS_KILLS", "32"))
SEED = int(os.environ.get("PHASE_BUS_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
PHASE_EVENTS = max(1050, RECORDS // 200)
PAUSE_S = (0.4, 1.6)  # between two kills
DOWN_S = (0.0, 1.0)
RATE = RECORDS / (KILLS * (sum(PAUSE_S) + sum(DOWN_S)) / 2)  # so that the run lasts as long as the kills
RUN = "chaos"
TIMEOUT_S = 120.0 + 4 * RECORDS / RATE

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S + 60)]


class World:
    """Everything that runs, and what is done to it."""

    def __init__(self, bus: JournaledBus, publisher: Killable, consumers: dict[str, Killable]) -> None:
        self.bus, self.publisher, self.consumers = bus, publisher, consumers
        self.forwarder: Forwarder | None = None
        self.kills: Counter[str] = Counter()
        self.random = random.Random(SEED)

    def kill_something(self) -> None:
        """Kill one, and start it again a little later."""
        victim = self.random.choice(["bus", "publisher's connection", *self.consumers])
        down_s = self.random.uniform(*DOWN_S)
        self.kills[victim] += 1
        if victim == "publisher's connection":
            assert self.forwarder is not None
            self.forwarder.cut()
            time.sleep(down_s)
            self.forwarder.open()
            return
        process = self.bus if victim == "bus" else self.consumers[victim]
        assert process.runs, f"it died by itself: {process.tail()}"
        process.kill()
        time.sleep(down_s)
        process.start()

    def wreak_havoc(self) -> None:
        """Kill, until the publisher is done and there have been enough."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.publisher.runs or self.kills.total() < KILLS:
            assert time.monotonic() < deadline_s, f"{self.publisher.tail()}\n{self.bus.tail()}"
            time.sleep(self.random.uniform(*PAUSE_S))
            self.kill_something()
        assert self.publisher.process.returncode == 0, self.publisher.tail()

    def await_end(self) -> None:
        """Wait until each consumer says that it handled the run."""

        def handled() -> bool:
            for process in (self.bus, *self.consumers.values()):
                assert process.runs, process.tail()
            with BusClient(Address.parse(self.bus.address)) as client:
                try:
                    infos = client.status().clients
                except BusUnreachableError:
                    return False
            done = {info.pid for info in infos if RUN in info.handled_runs}
            return {process.pid for process in self.consumers.values()} <= done

        try:
            wait_until(handled, TIMEOUT_S)
        except AssertionError:
            logs = "\n".join(p.tail() for p in (self.bus, *self.consumers.values()))
            raise AssertionError(logs) from None


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """An empty database on a real PostgreSQL; its URL."""
    name = f"chaos_{os.getpid()}"
    url = postgres.url().replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield postgres.url(name)
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def test_nothing_is_lost(tmp_path: Path, ipc_dir: Path, database: str) -> None:
    """Each consumer has every event: once where it is exactly-once, else at least once and in order."""
    print(f"PHASE_BUS_CHAOS_SEED={SEED}")
    begin_s = time.monotonic()
    world = run_world(tmp_path, ipc_dir, database)
    print(f"{world.kills.total()} kills in {time.monotonic() - begin_s:.1f} s: {dict(world.kills)}")
    assert world.kills.total() >= KILLS
    with JournalReader(world.bus.directory) as journal:
        assert journal.verify() == []
        entries = read_all(journal)
        check_journal(entries)
        receipts = journal.events(RUN, Receipt)
    repetitions = check_lines(read_lines(tmp_path / "checking.txt"), entries)
    print(f"{len(entries)} events; {repetitions} handled again by the at-least-once consumer")
    check_database(database, entries)
    check_summary(entries)
    check_receipts(receipts, set(world.consumers), entries)


def run_world(tmp_path: Path, ipc_dir: Path, database: str) -> World:
    """Run everything to the end."""
    with ExitStack() as stack:
        # Nobody shall give the publisher up while it, or the bus, is being killed.
        bus = JournaledBus(
            tmp_path, "tcp://127.0.0.1:0", f"ipc://{ipc_dir}", options=("--silent-after-s", "60")
        )
        stack.callback(bus.kill)
        tcp, ipc = bus.addresses
        forwarder = stack.enter_context(Forwarder(Address.parse(tcp).port))
        checking = "tests.support.writers:Checking"
        consumers = {
            "checking": consumer(tmp_path, checking, ipc, f"output={tmp_path / 'checking.txt'}"),
            "sql": consumer(tmp_path, "sql", tcp, f"url={database}"),
            "aggregator": consumer(tmp_path, "aggregator", ipc, f"output={tmp_path / 'summary.json'}"),
        }
        for process in consumers.values():
            stack.enter_context(process)
        arguments = (f"tcp://127.0.0.1:{forwarder.port}", RUN, RECORDS, PHASE_EVENTS, RATE)
        publisher = Killable(tmp_path / "publisher.log", "-m", "tests.chaos.publish", *map(str, arguments))
        stack.enter_context(publisher)
        world = World(bus, publisher, consumers)
        world.forwarder = forwarder
        world.wreak_havoc()
        world.await_end()
        for process in consumers.values():
            assert process.terminate() == 0, process.tail()
        assert bus.terminate() == 0, bus.tail()
        return world


def read_all(journal: JournalReader) -> list[Entry]:
    """Return all events of the run, in order."""
    entries: list[Entry] = []
    while more := journal.read(entries[-1].offset if entries else 0, records=True, run_id=RUN):
        entries += more
    return entries


def check_journal(entries: list[Entry]) -> None:
    """The journal has all that was published, once and in order."""
    source = entries[0].source
    published = [entry for entry in entries if entry.source == source]
    assert [entry.source_seq for entry in published] == list(range(1, len(published) + 1))
    end = decode_event(published[-1].topic, published[-1].payload)
    assert isinstance(end, RunComplete)
    assert (end.status, end.records, end.dropped) == ("completed", RECORDS, {})
    topics = Counter(entry.topic.decode() for entry in published[:-1])
    assert topics == end.published
    assert sum(entry.kind.startswith("phase_") for entry in published) >= 1000
    numbers = []
    for entry in published:
        if isinstance(event := decode_event(entry.topic, entry.payload), Records):
            numbers += RecordBatch(event).values("session_num").tolist()
    assert np.array_equal(numbers, np.arange(RECORDS))


def check_lines(lines: list[tuple[int, str, int]], entries: list[Entry]) -> int:
    """At least once, in order; after a restart again from an earlier place. Return the repetitions."""
    wanted = [(entry.offset, entry.topic.decode(), entry.records) for entry in entries]
    # The receipts come after the run's end, and need not have been handled when it all was stopped.
    last = max(i for i, entry in enumerate(entries) if entry.kind == RunComplete.kind)
    place = {offset: index for index, (offset, _, _) in enumerate(wanted)}
    before = -1
    seen: set[int] = set()
    for line in lines:
        if line[1].partition(".")[2] != f"{RUN}$" and not line[1].startswith("records."):
            continue
        index = place[line[0]]
        assert line == wanted[index]
        assert index <= before + 1, f"a hole before offset {line[0]}"
        seen.add(index)
        before = index
    assert set(range(last + 1)) <= seen
    return len(lines) - len(seen)


def check_database(url: str, entries: list[Entry]) -> None:
    """Each event and each record is one row."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))

    def ask(text: str) -> list[Any]:
        with engine.connect() as connection:
            return list(connection.execute(sa.text(text)))

    try:
        (row,) = ask(
            "SELECT count(*), count(DISTINCT session_num), min(session_num), max(session_num)"
            " FROM phase_bus_records"
        )
        assert tuple(row) == (RECORDS, RECORDS, 0, RECORDS - 1)
        rows = [row[0] for row in ask("SELECT stream_offset FROM phase_bus_events ORDER BY 1")]
        end = max(entry.offset for entry in entries if entry.kind == RunComplete.kind)
        wanted = [entry.offset for entry in entries if entry.kind != Records.kind and entry.offset <= end]
        assert [offset for offset in rows if offset <= end] == wanted
        assert ask("SELECT status, records FROM phase_bus_runs") == [("completed", RECORDS)]
    finally:
        engine.dispose()


def check_summary(entries: list[Entry]) -> None:
    """The aggregator's state has each record once, although it lives in memory."""
    summaries = [decode_event(e.topic, e.payload) for e in entries if e.kind == "summary"]
    (*_, last) = (summary for summary in summaries if getattr(summary, "final", False))
    result = getattr(last, "result", {})
    assert result["records"] == RECORDS, result.keys()


def check_receipts(receipts: list[Receipt], names: set[str], entries: list[Entry]) -> None:
    """The last receipt of each consumer says that it handled all that was published."""
    last = {receipt.consumer: receipt for receipt in receipts}
    assert set(last) == names
    for receipt in last.values():
        assert receipt.complete, receipt
        records = [t for topic, t in receipt.topics.items() if topic.startswith("records.")]
        batches = sum(entry.kind == Records.kind for entry in entries)
        if records:
            assert sum(t.handled for t in records) == batches == sum(t.received for t in records)
