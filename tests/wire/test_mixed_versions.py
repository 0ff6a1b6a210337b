"""Processes of different versions on one bus: new kinds are skipped and counted, other versions refused."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
import zmq

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.control import Hello
from phase_bus.core.wire import HEADER, NO_STREAM, WIRE_VERSION, Header, encode_event, topic_of
from phase_bus.events import PhaseRef, PhaseStart, Receipt, RunComplete
from phase_bus.testing.waiting import until, wait_until
from tests.support.buses import BusThread
from tests.support.clients import RawClient, Subscriber

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = bytes(15) + b"\x07"
START = PhaseStart(run_id="r", phase=PhaseRef("profiling"))
OTHER_VERSION = HEADER.pack(WIRE_VERSION + 1, NO_STREAM, 0, SOURCE, 1, 1, 0, 0, 0)
REFUSAL = f"wire version {WIRE_VERSION + 1} is not {WIRE_VERSION}; use the same phase-bus on both sides"


class Starts(Consumer):
    """Counts starts of phases."""

    def __init__(self) -> None:
        self.count = 0

    async def on_phase_start(self, event: PhaseStart) -> None:
        self.count += 1


async def test_unknown_kinds_are_counted_and_told_once(
    bus: BusThread, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer that is given kinds of a newer program skips them: in its receipt, and in one line."""
    caplog.set_level(logging.WARNING)
    consumer = named(Starts(), "old")
    runner = ConsumerRunner(consumer, Address.parse(bus.address), topics=("",))
    with Subscriber(bus.address, "receipt.") as subscriber, RawClient(bus.address) as client:
        client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="newer"))
        task = asyncio.create_task(runner.run())
        await until(lambda: runner.state == "ready")
        for seq in (1, 2):
            client.socket.send_multipart((b"brand_new.r$", Header(SOURCE, seq, seq).pack(), b"\xc1"))
        client.publish(START, SOURCE, 3, 1)
        published = {"brand_new.r$": 2, "phase_start.r$": 1}
        client.publish(RunComplete(run_id="r", status="completed", published=published), SOURCE, 4, 1)
        (receipt,) = await until(lambda: subscriber.of(Receipt))
        runner.stop()
        await task
    new = receipt.topics["brand_new.r$"]
    assert (new.published, new.received, new.handled, new.missed, new.failed) == (2, 2, 2, 0, 0)
    assert receipt.complete
    assert consumer.count == 1
    told = [r.getMessage() for r in caplog.records if "brand_new" in r.getMessage()]
    assert told == ["consumer 'old': events of kind 'brand_new' are newer than this phase-bus; skipped"]


def test_bus_refuses_events_of_another_version(bus: BusThread, caplog: pytest.LogCaptureFixture) -> None:
    """It takes none of them in, counts them, and says why; events of its own version are not affected."""
    with RawClient(bus.address) as client:
        client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="other"))
        client.socket.send_multipart((topic_of(START), OTHER_VERSION, encode_event(START)))
        wait_until(lambda: client.status().dropped == 1)
        status = client.status()
        assert (status.events, status.offset) == (0, 0)
        client.publish(START, SOURCE, 1)
        assert wait_until(lambda: client.status().events) == 1
    assert [r.getMessage() for r in caplog.records if REFUSAL in r.getMessage()]


async def test_consumer_refuses_events_of_another_version(caplog: pytest.LogCaptureFixture) -> None:
    """Straight from a publisher of another version: nothing is handled, and the log says why."""
    consumer = Starts()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        publisher = context.socket(zmq.PUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        runner = ConsumerRunner(consumer, Address.parse(f"direct+tcp://127.0.0.1:{port}"))
        task = asyncio.create_task(runner.run())
        deadline_s = time.monotonic() + 20
        while not any(REFUSAL in record.getMessage() for record in caplog.records):
            publisher.send_multipart((topic_of(START), OTHER_VERSION, encode_event(START)))
            await asyncio.sleep(0.01)
            assert time.monotonic() < deadline_s
        runner.stop()
        await task
    finally:
        context.destroy(linger=0)
    assert consumer.count == 0
