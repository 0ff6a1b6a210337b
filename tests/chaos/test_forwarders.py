"""Two forwarders of one bus, by mistake, while both are killed and suspended, and NATS is killed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from phase_bus.testing import LiveBus, make_run, wait_until
from phase_bus.testing.process import PythonProcess
from tests.support.forwarded import journal_frames, read_stream
from tests.support.servers.nats import NatsServer

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.usefixtures("no_leaks")]
CHAOS_S = 10.0
NAMES = ("forward", "another")


def are_done(bus: LiveBus) -> bool:
    """Return whether both have forwarded all that the bus has."""
    status = bus.status()
    offsets = dict.fromkeys(NAMES, 0)
    for client in status.clients:
        if client.name in NAMES and client.position is not None:  # those that were killed are listed, too
            offsets[client.name] = max(offsets[client.name], client.position.offset)
    return min(offsets.values()) >= status.offset


def test_the_stream_is_the_journal_whatever_is_killed(nats: NatsServer, tmp_path: Path) -> None:
    rng = random.Random(16)
    with LiveBus() as bus, ExitStack() as stack:
        forwarders = [
            PythonProcess(
                tmp_path / f"{name}.log",
                *("-m", "phase_bus", "consume", f"forward:to={nats.url}"),
                *("--name", name, "--address", bus.address),
            )
            for name in NAMES
        ]
        for forwarder in forwarders:
            stack.enter_context(forwarder)
        until_s = time.monotonic() + CHAOS_S
        number = 0
        while time.monotonic() < until_s:
            number += 1
            bus.publish(*make_run(rng.randrange(50, 500), run_id=f"run-{number}"))
            forwarder = rng.choice(forwarders)
            fault = number % 4
            if fault == 0:
                forwarder.kill()
                forwarder.start()
            elif fault == 1:
                forwarder.process.send_signal(signal.SIGSTOP)
            elif fault == 2:
                nats.kill()
            time.sleep(rng.uniform(0.2, 0.6))
            if fault == 2:
                nats.start()
            for each in forwarders:
                each.process.send_signal(signal.SIGCONT)
        wait_until(lambda: are_done(bus), 60)
        for forwarder in forwarders:
            assert forwarder.terminate() == 0, forwarder.tail()
        journal = journal_frames(bus.directory / "journal")
        held = asyncio.run(read_stream(nats.url))
        assert [each.frames for each in held] == [frames for _, frames in journal[: len(held)]]
        assert len(journal) - len(held) <= len(NAMES)
