"""A consumer whose state is larger than the bus takes: it is told, goes on, and its place is not kept."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from phase_bus.bus.clients import Client
from phase_bus.bus.options import BusOptions
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.recorder import Recorder, publish, running

pytestmark = pytest.mark.usefixtures("no_leaks")


class Growing(Recorder):
    """Has a state as large as the test wants."""

    size = 10

    def state(self) -> bytes:
        """Return the state."""
        return bytes(self.size)

    def restore(self, state: bytes) -> None:
        """Take nothing over."""


async def test_it_goes_on(ipc_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The connection is kept, one clear line is logged, and a state that fits again is kept again."""
    options = BusOptions(heartbeat_s=0.1, max_message_bytes=50_000)
    with DurableBus(ipc_dir, tmp_path / "journal", options) as bus:
        consumer = Growing()
        async with running(consumer, bus.address):
            await asyncio.to_thread(publish, bus.address, 2)
            await until(lambda: kept_offset(bus) > 0)
            first = kept_offset(bus)
            consumer.size = 100_000
            await asyncio.to_thread(publish, bus.address, 3, 2)
            await until(lambda: len(consumer.numbers) == 5)
            await until(lambda: "--max-message-bytes" in caplog.text)
            (client,) = [c for c in bus.bus._clients.by_id.values() if c.info.role == "consumer"]
            for _ in range(5):  # beats, in each of which it would be kept
                await until(partial(has_spoken, client, client.said_s))
            assert client.info.state == "ready"
            assert kept_offset(bus) == first
            assert caplog.text.count("--max-message-bytes") == 1
            consumer.size = 10
            await asyncio.to_thread(publish, bus.address, 1, 5)
            await until(lambda: kept_offset(bus) > first)
        assert not bus.bus.rejections.infos()


def has_spoken(client: Client, before_s: float) -> bool:
    """Whether the bus has heard a client since a time."""
    return client.said_s > before_s


def kept_offset(bus: DurableBus) -> int:
    """Return the offset of the consumer's checkpoint, 0 without one."""
    checkpoint = bus.journal.checkpoint("recorder")
    return 0 if checkpoint is None else checkpoint.offset
