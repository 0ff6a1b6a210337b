"""``run_consumer``: a consumer in a program of one's own."""

from __future__ import annotations

import asyncio

import pytest

from phase_bus import ConfigError, Consumer, PhaseComplete, run_consumer
from phase_bus.errors import PhaseBusError
from phase_bus.testing import LiveBus, make_run, until


class Phases(Consumer):
    """Keeps the names of phases, and what became of itself."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.written: list[str] = []
        self.stopped = False

    async def on_phase_complete(self, event: PhaseComplete) -> None:
        self.seen.append(event.phase.name)

    async def flush(self) -> None:
        self.written = list(self.seen)

    async def stop(self) -> None:
        self.stopped = True


async def test_it_finishes_when_it_is_cancelled() -> None:
    """What has arrived is written out, and the checkpoint is kept under the consumer's name."""
    with LiveBus() as bus:
        bus.publish(*make_run())
        consumer = Phases()
        running = asyncio.create_task(run_consumer(consumer, bus.address, name="mine"))
        await until(lambda: len(consumer.seen) == 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert consumer.written == consumer.seen
        assert consumer.stopped
        assert consumer.name == "mine"
        with bus.reader() as reader:
            await until(lambda: reader.checkpoint("mine") is not None)
        again = Phases()
        running = asyncio.create_task(run_consumer(again, bus.address, name="mine"))
        bus.publish(*make_run(run_id="later"))
        await until(lambda: len(again.seen) == 2)  # and not those of the first run
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_what_keeps_it_from_starting_is_raised() -> None:
    class Broken(Phases):
        async def start(self) -> None:
            raise ConfigError("consumer 'broken': no such place")

    with LiveBus() as bus, pytest.raises(PhaseBusError, match="no such place"):
        await run_consumer(Broken(), bus.address)
    with pytest.raises(PhaseBusError, match="not an address"):
        await run_consumer(Phases(), "nowhere")
