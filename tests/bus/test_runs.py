"""The truth of a run: several publishers, those that vanish and come back, and ids used again."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from phase_bus.bus.options import BusOptions
from phase_bus.core.address import Address
from phase_bus.core.control import Ack, Goodbye, Hello, RunInfo, Welcome
from phase_bus.events import Drop, EventBase, PhaseRef, PhaseStart, Receipt, RunComplete, RunStart
from phase_bus.harness.replayer import Replayer
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader, PublishedInJournal
from phase_bus.publisher.publisher import Publisher
from phase_bus.publisher.spool import deliver_spool
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread, DurableBus
from tests.support.clients import RawClient, Subscriber

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASE = PhaseRef("profiling")
QUICK = BusOptions(heartbeat_s=0.05, silent_after_s=0.3)


class Source(RawClient):
    """A publisher that sends what a test wants, numbered as it should be, each event acknowledged."""

    def __init__(self, address: str, name: str = "source") -> None:
        super().__init__(address)
        self.id = uuid.uuid4().bytes
        self._name = name
        self._seq = 0
        self._topic_seqs: Counter[str] = Counter()
        self.greet()

    def greet(self) -> None:
        """Say hello."""
        hello = Hello(client_id=self.id.hex(), role="publisher", name=self._name)
        self.socket.send(_encode(hello))
        while not isinstance(self.reply(), Welcome):
            pass

    def say(self, *events: EventBase) -> None:
        """Publish events, and wait until the bus has them."""
        for event in events:
            self._seq += 1
            self._topic_seqs[event.kind + event.run_id] += 1
            self.publish(event, self.id, self._seq, self._topic_seqs[event.kind + event.run_id])
            while self.reply() != Ack(seq=self._seq):
                pass

    def leave(self, *, lacking: int = 0) -> None:
        """Say goodbye, with so much not sent."""
        self.socket.send(_encode(Goodbye(client_id=self.id.hex(), last_seq=self._seq + lacking)))
        self.reply()


def _encode(message: Hello | Goodbye) -> bytes:
    from phase_bus.core.wire import encode_control

    return encode_control(message)


def start(run_id: str = "r") -> RunStart:
    return RunStart(run_id=run_id)


def phase(run_id: str = "r") -> PhaseStart:
    return PhaseStart(run_id=run_id, phase=PHASE)


def complete(published: int, run_id: str = "r", status: str = "completed") -> RunComplete:
    """The end of a publisher that published a start and so many phases."""
    counts = {f"run_start.{run_id}$": 1, f"phase_start.{run_id}$": published}
    return RunComplete(run_id=run_id, status=status, published=counts)  # type: ignore[arg-type]


def runs(client: RawClient) -> dict[str, str]:
    """The status of each run."""
    return {run.run_id: run.status for run in client.status().runs}


def run_info(client: RawClient, run_id: str = "r") -> RunInfo:
    return next(run for run in client.status().runs if run.run_id == run_id)


@pytest.fixture
def durable(ipc_dir: Path, tmp_path: Path) -> Iterator[DurableBus]:
    bus = DurableBus(ipc_dir, tmp_path / "journal", QUICK)
    yield bus
    bus.close()


def test_a_run_of_several_publishers_ends_with_the_last_one(bus: BusThread) -> None:
    """Each end says how many go on; the last one is the run's, with the totals and each one's part."""
    with (
        Subscriber(bus.address, "run_complete.") as subscriber,
        Source(bus.address, "main") as main,
        Source(bus.address, "other") as other,
        Source(bus.address, "worker") as worker,
    ):
        main.say(start(), phase())
        other.say(start(), phase(), phase())
        worker.say(phase(), Drop(run_id="r", source="worker", reason="full", events={"x": 2}, records=9))
        main.say(complete(1))
        assert runs(main) == {"r": "running"}
        worker.leave()
        other.say(complete(2))
        info = run_info(main)
        first, last = wait_until(lambda: len(ends := subscriber.of(RunComplete)) == 2 and ends)
    assert (first.running, last.running, last.status) == (2, 0, "completed")
    assert last.published == {"run_start.r$": 2, "phase_start.r$": 4, "drop.r$": 1}
    assert (last.dropped, last.dropped_records) == ({"x": 2}, 9)
    parts = {part.publisher: (part.status, sum(part.published.values())) for part in last.parts.values()}
    assert parts == {"main": ("completed", 2), "other": ("completed", 3), "worker": ("completed", 2)}
    assert (info.status, info.publisher, info.dropped_records) == ("completed", "main +2", 9)


def test_the_end_of_one_publisher_is_passed_on_as_it_came(bus: BusThread) -> None:
    with Subscriber(bus.address, "run_complete.") as subscriber, Source(bus.address) as source:
        end = complete(0)
        source.say(start(), end)
        assert wait_until(lambda: subscriber.of(RunComplete)) == [end]


@pytest.mark.parametrize(
    ("worker_lacks", "main", "outcome"),
    [
        (0, "completed", "completed"),
        (0, "failed", "failed"),
        (1, "completed", "lost"),
        (1, "failed", "failed"),
    ],
)
def test_the_worst_part_is_the_status(bus: BusThread, worker_lacks: int, main: str, outcome: str) -> None:
    """The bus ends the run when its last publisher leaves; one that took something with it is lost."""
    with (
        Subscriber(bus.address, "run_complete.") as subscriber,
        Source(bus.address) as source,
        Source(bus.address) as worker,
    ):
        source.say(start())
        worker.say(phase())
        source.say(complete(0, status=main))
        worker.leave(lacking=worker_lacks)
        ends = wait_until(lambda: len(ends := subscriber.of(RunComplete)) == 2 and ends)
    assert [(end.running, end.status) for end in ends] == [(1, main), (0, outcome)]
    assert ends[1].published == {"run_start.r$": 1, "phase_start.r$": 1}


def test_a_worker_may_come_before_the_run_is_begun_and_after_it_has_ended(bus: BusThread) -> None:
    """One that has left does not end the run; one that is late opens it again, and ends it with all."""
    with (
        Subscriber(bus.address, "run_complete.") as subscriber,
        Source(bus.address) as early,
        Source(bus.address) as source,
        Source(bus.address) as late,
    ):
        early.say(phase())
        early.leave()
        assert runs(source) == {"r": "running"}
        source.say(start(), complete(0))
        assert runs(source) == {"r": "completed"}
        late.say(phase())
        assert runs(source) == {"r": "running"}
        late.leave()
        ends = wait_until(lambda: len(ends := subscriber.of(RunComplete)) == 2 and ends)
        assert runs(source) == {"r": "completed"}
    assert [end.published["phase_start.r$"] for end in ends] == [1, 2]


def test_a_vanished_worker_makes_the_run_lost_and_mends_it_when_it_is_back(durable: DurableBus) -> None:
    """Its part is lost, and the run with it, until it comes back, also to the next bus."""
    with (
        Subscriber(durable.address, "run_complete.") as subscriber,
        Publisher(durable.address) as publisher,
    ):
        publisher.publish(start())
        assert publisher.flush(10)
        with Source(durable.address) as worker:
            worker.say(phase())
            wait_until(lambda: ("source", "silent") in {(c.name, c.state) for c in worker.status().clients})
            assert runs(worker) == {"r": "running"}
            publisher.complete_run("r", "completed")
            (lost,) = wait_until(lambda: subscriber.of(RunComplete))
            assert (lost.status, lost.running) == ("lost", 0)
            durable.close()
            durable.open()
            assert runs(worker) == {"r": "lost"}
            worker.greet()
            worker.say(phase())
            assert runs(worker) == {"r": "running"}
            worker.leave()
            assert runs(worker) == {"r": "completed"}
    with JournalReader(durable.data) as reader:
        end = reader.events("r", RunComplete)[-1]
    assert (end.status, end.published) == ("completed", {"run_start.r$": 1, "phase_start.r$": 2})


def test_an_id_that_is_used_again_is_another_attempt(durable: DurableBus) -> None:
    """Told apart everywhere, by whomever it is begun again, also by the bus that comes next."""
    with Source(durable.address) as first, Source(durable.address) as second:
        first.say(start(), phase(), complete(1))
        first.say(start(), phase(), phase(), complete(2))
        second.say(start(), phase())
        first.say(Receipt(run_id="r", consumer="c"))
        durable.close()
        durable.open()
        second.greet()
        second.say(phase(), phase(), complete(3))
        assert runs(second) == {"r": "completed", "r#2": "completed", "r#3": "completed"}
        second.say(start(), complete(0))
        assert runs(second)["r#4"] == "completed"
    with JournalReader(durable.data) as reader:
        ends = {run_id: reader.events(run_id, RunComplete) for run_id in ("r", "r#2", "r#3", "r#4")}
        streams = {(s.topic, s.events) for s in reader.streams("r#3")}
        assert not reader.events("r", Receipt)
        assert reader.events("r#2", Receipt)
        seqs = [entry.topic for entry in reader.entries("r#2")]
    assert {run_id: [end.run_id for end in found] for run_id, found in ends.items()} == {
        r: [r] for r in ends
    }
    assert ends["r#2"][0].published == {"run_start.r#2$": 1, "phase_start.r#2$": 2}
    assert ends["r#3"][0].published == {"run_start.r#3$": 1, "phase_start.r#3$": 3}
    assert streams == {(b"run_start.r#3$", 1), (b"phase_start.r#3$", 3), (b"run_complete.r#3$", 1)}
    assert len(seqs) == 5


def test_numbers_on_a_topic_begin_anew_with_each_attempt(bus: BusThread) -> None:
    """Else a consumer would miss what was published in the attempt before."""
    with Subscriber(bus.address) as subscriber, Source(bus.address) as source:
        for _ in range(3):
            source.say(start(), phase(), phase(), complete(2))
        wait_until(lambda: len(subscriber.read()) == 12)
    assert [header.topic_seq for header in subscriber.headers] == [1, 1, 2, 1] * 3
    run_ids = [event.run_id for event in subscriber.events if event is not None]
    assert run_ids == ["r"] * 4 + ["r#2"] * 4 + ["r#3"] * 4


def test_a_lost_run_that_goes_on_is_no_new_attempt(bus: BusThread) -> None:
    """Its publisher is back: whatever it says is of the run that was lost."""
    with Source(bus.address) as source:
        source.say(start())
        source.leave()
        assert runs(source) == {"r": "lost"}
        source.greet()
        source.say(start(), phase(), complete(1))
        assert runs(source) == {"r": "completed"}


def test_ends_that_the_bus_had_no_time_to_note(durable: DurableBus) -> None:
    """A bus that was killed before it could note an end that the journal has knows it all the same."""
    durable.bus._runs._journal = None  # nothing is noted from now on
    with Source(durable.address) as source, Source(durable.address) as other:
        source.say(start("a"), phase("a"), complete(1, "a"))
        source.say(start("b"))
        other.say(phase("b"))
        source.say(complete(0, "b"))
        durable.close()
        durable.open()
        assert runs(source) == {"a": "completed", "b": "running"}
        other.greet()
        other.say(phase("b"))
        other.leave()
        assert runs(source)["b"] == "completed"


def test_a_note_that_is_damaged(durable: DurableBus) -> None:
    """A bus that cannot read its own note of a run starts, and goes by the run's events."""
    with Source(durable.address) as source:
        source.say(start("a"), phase("a"), complete(1, "a"))
        source.say(start("b"))
        durable.close()
        with closing(sqlite3.connect(durable.data / FILE_NAME)) as db:
            db.execute("UPDATE runs SET parts = ?", (b"\x91" * 5000,))
            db.commit()
        durable.open()
        assert runs(source) == {"a": "completed", "b": "running"}


def _work(address: str, number: int) -> None:
    """A process of a load generator."""
    publisher = Publisher(address, name=f"worker {number}")
    for request in range(100 + number):
        publisher.record("r", PHASE, {"n": request}, {})


def test_processes_of_multiprocessing_deliver_what_they_have(bus: BusThread) -> None:
    """They need not close their publishers; the fork of a publisher's process changes nothing."""
    context = multiprocessing.get_context("fork")
    with Subscriber(bus.address, "run_complete.") as subscriber, Publisher(bus.address) as publisher:
        publisher.publish(start())
        workers = [context.Process(target=_work, args=(bus.address, number)) for number in range(2)]
        for worker in workers:
            worker.start()
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        for worker in workers:
            worker.join(20)
            assert worker.exitcode == 0
            worker.close()
        publisher.record("r", PHASE, {"n": 1}, {})
        publisher.complete_run("r", "completed")
        end = wait_until(lambda: [e for e in subscriber.of(RunComplete) if not e.running])[0]
    assert (end.status, end.records) == ("completed", 202)
    assert sorted(part.records for part in end.parts.values()) == [1, 100, 101]


def test_a_run_of_several_publishers_is_one_publishers_at_another_bus(
    durable: DurableBus, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A replay has the totals and the last end, though that was the bus's own and not the publishers'."""
    with (
        Source(durable.address) as main,
        Source(durable.address) as worker,
        Source(durable.address) as lost,
    ):
        main.say(start(), phase(), start("gone"))
        worker.say(phase(), phase())
        main.say(complete(1))
        worker.leave()
        lost.say(phase("gone"), complete(1, "gone"))
        assert runs(main) == {"r": "completed", "gone": "running"}
        main.leave()
        assert runs(lost) == {"r": "completed", "gone": "lost"}
    other = DurableBus(tmp_path_factory.mktemp("o"), tmp_path / "other", QUICK)
    try:
        with JournalReader(durable.data) as reader:
            published = PublishedInJournal(reader, ["r", "gone"])
            replayer = Replayer(
                Address.parse(other.address), speed=None, run_id=None, on_sent=lambda _: None
            )
            replayer.publish(published)
            assert replayer.events == published.count
        with RawClient(other.address) as client:
            wait_until(lambda: runs(client) == {"r": "completed", "gone": "lost"})
    finally:
        other.close()
    with JournalReader(other.data) as reader:
        (end,) = reader.events("r", RunComplete)
        (gone,) = reader.events("gone", RunComplete)
    assert (end.running, end.published) == (0, {"run_start.r$": 1, "phase_start.r$": 3})
    assert gone.published == {"run_start.gone$": 1, "phase_start.gone$": 1}


def test_a_workers_spool_completes_the_run(durable: DurableBus, tmp_path: Path) -> None:
    """What a worker could not deliver is missing until its spool file is, and then all is there."""
    with Publisher(durable.address) as main:
        main.publish(start())
        assert main.flush(10)
        worker = Publisher(durable.address, spool_dir=tmp_path / "spool")
        worker.record("r", PHASE, {"n": 1}, {})
        assert worker.flush(10)
        durable.close()
        for number in range(1000):
            worker.record("r", PHASE, {"n": number}, {})
        worker.close(0.0)
        durable.open()
        main.complete_run("r", "completed")
        assert main.flush(20)
        with RawClient(durable.address) as client:
            wait_until(lambda: runs(client) == {"r": "lost"})
            assert worker.spooled is not None
            report = deliver_spool(worker.spooled, durable.address)
            assert report.complete
            wait_until(lambda: runs(client) == {"r": "completed"})
    with JournalReader(durable.data) as reader:
        end = reader.events("r", RunComplete)[-1]
    assert (end.records, sorted(part.records for part in end.parts.values())) == (1001, [0, 1001])
