"""Somebody else may be in the bus's place: found out when the answer comes, or while all are connected."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from phase_bus.consumer.consumer import named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Endpoint, Heard, Hello, Welcome
from phase_bus.core.wire import decode_request, encode_control
from phase_bus.errors import AddressError
from phase_bus.events import RunStart
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until
from tests.support.buses import BusThread
from tests.support.recorder import Recorder

pytestmark = pytest.mark.usefixtures("no_leaks")


@contextmanager
def impostor(directory: Path) -> Iterator[list[bytes]]:
    """Answer as a bus would, in a directory that is opened to others before the first answer.

    What it is told is in the list.
    """
    heard: list[bytes] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.bind(f"ipc://{directory}/control.ipc")
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            if not router.poll(20):
                continue
            identity, *frames = router.recv_multipart()
            heard.extend(frames)
            directory.chmod(0o777)
            request = decode_request(frames[0])
            reply = (
                Welcome(bus_id="0" * 32, events=Endpoint(ipc_name="events.ipc"), heartbeat_s=0.1)
                if isinstance(request, Hello)
                else Heard(bus_id="0" * 32)
            )
            router.send_multipart([identity, encode_control(reply)])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join()
        router.close()
        context.term()


async def test_who_answers_is_looked_at(ipc_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that is found to be others' only when the answer comes: nothing follows the hello."""
    address = f"ipc://{ipc_dir}"
    runner = ConsumerRunner(named(Recorder(), "c"), Address.parse(address))
    with Publisher(address) as publisher:
        publisher.publish(RunStart(run_id="r"))
        with impostor(ipc_dir) as heard:
            await until(lambda: "what is published waits here" in caplog.text)
            assert not await asyncio.to_thread(publisher.flush, 0.5)
            ipc_dir.chmod(0o700)
            assert {type(decode_request(frame)) for frame in heard} == {Hello}
        publisher.close(0.1)
    assert publisher.undelivered == {"run_start.r$": 1}
    with impostor(ipc_dir) as heard:
        with pytest.raises(AddressError, match="others may use it"):
            await asyncio.wait_for(runner.run(), 10.0)
        assert {type(decode_request(frame)) for frame in heard} == {Hello}
        ipc_dir.chmod(0o700)
        client = BusClient(Address.parse(address))
        with pytest.raises(AddressError, match="others may use it"):
            await asyncio.to_thread(client.status)
        client.close()


async def test_a_directory_that_is_opened_and_closed_again(
    bus: BusThread, ipc_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The publisher keeps what it has meanwhile, says so once, and goes on; a consumer and a client end."""
    recorder = Recorder()
    runner = ConsumerRunner(named(recorder, "c"), Address.parse(bus.address))
    client = BusClient(Address.parse(bus.address))
    with Publisher(bus.address) as publisher:
        running = asyncio.create_task(runner.run())
        await until(lambda: runner.state == "ready" and publisher.connected)
        ipc_dir.chmod(0o770)
        publisher.publish(RunStart(run_id="r"))
        with pytest.raises(AddressError, match="others may use it"):
            await asyncio.wait_for(running, 10.0)
        with pytest.raises(AddressError, match="others may use it"):
            client.status()
        assert not await asyncio.to_thread(publisher.flush, 1.0)
        assert not publisher.connected
        ipc_dir.chmod(0o700)
        assert await asyncio.to_thread(publisher.flush, 10.0)
        assert [run.run_id for run in (await asyncio.to_thread(client.status)).runs] == ["r"]
    client.close()
    assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 1


async def test_a_consumer_waits_for_a_publisher_of_its_own_user(ipc_dir: Path) -> None:
    """In direct mode, too, what others may have made is not listened to."""
    directory = ipc_dir / "bus"
    address = f"ipc://{directory}"
    recorder = Recorder()
    runner = ConsumerRunner(named(recorder, "c"), Address.parse(f"direct+{address}"))
    running = asyncio.create_task(runner.run())
    await until(lambda: runner.state == "ready")
    assert not running.done()
    with Publisher(bind=f"group+{address}") as publisher:
        for number in range(3):
            publisher.publish(RunStart(run_id=str(number)))
        with pytest.raises(AddressError, match="others may use it"):
            await asyncio.wait_for(running, 10.0)
    assert not recorder.events
