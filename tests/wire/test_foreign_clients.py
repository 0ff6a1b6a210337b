"""A publisher and a subscriber as docs/wire.md describes them, with nothing of ours but the bus."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseProgress, PhaseStart, Records, RunComplete
from phase_bus.testing import PROFILING, LiveBus, make_run
from tests.wire import decoder, encoder

pytestmark = pytest.mark.usefixtures("no_leaks")

KNOWN = {"records", "phase_progress", "run_complete", "heartbeat"}
TIMEOUT_MS = 20_000


class Foreigner:
    """A DEALER to the bus, and an id."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.address = address
        self.id = os.urandom(16)
        self.context = context
        self.dealer = self.socket(zmq.DEALER, "control.ipc")

    def socket(self, kind: int, name: str) -> zmq.Socket[bytes]:
        """Return a socket that is connected to one of the bus's."""
        found = self.context.socket(kind)
        found.connect(f"{self.address}/{name}")
        return found

    def ask(self, op: str, wanted: str, **fields: Any) -> dict[str, Any]:
        """Send a request; return the first reply of a sort."""
        self.dealer.send(encoder.pack({"op": op, **fields}))
        return self.reply(wanted)

    def reply(self, *wanted: str) -> dict[str, Any]:
        """Return the next reply of these sorts."""
        while self.dealer.poll(TIMEOUT_MS):
            reply = decoder.unpack(self.dealer.recv())
            if reply["op"] in wanted:
                return dict(reply)
        raise AssertionError(f"no {wanted}")


class ForeignPublisher(Foreigner):
    """Publishes with a window of one: it waits for each event's acknowledgement."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        super().__init__(context, address)
        hello = {"client_id": self.id.hex(), "role": "publisher", "name": "foreign", "next_seq": 1}
        welcome = self.ask("hello", "welcome", wire_version=decoder.WIRE_VERSION, **hello)
        assert welcome["last_seq"] == 0
        self.source_seq = 0
        self.topics: Counter[str] = Counter()

    def publish(self, kind: str, qualifier: str, batch: int = 0, **fields: Any) -> None:
        """Publish an event, which carries a batch of so many records."""
        topic = f"{kind}.{qualifier}$"
        self.source_seq += 1
        self.topics[topic] += 1
        header = encoder.header(self.id, self.source_seq, self.topics[topic], batch)
        payload = encoder.pack({"kind": kind, **fields})
        self._send(topic, header, payload)

    def publish_together(self, kind: str, qualifier: str, events: list[dict[str, Any]]) -> None:
        """Publish events in a bundle."""
        topic = f"{kind}.{qualifier}$"
        first = encoder.header(self.id, self.source_seq + 1, self.topics[topic] + 1)
        self.source_seq += len(events)
        self.topics[topic] += len(events)
        payloads = [encoder.pack({"kind": kind, **event}) for event in events]
        self._send(topic, *encoder.bundle(first, payloads))

    def _send(self, topic: str, header: bytes, payload: bytes) -> None:
        self.dealer.send_multipart([topic.encode(), header, payload])
        while (ack := self.reply("ack"))["seq"] < self.source_seq:
            assert not ack["resend"]


class ForeignSubscriber(Foreigner):
    """Subscribes to everything, and fetches what was before."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        super().__init__(context, address)
        hello = {"client_id": self.id.hex(), "role": "client", "name": "foreign reader"}
        welcome = self.ask("hello", "welcome", wire_version=decoder.WIRE_VERSION, **hello)
        self.sub = self.socket(zmq.SUB, welcome["events"]["ipc_name"])
        self.replay = self.socket(zmq.DEALER, welcome["replay"]["ipc_name"])
        self.offset = 0
        self.largest = 0  # events in a message
        self.sub.subscribe(b"")
        ready = f"ready.{self.id.hex()}$".encode()
        self.sub.subscribe(ready)
        while self._receive()[0] != ready:
            pass

    def _receive(self) -> list[bytes]:
        assert self.sub.poll(TIMEOUT_MS)
        return list(self.sub.recv_multipart())

    def _events(self, frames: list[bytes]) -> list[decoder.Received]:
        events = decoder.read_message(frames, KNOWN)
        self.largest = max(self.largest, len(events))
        return events

    def fetch(self) -> Iterator[decoder.Received]:
        """Yield what the journal has after the offset."""
        while True:
            self.replay.send(encoder.pack({"op": "fetch", "after": self.offset, "records": True}))
            assert self.replay.poll(TIMEOUT_MS)
            first, *frames = self.replay.recv_multipart()
            fetched = decoder.unpack(first)
            assert fetched["op"] == "fetched"
            for place in range(0, len(frames), 3):
                yield from self._events(frames[place : place + 3])
            self.offset = fetched["offset"]
            if fetched["end"]:
                return

    def live(self) -> Iterator[decoder.Received]:
        """Yield what comes next, up to the end of a run; fail on a gap, or if something was lost."""
        while True:
            frames = self._receive()
            if frames[0].startswith(b"ready."):
                continue
            for event in self._events(frames):
                if event.kind == "heartbeat":
                    assert event.head.offset <= self.offset, "lost"
                elif event.head.offset > self.offset:
                    assert event.head.offset == self.offset + 1, "a hole"
                    self.offset = event.head.offset
                    yield event
                    if event.kind == "run_complete":
                        return


@contextmanager
def foreign_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A ZeroMQ context, whose sockets are closed at the end."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


class Recorder(Consumer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.phases: list[PhaseStart] = []
        self.progress: list[int] = []
        self.records: list[dict[str, Any]] = []
        self.ends: list[RunComplete] = []

    async def on_phase_start(self, event: PhaseStart) -> None:
        self.phases.append(event)

    async def on_phase_progress(self, event: PhaseProgress) -> None:
        self.progress.append(event.ts_ns)

    async def on_records(self, event: Records) -> None:
        self.records += RecordBatch(event)

    async def on_run_complete(self, event: RunComplete) -> None:
        self.ends.append(event)


def test_foreign_publisher() -> None:
    """What it publishes reaches a consumer of ours, whole and with nothing to complain of."""
    phase = {"name": "profiling"}
    table = [
        ["ttft", "ok", "id"],
        "fbs",
        2,
        struct.pack("<dqdq", 1.5, 1, 2.5, 0),
        encoder.pack([["a"], ["b"]]),
    ]
    with LiveBus() as bus, foreign_context() as context:
        publisher = ForeignPublisher(context, bus.address)
        publisher.publish("run_start", "r.1", run_id="r.1", ts_ns=1, producer="foreign 1.0")
        publisher.publish("phase_start", "r.1", run_id="r.1", ts_ns=2, phase=phase)
        for begin in (10, 20, 30):  # the bus takes the first bundle on a topic apart
            told = [{"run_id": "r.1", "ts_ns": begin + n, "phase": phase, "stats": {}} for n in range(5)]
            publisher.publish_together("phase_progress", "r.1", told)
        batch: dict[str, Any] = {
            "run_id": "r.1",
            "ts_ns": 3,
            "phase": phase,
            "count": 2,
            "metrics": [table],
        }
        publisher.publish("records", "00.r.1", 2, **batch)
        published = dict(publisher.topics)
        end: dict[str, Any] = {"status": "completed", "published": published, "records": 2}
        publisher.publish("run_complete", "r.1", run_id="r.1", ts_ns=4, **end)
        publisher.ask("goodbye", "heard", client_id=publisher.id.hex())
        outcome = bus.run_consumer_sync(recorder := Recorder())
    assert [event.phase.name for event in recorder.phases] == ["profiling"]
    assert recorder.progress == [begin + n for begin in (10, 20, 30) for n in range(5)]
    assert [(r["ttft"], r["ok"], r["id"]) for r in recorder.records] == [
        (1.5, True, "a"),
        (2.5, False, "b"),
    ]
    assert len(recorder.ends) == 1
    assert (recorder.ends[0].status, recorder.ends[0].records) == ("completed", 2)
    assert outcome.receipt.complete


def test_foreign_subscriber() -> None:
    """It reads one run from the journal and the next one live, in order and without a gap."""
    with LiveBus() as bus, foreign_context() as context:
        bus.publish(*make_run(300, phases=(PROFILING,), run_id="first"))
        subscriber = ForeignSubscriber(context, bus.address)
        past = list(subscriber.fetch())
        bus.publish(*make_run(300, phases=(PROFILING,), run_id="second"))
        now = list(subscriber.live())
    for run_id, events in (("first", past), ("second", now)):
        assert {event.run_id for event in events} == {run_id}
        assert events[-1].kind == "run_complete"
        batches = [event.payload for event in events if event.kind == "records"]
        assert sum(len(decoder.read_records(batch)) for batch in batches if batch is not None) == 300
        assert events[-1].payload is not None
        assert events[-1].payload["records"] == 300


def test_bundles_of_a_foreign_publisher_reach_a_foreign_subscriber() -> None:
    """As bundles, live and from the journal; from there, also from within one."""
    told: list[dict[str, Any]] = [
        {"run_id": "r.1", "ts_ns": n, "phase": {"name": "p"}, "stats": {"sent": n}} for n in range(1, 7)
    ]
    with LiveBus() as bus, foreign_context() as context:
        subscriber = ForeignSubscriber(context, bus.address)
        publisher = ForeignPublisher(context, bus.address)
        publisher.publish("run_start", "r.1", run_id="r.1", ts_ns=1, producer="foreign 1.0")
        publisher.publish("phase_progress", "r.1", **told[0])
        publisher.publish_together("phase_progress", "r.1", told[1:])
        end: dict[str, Any] = {"status": "completed", "published": dict(publisher.topics), "records": 0}
        publisher.publish("run_complete", "r.1", run_id="r.1", ts_ns=9, **end)
        live = list(subscriber.live())
        assert subscriber.largest == 5
        for after in range(len(live)):
            subscriber.offset, subscriber.largest = after, 0
            past = list(subscriber.fetch())
            assert past == live[after:]
            assert (subscriber.largest == 5) == (after <= 2)
    assert [event.head.offset for event in live] == list(range(1, 9))
    assert [event.head.topic_seq for event in live[1:-1]] == [1, 2, 3, 4, 5, 6]
    assert [event.payload and event.payload["ts_ns"] for event in live[1:-1]] == [1, 2, 3, 4, 5, 6]
