"""What a consumer can rely on, the same on the in-memory bus, on a real one, and on a stream in NATS.

A case that does not hold on the in-memory bus is a defect of that: tests of consumers believe it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.position import Position
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import topic_of
from phase_bus.errors import ConfigError, NameTakenError, OptionError
from phase_bus.events import (
    KINDS,
    Drop,
    EventBase,
    Heartbeat,
    PhaseComplete,
    PhaseStart,
    PhaseTimeout,
    Receipt,
    Records,
    RunComplete,
    RunStart,
    Summary,
    Verdict,
)
from phase_bus.testing import (
    PROFILING,
    RUN_ID,
    LiveBus,
    MemoryBus,
    MemoryRun,
    make_event,
    make_records,
    make_run,
    until,
)
from tests.support.stream_bus import StreamBus

pytestmark = pytest.mark.usefixtures("no_leaks")

AnyBus: TypeAlias = MemoryBus | LiveBus  # that of a stream is one in memory that forwards


@pytest.fixture(
    params=["memory", *(pytest.param(each, marks=pytest.mark.slow) for each in ("live", "stream"))]
)
def bus(request: pytest.FixtureRequest) -> Iterator[AnyBus]:
    """Each of the three."""
    if request.param == "memory":
        yield MemoryBus()
    elif request.param == "live":
        with LiveBus() as live:
            yield live
    else:
        with StreamBus(request.getfixturevalue("nats").url) as stream:
            yield stream


class Recorder(Consumer):
    """Remembers everything, and does more with some if the test wants."""

    def __init__(self, then: Callable[[EventBase], None] | None = None) -> None:
        self.events: list[EventBase] = []
        self.offsets: list[int] = []
        self.calls: list[str] = []
        self._then = then

    async def start(self) -> None:
        self.calls.append("start")

    async def flush(self) -> None:
        self.calls.append("flush")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def on_event(self, event: EventBase) -> None:
        self.offsets.append(self.offset)
        self.events.append(event)
        if self._then is not None:
            self._then(event)


class Counting(Consumer):
    """Counts records; its count is its state."""

    def __init__(self) -> None:
        self.records = 0
        self.restored = -1
        self.flush_fails = False

    async def on_records(self, event: Records) -> None:
        self.records += event.count

    async def flush(self) -> None:
        if self.flush_fails:
            raise OSError("disk full")

    def state(self) -> bytes:
        return str(self.records).encode()

    def restore(self, state: bytes) -> None:
        self.records = self.restored = int(state)


def of_test(consumer: Recorder) -> list[EventBase]:
    """Return what the test published, in the order in which it was handled."""
    return [event for event in consumer.events if not isinstance(event, Receipt)]


async def test_a_whole_run_arrives_in_order(bus: AnyBus) -> None:
    """Every event, once, equal to what was published, with its place; then the receipt says so."""
    events = make_run(records=100, batch_records=16)
    bus.publish(*events)
    run = await bus.run_consumer(Recorder())
    assert [plain(event) for event in of_test(run.consumer)] == [plain(event) for event in events]
    assert run.consumer.offsets[: len(events)] == list(range(1, len(events) + 1))
    assert run.receipt.complete
    topics = Counter(topic_of(event).decode() for event in events)
    del topics[f"run_complete.{RUN_ID}$"]
    assert {name: topic.handled for name, topic in run.receipt.topics.items()} == topics
    assert run.consumer.calls[0] == "start"
    assert run.consumer.calls[-2:] == ["flush", "stop"]


def plain(event: EventBase) -> object:
    """Return an event so that two can be compared: records row by row."""
    if isinstance(event, Records):
        return event.ts_ns, event.partition, event.phase, list(RecordBatch(event))
    return event


async def test_every_kind_travels(bus: AnyBus) -> None:
    """Each kind of event but the bus's own heartbeat reaches a consumer of everything."""
    bus.publish(
        *make_run(records=3)[:-1],
        make_event(PhaseTimeout),
        make_event(Summary),
        make_event(Verdict),
        make_event(Drop),
        Receipt(run_id=RUN_ID, consumer="other"),
        make_event(RunComplete),
    )
    run = await bus.run_consumer(Recorder())
    assert {event.kind for event in run.consumer.events} == set(KINDS) - {Heartbeat.kind}


async def test_records_come_back_as_they_were(bus: AnyBus) -> None:
    """Numbers, fractions, texts, flags, gaps and errors of request records survive the way."""
    given: list[dict[str, float]] = [
        {"request_latency": 2**53 + 1, "time_to_first_token": 0.1},
        {"request_latency": 5, "output_sequence_length": 7},
    ]
    fields = {"x_request_id": "ä-1", "was_cancelled": False, "request_end_ns": 1_795_354_391_315_049_123}
    with bus.publisher() as publisher:
        for metrics in given:
            publisher.record("r", PROFILING, metrics, fields)
        publisher.record("r", PROFILING, {"error_request_count": 1}, fields, ("Timeout", "late", 504))
        publisher.complete_run("r", "completed")
    run = await bus.run_consumer(Recorder())
    batch, end = of_test(run.consumer)
    assert isinstance(batch, Records)
    assert isinstance(end, RunComplete)
    rows = list(RecordBatch(batch))
    assert [{k: v for k, v in row.items() if k not in fields} for row in rows] == [
        {"phase": "profiling", "error": None, **given[0]},
        {"phase": "profiling", "error": None, **given[1]},
        {
            "phase": "profiling",
            "error": {"type": "Timeout", "message": "late", "code": 504},
            "error_request_count": 1,
        },
    ]
    assert all(row.items() >= fields.items() for row in rows)
    assert (end.records, end.published) == (3, {"records.00.r$": 1})


async def test_events_close_the_batch_before_them(bus: AnyBus) -> None:
    """Records go before the event after them; progress alone does not close a batch."""
    with bus.publisher(batch_s=60.0) if isinstance(bus, LiveBus) else bus.publisher() as publisher:
        publisher.record("r", PROFILING, {"n": 1}, {})
        publisher.publish(make_event(RunStart, run_id="r"))
        publisher.record("r", PROFILING, {"n": 2}, {})
        publisher.publish(make_event(PhaseComplete, run_id="r"))
    run = await bus.run_consumer(Recorder())
    kinds = [event.kind for event in of_test(run.consumer)]
    assert kinds == ["records", "run_start", "records", "phase_complete", "run_complete"]


async def test_a_run_that_its_publisher_leaves_open_is_lost(bus: AnyBus) -> None:
    """The bus ends it, with the counts of what came."""
    with bus.publisher() as publisher:
        publisher.publish(make_event(RunStart, run_id="r"))
        publisher.record("r", PROFILING, {"n": 1}, {})
    run = await bus.run_consumer(Recorder())
    end = of_test(run.consumer)[-1]
    assert isinstance(end, RunComplete)
    assert (end.status, end.records) == ("lost", 1)
    assert end.published == {"run_start.r$": 1, "records.00.r$": 1}
    assert "publisher" in end.reason
    assert run.receipt.status == "lost"
    assert run.receipt.has_all_known
    assert not run.receipt.complete  # nobody knows whether that was all


async def test_published_while_it_runs(bus: AnyBus) -> None:
    """What is published later is handled later; nothing comes twice."""
    async with bus.consumer(Counting) as run:
        await run.catch_up()
        bus.publish(make_records(10))
        await run.catch_up()
        assert run.consumer.records == 10
        bus.publish(make_records(5, phase="warmup"))
        await run.catch_up()
    assert run.consumer.records == 15


async def test_from_now_on(bus: AnyBus) -> None:
    """A consumer that begins now does not get what was before."""
    bus.publish(make_event(PhaseStart, phase="warmup"))
    async with bus.consumer(Recorder(), origin="now") as run:
        bus.publish(make_event(PhaseStart, phase="ramp"))
        await run.catch_up()
    (event,) = run.consumer.events
    assert isinstance(event, PhaseStart)
    assert event.phase.name == "ramp"


async def test_from_the_start_again(bus: AnyBus) -> None:
    """A consumer that begins at the start gets what one of its name had already, and no state."""
    bus.publish(make_records(10))
    await bus.run_consumer(Counting, name="a")
    again = await bus.run_consumer(Counting, name="a", origin="start")
    after = await bus.run_consumer(Counting, name="a", origin=0)
    assert (again.consumer.restored, again.consumer.records, after.consumer.records) == (-1, 10, 10)


async def test_a_handler_that_fails_once_is_tried_again(bus: AnyBus) -> None:
    """The event is handled in its order at the second attempt, and nothing is dead-lettered."""
    failures = iter([ValueError("not yet")])

    def fail_once(event: EventBase) -> None:
        if isinstance(event, PhaseStart):
            for error in failures:
                raise error

    bus.publish(make_event(RunStart), make_event(PhaseStart), make_event(PhaseComplete))
    run = await bus.run_consumer(Recorder(fail_once))
    kinds = [event.kind for event in run.consumer.events]
    assert kinds == ["run_start", "phase_start", "phase_start", "phase_complete"]
    assert run.dead_letters == []


async def test_a_handler_that_goes_on_failing(bus: AnyBus, caplog: pytest.LogCaptureFixture) -> None:
    """After three attempts the event is a dead letter; the next ones are handled; the receipt says so."""

    def fail(event: EventBase) -> None:
        if isinstance(event, PhaseStart):
            raise ValueError("never")

    bus.publish(*make_run(records=3, phases=["profiling"]))
    run = await bus.run_consumer(Recorder(fail), name="failing")
    (letter,) = run.dead_letters
    assert (letter.kind, letter.run_id, letter.attempts) == ("phase_start", RUN_ID, 3)
    assert letter.error == "ValueError('never')"
    assert "raise ValueError" in letter.traceback
    assert isinstance(bus.events()[letter.offset - 1], PhaseStart)
    topic = run.receipt.topics[f"phase_start.{RUN_ID}$"]
    assert (topic.received, topic.handled, topic.failed) == (1, 0, 1)
    assert not run.receipt.complete
    assert any(isinstance(event, RunComplete) for event in run.consumer.events)
    assert "it is a dead letter now" in caplog.text


async def test_a_restart_goes_on_from_the_state(bus: AnyBus) -> None:
    """A consumer of the same name continues; one of another name begins at the start."""
    bus.publish(make_records(10))
    await bus.run_consumer(Counting, name="a")
    bus.publish(make_records(5, phase="warmup"))
    again = await bus.run_consumer(Counting, name="a")
    other = await bus.run_consumer(Counting, name="b")
    assert (again.consumer.restored, again.consumer.records) == (10, 15)
    assert (other.consumer.restored, other.consumer.records) == (-1, 15)


async def test_a_crash_loses_nothing(bus: AnyBus, caplog: pytest.LogCaptureFixture) -> None:
    """What was handled but not flushed is handled again by the next one."""
    async with bus.consumer(Counting, name="a") as run:
        bus.publish(make_records(10))
        await run.catch_up()
        if isinstance(run, MemoryRun):  # the other one does so every second
            assert await run.flush()
        run.consumer.flush_fails = True
        bus.publish(make_records(5, phase="warmup"))
        if isinstance(run, MemoryRun):
            await run.catch_up()
        else:
            await until(lambda: run.consumer.records == 15)
        await run.crash()
    again = await bus.run_consumer(Counting, name="a")
    assert (again.consumer.restored, again.consumer.records) == (10, 15)


async def test_what_could_not_be_written_out_is_in_the_receipt(
    bus: AnyBus, caplog: pytest.LogCaptureFixture
) -> None:
    """Handled is not written: a flush that fails to the end shows."""
    bus.publish(*make_run(records=10, phases=["profiling"]))
    consumer = Counting()
    consumer.flush_fails = True
    async with bus.consumer(consumer, name="a") as run:
        if isinstance(run, MemoryRun):
            await run.catch_up()
        else:
            await until(lambda: consumer.records == 10)
    topic = run.receipt.topics[f"records.00.{RUN_ID}$"]
    assert (topic.handled, topic.written) == (1, 0)
    assert not run.receipt.complete


class Stored(Consumer):
    """Stores its checkpoint with its data, as a database would."""

    def __init__(self, place: Path) -> None:
        self.place = place

    async def position(self) -> Position | None:
        if not self.place.exists():
            return None
        stream, offset, *_ = self.place.read_text().split()
        return Position(stream, int(offset))

    async def on_phase_start(self, event: PhaseStart) -> None:
        names = self.place.read_text().split()[2:] if self.place.exists() else []
        self.place.write_text(" ".join([self.stream, str(self.offset), *names, event.phase.name]))


async def test_a_position_kept_with_the_data_is_exactly_once(bus: AnyBus, tmp_path: Path) -> None:
    """A consumer that stored an event is not given it again, even without a flush before its end."""
    place = tmp_path / "place"
    bus.publish(make_event(PhaseStart, phase="warmup"))
    async with bus.consumer(Stored(place), name="a") as run:
        await run.catch_up()
        await run.crash()
    bus.publish(make_event(PhaseStart, phase="profiling"))
    await bus.run_consumer(Stored(place), name="a")
    assert place.read_text().split()[2:] == ["warmup", "profiling"]


class Summing(Consumer):
    """Publishes a summary at the end of each run."""

    async def on_run_complete(self, event: RunComplete) -> None:
        result = {"records": event.records}
        self.publish(Summary(run_id=event.run_id, producer=self.name, final=True, result=result))


async def test_what_a_consumer_publishes_reaches_others(bus: AnyBus) -> None:
    """A summary is on the bus before the consumer's receipt, and others get both."""
    bus.publish(*make_run(records=7, phases=["profiling"]))
    summing = await bus.run_consumer(Summing, name="summing")
    other = await bus.run_consumer(Recorder())
    (summary,) = summing.published
    assert isinstance(summary, Summary)
    assert summary.result == {"records": 7}
    tail = other.consumer.events[-3:]
    assert [event.kind for event in tail[:2]] == ["summary", "receipt"]
    assert msgspec.to_builtins(tail[0]) == msgspec.to_builtins(summary)
    assert bus.events(Summary) == [summary]
    assert summing.receipt.consumer == "summing"


class Picky(Consumer):
    """Fails to start, and takes an option."""

    def __init__(self, threshold_s: float = 1.0) -> None:
        self.threshold_s = threshold_s

    async def start(self) -> None:
        if self.threshold_s < 0:
            raise ConfigError("threshold_s must not be negative")

    async def on_phase_complete(self, event: EventBase) -> None: ...


async def test_options_are_converted_and_checked(bus: AnyBus) -> None:
    """A class is built as the command line does it, and what its start raises is raised."""
    run = await bus.run_consumer(Picky, threshold_s="2.5")
    assert run.consumer.threshold_s == 2.5
    with pytest.raises(OptionError, match="threshold"):
        await bus.run_consumer(Picky, threshold="2.5")
    with pytest.raises(ConfigError, match="must not be negative"):
        await bus.run_consumer(Picky, threshold_s=-1)


async def test_runs_are_accounted_for_apart(bus: AnyBus) -> None:
    """Two runs at once have a receipt each."""
    for events in zip(make_run(records=3), make_run(records=3, run_id="run-2"), strict=True):
        bus.publish(*events)
    run = await bus.run_consumer(Counting)
    assert {run_id: receipt.complete for run_id, receipt in run.receipts.items()} == {
        RUN_ID: True,
        "run-2": True,
    }
    assert run.consumer.records == 12


async def test_a_name_is_one_consumers(bus: AnyBus) -> None:
    """A second one of its name is refused while it runs, and goes on where it ended."""
    bus.publish(*make_run(20, run_id="one"))
    async with bus.consumer(Counting, name="mine") as first:
        await first.catch_up()
        with pytest.raises(NameTakenError, match=r"'mine'.*--name.*--group"):
            await bus.run_consumer(Counting, name="mine")
        other = await bus.run_consumer(Counting, name="another")
        assert other.consumer.records == first.consumer.records == 40
    bus.publish(*make_run(20, run_id="two"))
    second = await bus.run_consumer(Counting, name="mine")
    assert second.consumer.restored == 40
    assert second.consumer.records == 80
