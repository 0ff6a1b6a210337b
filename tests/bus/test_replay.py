"""The replay socket itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import zmq

from phase_bus.consumer.replay import ReplayClient
from phase_bus.core.address import Address
from phase_bus.core.control import Beat, Endpoint, Fetch, Fetched
from phase_bus.core.wire import decode_reply, encode_control
from phase_bus.errors import BusUnreachableError
from tests.support.buses import DurableBus

pytestmark = pytest.mark.usefixtures("no_leaks")


async def fetched(dealer: zmq.Socket[bytes]) -> None:
    """Ask until there is an answer: of those that nobody reads the bus keeps two."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        dealer.send(encode_control(Fetch(after=0, records=True)))
        while await asyncio.to_thread(dealer.poll, 100):
            if isinstance(decode_reply(dealer.recv_multipart()[0]), Fetched):
                return
    raise AssertionError("no answer")


async def test_nonsense_does_not_end_the_replay_server(kept: DurableBus, ipc_dir: Path) -> None:
    """Whatever one consumer asks for, the others go on reading."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"ipc://{ipc_dir}/replay.ipc")
    for frames in (
        [b""],
        [b"\xc1"],
        [b"a", b"b"],
        [encode_control(Beat(client_id="", state="ready"))],
        [encode_control(Fetch(after=2**64 - 1, records=True))],
    ):
        dealer.send_multipart(frames)
    await fetched(dealer)
    context.destroy(linger=0)


async def test_lines_about_nonsense_are_bounded(
    kept: DurableBus, ipc_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However much of it comes, there are a few lines a second."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"ipc://{ipc_dir}/replay.ipc")
    for _ in range(500):
        dealer.send(b"\xc1")
    await fetched(dealer)  # all that came before is through
    assert 5 <= sum("skipped" in line for line in caplog.messages) < 50
    context.destroy(linger=0)


async def test_closing_ends_a_wait(ipc_dir: Path) -> None:
    """A consumer that waits for a bus that was killed asks the next one at once."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = ReplayClient(
        context, Address.parse(f"ipc://{ipc_dir}"), Endpoint(ipc_name="nobody.ipc"), "a" * 32
    )
    try:
        waiting = asyncio.create_task(client.fetch(0, records=True))
        await asyncio.sleep(0.05)
        client.close()
        with pytest.raises(BusUnreachableError):
            await asyncio.wait_for(waiting, 2)
    finally:
        client.close()
        context.destroy(linger=0)
