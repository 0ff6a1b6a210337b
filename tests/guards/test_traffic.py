"""Frames, transactions and waits of an event, counted: in the bus and in a consumer."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
import zmq

from benchmarks import shapes
from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.control import Ack, Hello, Welcome
from phase_bus.core.readable import Readable
from phase_bus.core.wire import BUNDLED_MOST, encode_event, topic_of
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import DEADLINE_S, until, wait_until
from tests.guards.bounds import assert_at_most
from tests.guards.traffic import Frames, running_bus, send_all
from tests.support.bundles import packed
from tests.support.clients import SOURCE, RawClient, Subscriber

_COUNT = 500
_EVENT = shapes.event_of_size(200)


def test_a_burst_is_one_transaction_a_turn_and_acknowledged_as_one(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    frames = Frames(monkeypatch)
    with running_bus(ipc_dir) as (address, journal), Publisher(address) as publisher:
        journal.gate.set()
        publisher.publish(_EVENT)  # the first one of a topic goes through alone
        assert publisher.flush(DEADLINE_S)
        journal.gate.clear()
        frames.sent.clear()
        frames.received.clear()
        journal.appended.clear()
        send_all(publisher, lambda: publisher.publish(_EVENT), _COUNT, journal)

        assert journal.kept == _COUNT + 1
        # What has come while the first waited is taken in at once, or nearly: 3 to 14 turns, by how busy
        # the machine is.
        assert_at_most(25, len(journal.appended), f"transactions for a burst of {_COUNT} events")
        assert_at_most(0.3, frames.sent[zmq.DEALER] / _COUNT, "frames sent by the publisher an event")
        assert_at_most(0.3, frames.sent[zmq.XPUB] / _COUNT, "frames sent to a consumer an event")
        assert_at_most(0.4, frames.received[zmq.ROUTER] / _COUNT, "frames received by the bus an event")
        # Acknowledgements, and the welcome.
        assert_at_most(0.1, frames.sent[zmq.ROUTER] / _COUNT, "frames sent back an event")


def test_few_events_wait_at_a_bus_that_is_held_up(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """One by one they leave while the bus is not far behind; then they wait, and leave together."""
    frames = Frames(monkeypatch)
    with running_bus(ipc_dir) as (address, journal), Publisher(address) as publisher:
        wait_until(lambda: publisher.connected)
        for _ in range(_COUNT):
            publisher.publish(_EVENT)
            wait_until(lambda: not publisher._sender._inbox)  # so that each comes alone
        journal.gate.set()
        assert publisher.flush(DEADLINE_S)
        assert journal.kept == _COUNT
        # 64, and then eight at a time; hello and beats.
        assert_at_most(
            3 * 150, frames.sent[zmq.DEALER], f"frames sent by the publisher for {_COUNT} events"
        )


def test_a_turn_of_bundles_is_one_transaction_and_acknowledged_as_one(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """A row, and three frames to consumers, for each bundle.

    Nothing shows that they have come while the bus stands still: should they be late, others are looked at.
    """
    frames = Frames(monkeypatch)
    payloads = [encode_event(_EVENT)] * 256
    topic = topic_of(_EVENT)
    with running_bus(ipc_dir) as (address, journal), RawClient(address) as client:

        def send(seq: int, count: int) -> None:
            client.socket.send_multipart(packed(payloads[:count], topic, SOURCE, seq, seq))

        def turns(first: int) -> tuple[list[int], int, int]:
            """Return the rows of each transaction, and the frames sent to consumers and to the client."""
            journal.gate.clear()
            before_s = time.monotonic()
            send(first, 2)
            wait_until(lambda: journal.waits)
            for number in range(3):
                send(first + 2 + 256 * number, 256)
            wait_until(lambda: time.monotonic() > before_s + 0.1)
            journal.appended.clear()
            frames.sent.clear()
            journal.gate.set()
            last = first + 2 + 3 * 256 - 1
            while client.reply() != Ack(seq=last):
                pass
            return journal.appended[:], frames.sent[zmq.XPUB], frames.sent[zmq.ROUTER]

        journal.gate.set()
        assert isinstance(client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="raw")), Welcome)
        client.publish(_EVENT, SOURCE, 1)
        assert client.reply() == Ack(seq=1)
        found = [turns(2 + 770 * number) for number in range(5)]
    # First what held the bus up, two events, then the bundles, maybe a heartbeat; a reply has two frames.
    assert any(rows == [1, 3] and sent in (12, 15) and back == 4 for rows, sent, back in found)


def test_what_waits_goes_in_one_message_and_one_row(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """As many events as a bundle may have, and one more."""
    with running_bus(ipc_dir) as (address, journal), Publisher(address) as publisher:
        journal.gate.set()
        publisher.publish(_EVENT)  # by the first one of a topic is judged who may publish there
        assert publisher.flush(DEADLINE_S)
        frames, outbox = Frames(monkeypatch), publisher._sender._outbox
        with monkeypatch.context() as held:
            held.setattr(publisher._sender._link, "send", lambda: False)
            for _ in range(BUNDLED_MOST + 1):
                publisher.publish(_EVENT)
            wait_until(lambda: outbox.last_seq == BUNDLED_MOST + 2)
        assert publisher.flush(DEADLINE_S)
        assert frames.sent[zmq.DEALER] == frames.sent[zmq.XPUB] == 6
        assert (sum(journal.appended), journal.kept) == (3, BUNDLED_MOST + 2)


def test_a_large_payload_is_passed_on_as_it_was_received(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    frames = Frames(monkeypatch)
    large = shapes.event_of_size(65536)
    with running_bus(ipc_dir) as (address, journal):
        with Subscriber(address, "records.") as subscriber, Publisher(address) as publisher:
            send_all(publisher, lambda: publisher.publish(large), 5, journal)
            wait_until(lambda: len(subscriber.read()) == 5)
        passed = [frame for frame in frames.payloads if len(memoryview(frame)) > 8192]  # type: ignore[arg-type]
        assert len(passed) == 5
        assert all(isinstance(frame, zmq.Frame) for frame in passed), "a large payload is copied"


class Counter(Consumer):
    """Counts events; at the first it waits until the gate is open, and its whole process with it."""

    name = "counter"

    def __init__(self, gate: threading.Event) -> None:
        self.count = 0
        self._gate = gate

    async def on_event(self, event: EventBase) -> None:
        self.count += 1
        if self.count == 1:
            assert self._gate.wait(DEADLINE_S)


async def test_a_burst_takes_three_receives_an_event_and_few_wake_ups(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    frames = Frames(monkeypatch)
    waits = 0
    wait = Readable.wait

    async def counting(self: Readable, *arguments: object, **named: object) -> None:
        nonlocal waits
        waits += 1
        await wait(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Readable, "wait", counting)
    with running_bus(ipc_dir) as (address, journal):
        journal.gate.set()
        consumer = Counter(journal.gate)
        runner = ConsumerRunner(consumer, Address.parse(address), receipts=False)
        running = asyncio.create_task(runner.run())
        await until(lambda: runner.state == "ready")
        journal.gate.clear()
        asked, waited = frames.received[zmq.SUB], waits
        with Publisher(address) as publisher:
            # In a thread, since the consumer's loop stands still meanwhile.
            await asyncio.to_thread(send_all, publisher, lambda: publisher.publish(_EVENT), _COUNT, journal)
            await until(lambda: consumer.count == _COUNT)
        # Heartbeats and empty looks are among them.
        assert_at_most(3.5, (frames.received[zmq.SUB] - asked) / _COUNT, "receives an event")
        assert_at_most(0.2, (waits - waited) / _COUNT, "waits for the socket an event of a burst")
        runner.stop()
        await running
