"""A consumer that remembers what it got, and the numbered events that it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.events import EventBase, PhaseRef, PhaseStart, Records, RunComplete
from phase_bus.publisher.publisher import Publisher

PHASE = PhaseRef("profiling")


def start(number: int = 0, run_id: str = "r") -> PhaseStart:
    """An event with a number in it."""
    return PhaseStart(run_id=run_id, phase=PHASE, ts_ns=number)


class Recorder(Consumer):
    """Remembers all events; does more with some, if the test wants."""

    def __init__(self, then: Callable[[EventBase], Awaitable[None]] | None = None) -> None:
        self.events: list[EventBase] = []
        self._then = then

    async def on_phase_start(self, event: PhaseStart) -> None:
        await self._on(event)

    async def on_run_complete(self, event: RunComplete) -> None:
        await self._on(event)

    async def _on(self, event: EventBase) -> None:
        if self._then is not None:
            await self._then(event)
        self.events.append(event)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the phase events so far."""
        return [event.ts_ns for event in self.events if isinstance(event, PhaseStart)]

    @property
    def ended(self) -> bool:
        """Whether a run's end was the last."""
        return bool(self.events) and isinstance(self.events[-1], RunComplete)


class WithRecords(Recorder):
    """Takes batches of records too."""

    def __init__(self, then: Callable[[EventBase], Awaitable[None]] | None = None) -> None:
        super().__init__(then)
        self.counted = 0

    async def on_records(self, event: Records) -> None:
        self.counted += event.count
        if self._then is not None:
            await self._then(event)


@asynccontextmanager
async def running(consumer: Consumer, address: str, **options: Any) -> AsyncIterator[ConsumerRunner]:
    """Run a consumer, from when it is ready."""
    ready = asyncio.Event()
    named(consumer, consumer.name or "recorder")
    runner = ConsumerRunner(consumer, Address.parse(address), on_ready=ready.set, **options)
    task = asyncio.create_task(runner.run())
    try:
        await asyncio.wait_for(ready.wait(), 20)
        yield runner
    finally:
        runner.stop()
        await asyncio.wait_for(task, 20)


def publish(address: str, count: int, first: int = 0, run_id: str = "r", *, end: bool = False) -> None:
    """Publish numbered events, each with a record after it, and wait until the bus has them."""
    with Publisher(address, batch_records=1) as publisher:
        for number in range(first, first + count):
            publisher.publish(start(number, run_id))
            publisher.record(run_id, PHASE, {"n": number}, {})
        if end:
            publisher.complete_run(run_id, "completed")
        assert publisher.flush(20)
