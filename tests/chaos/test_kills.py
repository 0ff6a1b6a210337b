"""Bus and consumers killed at any moment: nothing is lost, and exactly once is exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest

from phase_bus.events import Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until, wait_until
from tests.support.clients import Subscriber
from tests.support.processes import JournaledBus, consumer
from tests.support.recorder import PHASE, WithRecords, running, start
from tests.support.writers import read_lines

pytestmark = pytest.mark.usefixtures("no_leaks")


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
    kind = "tests.support.writers:Checking"
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
    """Data and offset in one transaction: kills leave neither a missing nor a duplicate row."""
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}")
    output = tmp_path / "once.db"
    once = consumer(tmp_path, "tests.support.writers:Once", bus.address, f"output={output}")

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
