"""A journal that cannot be written: nothing is acknowledged, nothing is lost, and runs still end."""

from __future__ import annotations

import resource
import threading
import time
from pathlib import Path

import pytest

from phase_bus.core.control import Ack, Goodbye, Hello, Refused, Welcome
from phase_bus.errors import JournalError
from phase_bus.events import Receipt, RunComplete, RunStart
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import wait_until
from tests.support.buses import DurableBus
from tests.support.clients import SOURCE, RawClient, Subscriber
from tests.support.processes import JournaledBus
from tests.support.recorder import PHASE, start

pytestmark = pytest.mark.usefixtures("no_leaks")
RAW = Hello(client_id=SOURCE.hex(), role="publisher", name="raw")


def test_a_full_disk(ipc_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The publisher hears of it and keeps everything; once there is room again, all of it arrives, once."""
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


def test_refused_over_another_connection(kept: DurableBus) -> None:
    """A publisher that was reconnected without noticing gets no acknowledgement either."""
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


def test_an_event_that_cannot_be_judged(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the journal, by which an event is judged, cannot be read, it is not taken for kept."""
    has_run = kept.journal.has_run
    asked: list[str] = []

    def fails_once(run_id: str) -> bool:
        asked.append(run_id)
        if len(asked) == 2:
            raise JournalError(kept.data, "the disk cannot be read", "look at it")
        return has_run(run_id)

    monkeypatch.setattr(kept.journal, "has_run", fails_once)
    with RawClient(kept.address) as client:
        assert isinstance(client.ask(RAW), Welcome)
        receipt = Receipt(run_id="gone", consumer="c")
        client.publish(receipt, SOURCE, 1)
        assert client.reply() == Ack(seq=0)
        client.publish(receipt, SOURCE, 1)
        assert client.reply() == Ack(seq=1)
    assert len(asked) > 2


def test_refused_with_a_hole(kept: DurableBus) -> None:
    """What was taken in before a gap, in the same turn, is not acknowledged unless it is in the journal."""
    with RawClient(kept.address) as client:
        assert isinstance(client.ask(RAW), Welcome)
        with kept.full():
            commit = kept.bus._ingest.commit
            hold = threading.Event()
            kept.bus._ingest.commit = lambda: hold.wait(5) and commit()  # type: ignore[method-assign]
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
                del kept.bus._ingest.commit
        for reply in replies:
            assert isinstance(reply, Ack | Refused)
            assert reply.seq == 0


def test_a_lost_run_while_the_disk_is_full(kept: DurableBus) -> None:
    """A run always ends: as soon as its end can be written to the journal."""
    with Subscriber(kept.address, "run_complete.") as subscriber, RawClient(kept.address) as client:
        client.ask(RAW)
        client.publish(RunStart(run_id="r"), SOURCE, 1)
        assert client.reply() == Ack(seq=1)
        with kept.full():
            client.ask(Goodbye(client_id=SOURCE.hex()))
            assert client.status().runs[0].status == "running"
            assert not subscriber.of(RunComplete)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        assert (end.status, end.published) == ("lost", {"run_start.r$": 1})
        assert client.status().runs[0].status == "lost"


def test_a_lost_run_goes_on_at_the_next_bus(kept: DurableBus) -> None:
    """The run is its publisher's, not that of the bus which said that it was lost."""
    with RawClient(kept.address) as client:
        client.ask(RAW)
        client.publish(RunStart(run_id="r"), SOURCE, 1)
        assert client.reply() == Ack(seq=1)
        client.ask(Goodbye(client_id=SOURCE.hex()))
        assert client.status().runs[0].status == "lost"
    kept.close()
    kept.open()
    with RawClient(kept.address) as client:
        client.ask(RAW)
        client.publish(start(2), SOURCE, 2, 1)
        assert client.reply() == Ack(seq=2)
        (run,) = client.status().runs
        assert (run.status, run.events) == ("running", 2)
        client.ask(Goodbye(client_id=SOURCE.hex()))
        assert client.status().runs[0].status == "lost"
