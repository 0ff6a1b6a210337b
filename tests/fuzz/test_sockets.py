"""Every socket of a bus, a publisher and a consumer goes on, whatever comes in."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import zmq
from hypothesis import example, given
from hypothesis import strategies as st

from phase_bus.core.address import Address
from phase_bus.core.control import Ack, Hello, Welcome
from phase_bus.core.wire import decode_reply, encode_control, encode_event, unpack_header
from phase_bus.errors import WireError
from phase_bus.events import EventBase, PhaseProgress, PhaseRef, PhaseStats
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until, wait_until
from tests.fuzz.mutations import fuzzed, messages, mutated
from tests.support.buses import DurableBus
from tests.support.clients import SOURCE, RawClient, Subscriber
from tests.support.recorder import WithRecords, publish, running
from tests.wire import decoder, encoder

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(900)]

ANY = st.one_of(
    messages("events", "records", "bundles", "control"),
    st.lists(st.binary(max_size=300), min_size=1, max_size=6),
)
IN_A_TURN = st.lists(ANY, min_size=1, max_size=20)


@contextmanager
def connected(kind: int, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A socket without any protocol in it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(kind)
    sock.connect(endpoint)
    yield sock
    context.destroy(linger=1000)


def check_whole(bus: DurableBus) -> None:
    """The bus takes in a run, and its journal is in order."""
    publish(bus.address, 20, run_id="good", end=True)
    with JournalReader(bus.data) as journal:
        (run,) = [run for run in journal.runs() if run.run_id == "good"]
        assert (run.status, run.records) == ("completed", 20)
        assert journal.verify() == []


def test_requests_and_events(kept: DurableBus) -> None:
    """To the ROUTER, from somebody who is known as a publisher."""
    with RawClient(kept.address) as client:

        @fuzzed(200)
        @given(ANY)
        def send(frames: list[bytes]) -> None:
            client.socket.send_multipart(frames)

        client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="fuzz"))
        send()
        client.status()
    check_whole(kept)


@st.composite
def bundles(draw: st.DrawFn, topic: bytes, seq: int) -> tuple[list[bytes], bool]:
    """Return a message of events whose first has this number, and whether it was left as it is."""
    events = [
        PhaseProgress(run_id="fuzz", phase=PhaseRef(name), ts_ns=seq + number, stats=PhaseStats(sent=sent))
        for number, (name, sent) in enumerate(
            draw(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 70_000)), min_size=2, max_size=9))
        )
    ]
    header, payload = encoder.bundle(encoder.header(SOURCE, seq, seq), [*map(encode_event, events)])
    if draw(st.booleans()):
        return [topic, header, payload], True
    # The number on the topic is left alone: a larger one would make the next good bundle old.
    sizes, before, after = mutated(header[64:]), mutated(header[:32]), header[32:64]
    return [topic, draw(before) + after + draw(sizes), draw(mutated(payload))], False


def test_bundles(kept: DurableBus) -> None:
    """Good ones are taken in, whatever came before; of the others, what is sent on can be read."""
    topic, known = b"phase_progress.fuzz$", {"phase_progress"}
    published: dict[int, bytes] = {}
    with Subscriber(kept.address, topic.decode()) as subscriber, RawClient(kept.address) as client:

        def last_seq() -> int:
            client.socket.send(encode_control(hello))
            while not isinstance(reply := client.reply(), Welcome):
                pass
            return reply.last_seq

        hello = Hello(client_id=SOURCE.hex(), role="publisher", name="fuzz")
        last_seq()

        @fuzzed(200)
        @given(st.data())
        def send(data: st.DataObject) -> None:
            last = last_seq()
            frames, good = data.draw(bundles(topic, last + 1))
            client.socket.send_multipart(frames)
            if not good:
                return
            events = decoder.read_message(frames, known)
            assert last_seq() == last + len(events)
            for event in events:
                published[event.head.source_seq] = encoder.pack(event.payload)

        send()
        wait_until(lambda: subscriber.read() and subscriber.headers[-1].source_seq >= max(published))
    live = [header.source_seq for header in subscriber.headers]
    assert live == sorted(set(live))
    assert None not in subscriber.events
    with JournalReader(kept.data) as journal:
        found = {e.source_seq: e.payload for e in journal.entries() if e.topic == topic}
        assert journal.verify() == []
    assert set(live) == found.keys() >= published.keys()
    for seq, payload in published.items():
        assert encoder.pack(decoder.unpack(found[seq])) == payload
    check_whole(kept)


def test_subscriptions_and_replay(kept: DurableBus) -> None:
    """To the XPUB, and to the ROUTER for replay."""
    with RawClient(kept.address) as client:
        welcome = client.ask(Hello(client_id="0" * 32, role="client", name="fuzz"))
    assert isinstance(welcome, Welcome)
    assert welcome.replay is not None
    address = Address.parse(kept.address)
    for kind, endpoint in ((zmq.XSUB, welcome.events), (zmq.DEALER, welcome.replay)):
        with connected(kind, address.endpoint(endpoint)) as sock:

            @fuzzed(200)
            @given(ANY)
            def send(frames: list[bytes]) -> None:
                sock.send_multipart(frames)

            send()
    check_whole(kept)


class Nonsense:
    """Lets a bus say something else before each of its replies and heartbeats."""

    def __init__(self, bus: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turn: list[list[bytes]] = []
        server = bus.bus
        reply, beat = server._reply, server._beat

        def say(identity: bytes, message: Any) -> None:
            for frames in self.turn:
                with suppress(zmq.ZMQError):  # it is gone, or has not read what came before
                    server._router.send_multipart((identity, *frames), zmq.NOBLOCK)
            reply(identity, message)

        def tick() -> None:
            for frames in self.turn:
                server._xpub.send_multipart(frames)
            beat()

        monkeypatch.setattr(server, "_reply", say)
        monkeypatch.setattr(server._clients, "_reply", say)
        monkeypatch.setattr(server, "_beat", tick)


def test_a_publisher(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is answered, it delivers what it has."""
    nonsense = Nonsense(kept, monkeypatch)

    @fuzzed(20)
    @given(IN_A_TURN)
    def deliver(turn: list[list[bytes]]) -> None:
        nonsense.turn = turn
        with Publisher(kept.address) as publisher:
            publisher.complete_run("good", "completed")
            assert publisher.flush(30)

    deliver()


def makes_sense(frames: list[bytes]) -> bool:
    """Return whether this is a reply, or an event with a header."""
    try:
        if len(frames) != 3:
            return decode_reply(frames[0]) is not None
        return unpack_header(frames[1], frames[0]).offset > 0
    except WireError:
        return False


def mine(consumer: WithRecords, run_id: str) -> list[EventBase]:
    """Return a run's events."""
    return [event for event in consumer.events if event.run_id == run_id]


def test_a_consumer(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is sent, live or as a reply, it comes to handle a run as a whole."""
    nonsense, numbers = Nonsense(kept, monkeypatch), itertools.count()
    # A bus that says something else that makes sense is believed.

    async def run() -> None:
        consumer, run_id = WithRecords(), f"good-{next(numbers)}"
        async with running(consumer, kept.address):
            await asyncio.to_thread(publish, kept.address, 10, run_id=run_id, end=True)
            await until(lambda: any(e.kind == "run_complete" for e in mine(consumer, run_id)))
        assert [e.ts_ns for e in mine(consumer, run_id)[:-1]] == list(range(10))

    @example([[b"", encode_control(Ack(seq=10))]])  # once its second frame was believed
    @fuzzed(12)
    @given(IN_A_TURN)
    def handle(turn: list[list[bytes]]) -> None:
        nonsense.turn = [frames for frames in turn if not makes_sense(frames)]
        asyncio.run(run())

    handle()
