"""What is larger than the bus takes: batches are split, and of the rest the event alone is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phase_bus.bus.options import BusOptions
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event
from phase_bus.events import Drop, Records, RunComplete, RunStart
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import wait_until
from tests.support.buses import DurableBus
from tests.support.recorder import PHASE, start

pytestmark = pytest.mark.usefixtures("no_leaks")

LARGEST = 50_000


@pytest.fixture
def small(ipc_dir: Path, tmp_path: Path) -> Iterator[DurableBus]:
    """A bus that takes small messages."""
    options = BusOptions(heartbeat_s=0.1, max_message_bytes=LARGEST)
    with DurableBus(ipc_dir, tmp_path / "journal", options) as bus:
        yield bus


def connected(bus: DurableBus) -> Publisher:
    """Return a publisher that knows what the bus takes."""
    publisher = Publisher(bus.address, batch_records=256, batch_s=5.0, lists="full")
    wait_until(lambda: publisher.connected)
    return publisher


def test_an_event_that_is_too_large(small: DurableBus, caplog: pytest.LogCaptureFixture) -> None:
    """Those before and after it come, everybody is told, and its publisher says how large it was."""
    with connected(small) as publisher:
        publisher.publish(start(1))
        publisher.publish(RunStart(run_id="r", producer="x" * (10 * LARGEST)))
        for number in range(2, 100):
            publisher.publish(start(number))
        publisher.complete_run("r", "completed")
        assert publisher.flush(20)
    assert "--max-message-bytes" in caplog.text
    with JournalReader(small.data) as journal:
        events = [decode_event(entry.topic, entry.payload) for entry in journal.entries()]
        assert len([event for event in events if event is not None and event.kind == "phase_start"]) == 99
        (drop,) = journal.events("r", Drop)
        assert drop.events == {"run_start.r$": 1}
        assert "--max-message-bytes" in drop.reason
        (end,) = journal.events("r", RunComplete)
        assert end.published["run_start.r$"] == 1
    with BusClient(Address.parse(small.address)) as client:
        assert [(each.reason, each.count) for each in client.status().rejected] == [("message_size", 1)]


def batches_in(journal: JournalReader) -> list[Records]:
    """Return the batches of records."""
    events = [decode_event(entry.topic, entry.payload) for entry in journal.entries()]
    return [event for event in events if isinstance(event, Records)]


def test_a_batch_that_is_too_large(small: DurableBus) -> None:
    """It is split until its parts fit; each record comes once, in order, with its error."""
    with connected(small) as publisher:
        for number in range(256):
            error = ("Timeout", f"of {number}", None) if number % 10 == 0 else None
            publisher.record(
                "r", PHASE, {"n": number, "all": [float(number)] * 100}, {"id": f"x{number}"}, error
            )
        publisher.complete_run("r", "completed")
        assert publisher.flush(20)
    with JournalReader(small.data) as journal:
        batches = batches_in(journal)
        (end,) = journal.events("r", RunComplete)
        assert not journal.events("r", Drop)
    assert len(batches) > 4
    records = [record for batch in batches for record in RecordBatch(batch)]
    assert [record["n"] for record in records] == list(range(256))
    assert [r["n"] for r in records if r.get("error")] == list(range(0, 256, 10))
    assert end.records == 256
    assert sum(n for topic, n in end.published.items() if topic.startswith("records.")) == len(batches)


def test_a_record_that_is_too_large(small: DurableBus) -> None:
    """It is lost alone, and counted; all others of its batch come."""
    with connected(small) as publisher:
        for number in range(64):
            size = LARGEST if number == 40 else 1
            publisher.record("r", PHASE, {"n": number}, {"text": "x" * size})
        publisher.complete_run("r", "completed")
        assert publisher.flush(20)
    with JournalReader(small.data) as journal:
        batches = batches_in(journal)
        (drop,) = journal.events("r", Drop)
    numbers = [record["n"] for batch in batches for record in RecordBatch(batch)]
    assert numbers == [number for number in range(64) if number != 40]
    assert drop.records == 1
