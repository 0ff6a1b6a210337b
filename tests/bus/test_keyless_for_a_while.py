"""A bus that was started without its key, or with one too many, and then rightly: its clients come back.

To ZeroMQ such a handshake is a breach of the protocol, after which it gives the connection up for good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.keys import Key
from phase_bus.errors import BusUnreachableError
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until, wait_until
from tests.support.buses import BusThread
from tests.support.keys import Keyring
from tests.support.recorder import Recorder, running, start

pytestmark = pytest.mark.usefixtures("no_leaks")

COUNT = 50


class Place:
    """Where a bus is, with a key or without, one after the other on the same ports and journal."""

    def __init__(self, data: Path, key: Key, *, keyed: bool) -> None:
        self._data, self._key, self._keyed = data, key, keyed
        self.address = "tcp://127.0.0.1:0"
        self._bus: BusThread | None = None

    def close(self) -> None:
        """End the bus that is there."""
        if self._bus is not None:
            self._bus.close()
            self._bus = None

    def right(self) -> None:
        """Put a bus there that understands its clients."""
        self._start(keyed=self._keyed)

    def wrong(self) -> None:
        """Put one there that does not."""
        self._start(keyed=not self._keyed)

    def _start(self, *, keyed: bool) -> None:
        self.close()
        self._bus = BusThread(self.address, journal=Journal(self._data), key=self._key if keyed else None)
        self.address = self._bus.address


@pytest.fixture(params=[True, False], ids=["without its key", "with a key too many"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A place whose clients have a key, or none."""
    keys = Keyring(tmp_path / "keys")
    keys.client("honest", "publish", "consume")
    monkeypatch.setenv("PHASE_BUS_KEY_FILE", keys.file("honest") if request.param else "")
    with closing(Place(tmp_path / "data", keys.bus, keyed=request.param)) as there:
        yield there


async def told(caplog: pytest.LogCaptureFixture, whom: str) -> None:
    """Wait until somebody has logged that the bus does not answer, and why."""

    def is_told() -> bool:
        lines = [record.getMessage() for record in caplog.records if record.name == whom]
        return any(" does not answer: " in line and " key" in line for line in lines)

    await until(is_told)


async def test_who_came_to_the_wrong_bus_first(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Publisher and consumer begin while the wrong bus is there, and say so; the right one has all."""
    place.wrong()
    recorder, end = Recorder(), asyncio.Event()
    with Publisher(place.address) as publisher:
        for number in range(COUNT):
            publisher.publish(start(number))
        begun = asyncio.create_task(_record(recorder, place.address, end))
        await told(caplog, "phase_bus.publisher")
        await told(caplog, "phase_bus.consumer")
        await asyncio.to_thread(place.right)
        assert await asyncio.to_thread(publisher.flush, 20)
        await until(lambda: recorder.numbers == list(range(COUNT)))
    end.set()
    await begun
    whys = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(whys) <= 4, whys  # each once, or twice if it is known better later


async def _record(recorder: Recorder, address: str, end: asyncio.Event) -> None:
    async with running(recorder, address):
        await end.wait()


async def test_the_wrong_bus_takes_the_place_for_a_while(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """What is published meanwhile waits, and both go on with the right one, live."""
    place.right()
    recorder = Recorder()
    with Publisher(place.address) as publisher:
        async with running(recorder, place.address):
            publisher.publish(start(0))
            await until(lambda: recorder.numbers == [0])
            await asyncio.to_thread(place.wrong)
            for number in range(1, COUNT):
                publisher.publish(start(number))
            await told(caplog, "phase_bus.publisher")
            await told(caplog, "phase_bus.consumer")
            await asyncio.to_thread(place.right)
            assert await asyncio.to_thread(publisher.flush, 20)
            await until(lambda: recorder.numbers == list(range(COUNT)))


def test_a_question_to_the_wrong_bus(place: Place) -> None:
    """Whoever asks is told in time also if ZeroMQ has given up before, which is chance; and asks again."""
    place.wrong()
    clients: list[BusClient] = []

    def stuck() -> list[BusClient]:
        clients.append(BusClient(Address.parse(place.address)))
        return [each for each in clients if not each._dealer.poll(0, zmq.POLLOUT)]

    try:
        client, *_ = wait_until(stuck)
        with pytest.raises(BusUnreachableError, match="key"):
            client.status(1.0)
        place.right()
        assert client.status().clients == ()
    finally:
        for each in clients:
            each.close()
