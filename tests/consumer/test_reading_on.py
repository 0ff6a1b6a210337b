"""How consumer processes read on: a journal that cannot be read for a while, newer kinds, odd prefixes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.replay import ReplayClient
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.control import Hello
from phase_bus.core.wire import Header
from phase_bus.errors import JournalError
from phase_bus.events import PhaseStart, Records
from phase_bus.journal.reader import JournalReader
from phase_bus.testing.waiting import until
from tests.support import groups
from tests.support.buses import DurableBus
from tests.support.clients import SOURCE, RawClient
from tests.support.recorder import Recorder, WithRecords, publish, running

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch, elsewhere: None) -> dict[str, int]:
    """How often each way to read the journal has failed: the first two times."""
    failed: dict[str, int] = {}

    class Failing(JournalReader):
        def _fail(self, what: str) -> None:
            if failed.setdefault(what, 0) < 2:
                failed[what] += 1
                raise JournalError(Path("journal"), "disk I/O error", "look at the disk")

        def read(self, *args: Any, **named: Any) -> Any:
            self._fail("events")
            return super().read(*args, **named)

        def checkpoint(self, *args: Any) -> Any:
            self._fail("one state")
            return super().checkpoint(*args)

        def group_checkpoints(self, *args: Any) -> Any:
            self._fail("states")
            return super().group_checkpoints(*args)

    monkeypatch.setattr("phase_bus.bus.replay.JournalReader", Failing)
    monkeypatch.setattr("phase_bus.consumer.zeromq._READ_AGAIN_S", 0.05)
    return failed


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of consumers about the journal."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "cannot read its journal" in record.getMessage()
    ]


async def test_a_consumer_asks_again(
    kept: DurableBus, failures: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that cannot be read for a moment stops nobody."""
    await asyncio.to_thread(publish, kept.address, 10, end=True)
    consumer = WithRecords()
    async with running(consumer, kept.address):
        await until(lambda: consumer.ended)
    assert (consumer.numbers, consumer.counted) == (list(range(10)), 10)
    assert failures == {"events": 2}
    told = "consumer 'recorder': the bus cannot read its journal: journal 'journal': disk I/O error; look "
    assert [line.startswith(told) for line in warnings(caplog)] == [True, True]


async def test_a_member_of_a_group_asks_again(
    kept: DurableBus, failures: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Likewise, whether it takes up a share, reads events, or looks at the partitions as the leader."""
    await asyncio.to_thread(groups.publish, kept.address, 100)
    member = groups.Member(kept.address)
    info = await groups.handled(kept.address)
    await member.stop()
    assert not info.incomplete_runs
    assert failures == {"events": 2, "one state": 2, "states": 2}
    assert [line.startswith("consumer group 'totals': ") for line in warnings(caplog)] == [True] * 6


async def test_to_stop_waits_for_no_journal(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that cannot read on is stopped at once."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(*_args: object, **_named: object) -> None:
        loop.call_soon_threadsafe(asked.set)
        raise JournalError(Path("journal"), "disk I/O error", "look at the disk")

    monkeypatch.setattr("phase_bus.bus.replay.JournalReader.read", fail)
    monkeypatch.setattr("phase_bus.consumer.zeromq._READ_AGAIN_S", 3600.0)
    async with running(Recorder(), kept.address):
        await asyncio.wait_for(asked.wait(), 20)


async def test_kinds_that_are_newer_come_live(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer of records need not look into the journal for each event that it knows nothing of."""
    fetches = 0
    fetch = ReplayClient.fetch

    async def counting(self: ReplayClient, *args: Any, **named: Any) -> Any:
        nonlocal fetches
        fetches += 1
        return await fetch(self, *args, **named)

    monkeypatch.setattr(ReplayClient, "fetch", counting)
    consumer = WithRecords()
    async with running(consumer, kept.address) as runner:
        await until(lambda: not runner.share.follower.replaying)
        before = fetches
        with RawClient(kept.address) as client:
            client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="newer"))
            for seq in range(1, 11):
                client.socket.send_multipart((b"brand_new.r$", Header(SOURCE, seq, seq).pack(), b"\xc1"))
                await until(lambda: runner.share.follower.offset == seq)  # noqa: B023
        assert fetches == before
    assert consumer.events == []


async def test_a_prefix_of_records(kept: DurableBus) -> None:
    """Topics that begin with a part of 'records.' are records, as those that begin with it are."""

    class Batches(Consumer):
        name = "batches"

        def __init__(self) -> None:
            self.count = 0

        async def on_records(self, event: Records) -> None:
            self.count += event.count

        async def on_phase_start(self, event: PhaseStart) -> None:
            raise AssertionError("it is not among the topics")

    consumer = Batches()
    runner = ConsumerRunner(consumer, Address.parse(kept.address), topics=("rec",))
    task = asyncio.create_task(runner.run())
    await asyncio.to_thread(publish, kept.address, 5)
    await until(lambda: consumer.count == 5)
    runner.stop()
    await task
