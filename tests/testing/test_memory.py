"""The in-memory bus where it differs from a real one, and other code than consumers on it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.events import EventBase, PhaseComplete, PhaseRef, PhaseStart, Records, RunComplete
from phase_bus.harness.simulation import Simulation
from phase_bus.publisher.hooks import PublisherHook
from phase_bus.testing import (
    MemoryBus,
    make_event,
    make_records,
    make_run,
    make_stats,
    run_consumer,
    run_consumer_sync,
)


class Counter(Consumer):
    """Counts what it gets."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.kinds: list[str] = []
        self.records = 0

    async def on_event(self, event: EventBase) -> None:
        self.kinds.append(event.kind)
        if self.limit and len(self.kinds) > self.limit:
            raise ValueError("too many")

    async def on_records(self, event: Records) -> None:
        self.records += event.count


def test_without_an_event_loop() -> None:
    """A test that is not async runs a consumer all the same."""
    run = run_consumer_sync(Counter, *make_run(records=50))
    assert run.consumer.records == 100
    assert run.receipt.complete
    assert run.of(Records) == []
    bus = MemoryBus()
    bus.publish(make_event(PhaseStart))
    assert bus.run_consumer_sync(Counter()).consumer.kinds == ["phase_start"]


async def test_no_receipt_without_an_end() -> None:
    """Asking for a receipt that is not there says why."""
    run = await run_consumer(Counter(), make_event(PhaseStart), name="counter")
    assert run.receipts == {}
    with pytest.raises(LookupError, match="consumer 'counter' has handled no run_complete"):
        assert run.receipt


async def test_a_built_consumer_takes_no_options() -> None:
    """Options belong to a class."""
    with pytest.raises(TypeError, match=r"built already.*\['limit'\]"):
        await run_consumer(Counter(), limit=3)


async def test_the_number_of_attempts_can_be_chosen() -> None:
    """With one attempt a test of failures takes no time."""
    bus = MemoryBus()
    bus.publish(make_event(PhaseStart), make_event(PhaseStart))
    run = await bus.run_consumer(Counter, limit=1, attempts=1)
    assert [letter.attempts for letter in run.dead_letters] == [1]
    assert bus.dead_letters["Counter"] == run.dead_letters


async def test_what_cannot_travel_raises() -> None:
    """A publisher's mistake is raised where it is made, and costs the bus nothing."""
    bus = MemoryBus()
    with pytest.raises(OverflowError):
        bus.publish(make_event(PhaseStart, ts_ns=1 << 70))
    with bus.publisher() as publisher, pytest.raises(TypeError):
        publisher.record("r", PhaseRef("p"), None, {})  # type: ignore[arg-type]
    assert bus.messages == []


async def test_a_start_that_fails_is_raised(tmp_path: Path) -> None:
    """stop is not called then, as in a real process: there is nothing to let go of."""

    class Broken(Counter):
        async def start(self) -> None:
            raise OSError("no disk")

        async def stop(self) -> None:
            raise AssertionError("never started")

    with pytest.raises(OSError, match="no disk"):
        await run_consumer(Broken())


async def test_events_are_decoded_copies() -> None:
    """Nothing that a consumer gets is the publisher's own object."""
    given = make_event(PhaseStart)
    bus = MemoryBus()
    bus.publish(given)
    (event,) = bus.events(PhaseStart)
    assert event == given
    assert event is not given
    assert bus.messages[0].topic == b"phase_start.run-1$"


def test_a_hook_publishes_on_it(mock_tracker: MagicMock, phase_bus_memory: MemoryBus) -> None:
    """What a load generator's hook publishes can be looked at."""
    with phase_bus_memory.publisher() as publisher:
        hook = PublisherHook(publisher, "r", producer="test")
        asyncio.run(hook.on_phase_start("warmup", mock_tracker))
        mock_tracker.create_stats.return_value = make_stats(completed=7)
        asyncio.run(hook.on_phase_complete("warmup", mock_tracker))
        hook.complete()
    assert [event.kind for event in phase_bus_memory.events()] == [
        "run_start",
        "phase_start",
        "phase_complete",
        "run_complete",
    ]
    assert phase_bus_memory.events(PhaseStart)[0].stats.sent == 100
    assert phase_bus_memory.events(PhaseComplete)[0].stats.completed == 7


def test_a_simulation_runs_on_it(phase_bus_memory: MemoryBus) -> None:
    """A synthetic run needs no bus process."""
    with phase_bus_memory.publisher() as publisher:
        Simulation(publisher, requests=500, rate=0, warmup=20).run()
    (end,) = phase_bus_memory.events(RunComplete)
    assert end.records == 520
    assert sum(end.published.values()) == len(phase_bus_memory.messages) - 1


async def test_a_batch_is_no_larger_than_asked() -> None:
    """The bus's publishers batch as they are configured."""
    bus = MemoryBus(batch_records=4)
    with bus.publisher() as publisher:
        for number in range(10):
            publisher.record("r", PhaseRef("p"), {"n": number}, {})
        assert publisher.pending == 2
        publisher.complete_run("r", "completed")
    assert [event.count for event in bus.events(Records)] == [4, 4, 2]
    assert [event.partition for event in bus.events(Records)] == [0, 1, 2]


async def test_restarts_in_one_test() -> None:
    """`async with` twice under one name: the second gets what came since."""
    bus = MemoryBus()
    bus.publish(make_records(3))
    async with bus.consumer(Counter, name="c") as first:
        await first.catch_up()
    bus.publish(make_event(PhaseStart))
    async with bus.consumer(Counter, name="c") as second:
        await second.catch_up()
    assert (first.consumer.records, first.consumer.kinds) == (3, [])
    assert (second.consumer.records, second.consumer.kinds) == (0, ["phase_start"])
