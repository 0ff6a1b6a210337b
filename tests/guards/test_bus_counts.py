"""What the bus does for each event, counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from benchmarks import shapes
from phase_bus.bus.stream import Incoming, Stream
from phase_bus.core.wire import Header, encode_event, parse_topic, partition_of, topic_of
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import wait_until
from tests.guards.counting import assert_at_most, calls_of
from tests.guards.traffic import Frames, running_bus, send_all
from tests.support.clients import Subscriber

_COUNT = 500
_EVENT = shapes.event_of_size(200)


def test_a_burst_is_one_transaction_a_turn_and_acknowledged_as_one(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    frames = Frames(monkeypatch)
    with running_bus(ipc_dir) as (address, journal), Publisher(address) as publisher:
        send_all(publisher, lambda: publisher.publish(_EVENT), _COUNT, frames, journal)

        assert sum(journal.appended) == _COUNT
        # What has come while the first waited is taken in at once, or nearly.
        assert_at_most(10, len(journal.appended), f"transactions for a burst of {_COUNT} events")
        assert_at_most(3.0, frames.sent[zmq.DEALER] / _COUNT, "frames sent by the publisher an event")
        assert_at_most(3.5, frames.sent[zmq.XPUB] / _COUNT, "frames sent to a consumer an event")
        assert_at_most(4.5, frames.received[zmq.ROUTER] / _COUNT, "frames received by the bus an event")
        # Acknowledgements, and the welcome.
        assert_at_most(0.1, frames.sent[zmq.ROUTER] / _COUNT, "frames sent back an event")


def test_a_large_payload_is_passed_on_as_it_was_received(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    frames = Frames(monkeypatch)
    large = shapes.event_of_size(65536)
    with running_bus(ipc_dir) as (address, journal):
        with Subscriber(address, "records.") as subscriber, Publisher(address) as publisher:
            send_all(publisher, lambda: publisher.publish(large), 5, frames, journal)
            wait_until(lambda: len(subscriber.read()) == 5)
        passed = [frame for frame in frames.payloads if len(memoryview(frame)) > 8192]  # type: ignore[arg-type]
        assert len(passed) == 5
        assert all(isinstance(frame, zmq.Frame) for frame in passed), "a large payload is copied"


def test_calls_to_journal_and_fan_out_an_event(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.XPUB)
    journal = Journal(tmp_path)
    stream = Stream(socket, journal)
    topic, payload = topic_of(_EVENT), encode_event(_EVENT)
    seq = 0

    def commit() -> None:
        nonlocal seq
        for _ in range(_COUNT):
            seq += 1
            header = Header(b"s" * 16, seq, seq)
            stream.add(Incoming(topic, parse_topic(topic), header, payload, partition_of(topic), payload))
        stream.commit()

    try:
        commit()
        calls = calls_of(commit)
    finally:
        journal.close()
        context.destroy(linger=0)
    # Seven of them are the test's own.
    assert_at_most(29, calls.all / _COUNT, "calls an event in Stream.commit")
