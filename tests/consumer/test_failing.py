"""A consumer whose handler or flush fails: retries, dead letters, and the checkpoint that waits."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path

import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.dispatcher import Dispatcher
from phase_bus.consumer.failure import in_words, is_away
from phase_bus.consumer.rows import UnavailableError
from phase_bus.core.wire import Header, parse_topic
from phase_bus.events import EventBase, PhaseRef, PhaseStart, Receipt, RunStart
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry
from phase_bus.journal.writer import Journal
from phase_bus.testing import MemoryBus
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.groups import handled, members
from tests.support.recorder import Recorder, WithRecords, publish, running

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_failing_handler(kept: DurableBus) -> None:
    """It is retried; what keeps failing is dead-lettered in the journal, and the rest is handled."""
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
        (letter,) = await until(journal.dead_letters)  # the last beat may still be on its way
    assert (letter.consumer, letter.offset, letter.attempts) == ("recorder", 7, 3)
    assert "as the test wants" in letter.error


def test_a_failure_without_a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was removed under the consumer: what is told has the path in full, and nothing else is raised."""
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    with pytest.raises(ValueError, match="as the test wants") as raised:
        raise ValueError("as the test wants")
    assert in_words(raised.value).startswith(f"ValueError('as the test wants') ({__file__}:")


async def test_a_handler_that_was_cancelled(kept: DurableBus) -> None:
    """What a handler awaits may be cancelled, by itself or a library: that is a failure, not the end."""

    async def fail(event: EventBase) -> None:
        if event.ts_ns == 1:
            raise asyncio.CancelledError

    consumer = Recorder(fail)
    async with running(consumer, kept.address):
        await asyncio.to_thread(publish, kept.address, 3, end=True)
        await until(lambda: consumer.ended)
    assert consumer.numbers == [0, 2]
    with JournalReader(kept.data) as journal:
        (letter,) = await until(journal.dead_letters)
        (receipt,) = await until(lambda: journal.events("r", Receipt))
    assert (letter.offset, letter.attempts) == (3, 3)
    assert "cancelled" in letter.error
    assert receipt.topics["phase_start.r$"].failed == 1


@pytest.mark.parametrize("grouped", [False, True])
async def test_what_the_journal_holds_and_nobody_can_decode(kept: DurableBus, grouped: bool) -> None:
    """It is a dead letter of each consumer; the next events are handled, also by the next process."""
    kept.close()
    with closing(Journal(kept.data)) as journal:
        for topic, records, payload in (
            (b"phase_start.r$", 0, b"\x81\xa4kind" + b"\x91" * 100_000),
            (b"records.00.r$", 5, b"\xc1"),
            (b"run_complete.bad$", 0, b"\xc1"),
        ):
            offset, number = journal.head.offset + 1, journal.head.event_number + (not records)
            header = Header(b"x" * 16, offset, 1, records, offset, number)
            kind, run_id = parse_topic(topic)
            numbers = (header.source_seq, records, number, time.time_ns())
            journal.append(
                [Entry(offset, topic, header.pack(), payload, run_id, kind, header.source, *numbers)]
            )
    kept.open()
    for round_ in range(2):
        if grouped:
            async with members(2, kept.address):
                await asyncio.to_thread(publish, kept.address, 1, run_id=f"good-{round_}", end=True)
                await handled(kept.address, f"good-{round_}")
        else:
            consumer = WithRecords()
            async with running(consumer, kept.address):
                await asyncio.to_thread(publish, kept.address, 1, run_id=f"good-{round_}", end=True)
                await until(lambda: consumer.ended and consumer.counted == 1)  # noqa: B023
    with JournalReader(kept.data) as reader:
        await until(lambda: {letter.offset for letter in reader.dead_letters()} == {1, 2, 3})
        letters = {letter.offset: letter.error for letter in reader.dead_letters()}
    assert all("not an event" in error for error in letters.values())


async def test_a_dead_letter_waits_until_the_journal_takes_it(kept: DurableBus) -> None:
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
async def test_a_flush_that_fails_keeps_the_checkpoint(kept: DurableBus) -> None:
    """The checkpoint moves, and a run counts as handled, only once everything is written out."""

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
            assert runner.share.dispatcher.handled["r"].whole
            (receipt,) = await until(lambda: journal.events("r", Receipt) or False)
            assert receipt.complete


async def test_a_handler_that_fails_on_everything() -> None:
    """Its dead letters wait in bounded memory, with short texts; the receipt has the number of all."""

    class Broken(Consumer):
        async def on_phase_start(self, event: PhaseStart) -> None:
            raise ValueError("x" * 100_000)

    bus = MemoryBus()
    bus.publish(*(PhaseStart(run_id="r1", phase=PhaseRef("p")) for _ in range(1_500)))
    async with bus.consumer(Broken, attempts=1) as run:
        await run.catch_up()
        bus.publish(PhaseStart(run_id="r1", phase=PhaseRef("p")))
        await run.flush()
        bus.complete_run("r1")
        await run.catch_up()
    assert run.receipt.topics["phase_start.r1$"].failed == 1_501
    assert len(run.dead_letters) == 1_001
    assert run.dead_letters[-1].skipped == 500
    for letter in run.dead_letters:
        assert (len(letter.error), len(letter.traceback) < 20_000) == (1_000, True)
        assert "characters left out" in letter.traceback


class Failing(Consumer):
    """Fails so often, in a function of its own."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.tries = error, times, 0

    async def on_phase_start(self, event: PhaseStart) -> None:
        self.tries += 1
        if self.tries <= self.times:
            self.send()

    def send(self) -> None:
        raise type(self.error)(*self.error.args)


async def tried(consumer: Failing) -> tuple[int, list[int]]:
    """Give a consumer an event; return how often it was called, and the tries in its dead letters."""
    bus = MemoryBus()
    bus.publish(PhaseStart(run_id="r1", phase=PhaseRef("p")))
    run = await bus.run_consumer(consumer)
    return consumer.tries, [letter.attempts for letter in run.dead_letters]


async def test_a_server_that_is_away_is_waited_for() -> None:
    """For longer than what fails by itself."""
    assert await tried(Failing(ConnectionRefusedError("no"), 8)) == (9, [])
    assert await tried(Failing(TimeoutError(), 100)) == (9, [9])
    assert await tried(Failing(ValueError("no"), 100)) == (3, [3])


async def test_a_handler_that_is_broken_is_not_waited_for() -> None:
    """Until it succeeds again; another one's failures do not count."""

    class Away(Failing):
        async def on_run_start(self, event: RunStart) -> None:
            raise KeyError("a defect, and no reason to give up on a server")

    bus = MemoryBus()
    start = PhaseStart(run_id="r1", phase=PhaseRef("p"))
    bus.publish(RunStart(run_id="r1"), *4 * [start])
    run = await bus.run_consumer(Away(ConnectionRefusedError("no"), 9 + 3 + 1))
    assert [letter.attempts for letter in run.dead_letters] == [3, 9, 3]
    assert run.consumer.tries == 9 + 3 + 2 + 1


async def test_how_often_is_an_option() -> None:
    for times, expected in ((0, (1, [1])), (5, (6, [6]))):
        consumer = Failing(ConnectionRefusedError("no"), 100)
        consumer.retry_times = times
        assert await tried(consumer) == expected


def test_what_counts_as_a_server_that_is_away() -> None:
    """Refused connections, time-outs and so on, also as the cause of another exception, or in a group."""
    wrapped = RuntimeError("what a library for HTTP raises")
    wrapped.__cause__ = ConnectionResetError()
    for error in (TimeoutError(), wrapped, UnavailableError("busy"), ExceptionGroup("", [wrapped])):
        assert is_away(error)
    for other in (ValueError(), FileNotFoundError(), PermissionError(), ExceptionGroup("", [KeyError()])):
        assert not is_away(other)


async def test_an_end_does_not_wait_for_the_next_try(
    kept: DurableBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one last try, at once; if that fails, a dead letter. What came after it is handled."""
    monkeypatch.setattr(Dispatcher, "first_wait_s", 1000.0)
    tries = 0

    async def fail(event: EventBase) -> None:
        nonlocal tries
        if isinstance(event, PhaseStart) and event.ts_ns == 1:
            tries += 1
            raise ConnectionRefusedError("as the test wants")

    consumer = Recorder(fail)
    consumer.retry_wait_s = 1000.0
    async with running(consumer, kept.address):
        await asyncio.to_thread(publish, kept.address, 3)
        await until(lambda: tries)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 15
    assert (tries, consumer.numbers) == (2, [0, 2])
    with JournalReader(kept.data) as journal:
        (letter,) = await until(journal.dead_letters)
    assert letter.attempts == 2


async def test_the_log_says_where_and_what_to_type(caplog: pytest.LogCaptureFixture) -> None:
    """The lines of the user's own code, none of ours, and the command that shows the rest."""
    bus = MemoryBus()
    bus.publish(PhaseStart(run_id="r1", phase=PhaseRef("p")))
    run = await bus.run_consumer(Failing(ValueError("no"), 100), name="my consumer")
    first, last = (record.getMessage() for record in caplog.records if "failed" in record.getMessage())
    assert "test_failing.py:" in first
    assert "in on_phase_start: self.send(), then " in first
    assert first.endswith("in send: raise type(self.error)(*self.error.args)); trying again")
    assert "failed 3 times" in last
    assert last.endswith("it is a dead letter now: phase-bus dead-letters list --consumer 'my consumer'")
    (letter,) = run.dead_letters
    assert "raise type(self.error)" in letter.traceback
    assert "dispatcher.py" not in letter.traceback
    assert letter.traceback.count("Traceback") == 1
