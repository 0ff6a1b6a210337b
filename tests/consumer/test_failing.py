"""A consumer whose handler or flush fails: retries, dead letters, and the checkpoint that waits."""

from __future__ import annotations

import asyncio
import time

import pytest

from phase_bus.events import EventBase, PhaseStart, Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.recorder import Recorder, publish, running

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
        (letter,) = journal.dead_letters()
    assert (letter.consumer, letter.offset, letter.attempts) == ("recorder", 7, 3)
    assert "as the test wants" in letter.error


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
            assert runner.share.dispatcher.handled == {"r": True}
            (receipt,) = await until(lambda: journal.events("r", Receipt) or False)
            assert receipt.complete
