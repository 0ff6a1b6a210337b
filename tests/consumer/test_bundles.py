"""Bundles at a consumer: it sees their events one by one, as if each had come alone."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NamedTuple

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.consumer.account import TopicCounts, Totals
from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.consumer.raw import RawConsumer, RawEvent
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.consumer.share import Share
from phase_bus.consumer.transport import Piece
from phase_bus.consumer.zeromq import ZeroMqTransport
from phase_bus.core import bundle
from phase_bus.core.address import Address
from phase_bus.core.position import Lineage, Segment
from phase_bus.core.wire import Header, encode_event, topic_of
from phase_bus.events import EventBase, PhaseComplete, PhaseStart, Records
from phase_bus.journal.rows import Checkpoint
from phase_bus.testing.waiting import until
from tests.support.clients import SOURCE
from tests.support.recorder import PHASE, Recorder, running, start

TOPIC = topic_of(start())
Frames = tuple[bytes, bytes, bytes]
Step = tuple[str, int]


def bundled(seq: int, count: int) -> Frames:
    """The frames of a bundle of events that are numbered from ``seq`` on."""
    payloads = [encode_event(start(number)) for number in range(seq, seq + count)]
    return TOPIC, *bundle.join(Header(SOURCE, seq, seq).pack(), payloads)


async def test_a_publisher_in_direct_mode(ipc_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each event of a bundle is handled; one that is malformed is skipped, and told, as a whole."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        pub = context.socket(zmq.PUB)
        pub.setsockopt(zmq.LINGER, 0)
        pub.bind(f"ipc://{ipc_dir}/events.ipc")
        recorder = Recorder()
        async with running(recorder, f"direct+ipc://{ipc_dir}") as runner:
            first = (TOPIC, Header(SOURCE, 1, 1).pack(), encode_event(start(1)))

            def heard() -> bool:
                pub.send_multipart(first)
                return bool(recorder.events)

            await until(heard)
            pub.send_multipart(bundled(2, 256))
            topic, header, payload = bundled(258, 3)
            pub.send_multipart((topic, header, payload[:-1]))
            pub.send_multipart(bundled(261, 2))
            await until(lambda: recorder.numbers[-1] == 262)
            assert [n for n in recorder.numbers if n != 1] == [*range(2, 258), 261, 262]
            totals = runner.snapshot().totals
        assert totals.failed == 1
        assert totals.missed == 3
        assert "the payload does not hold 3 events" in caplog.text
    finally:
        context.destroy()


# ---- the same stream, in bundles and one by one ----

STREAM = "a" * 32
ADDRESSES = {True: "direct+tcp://127.0.0.1:1", False: "tcp://127.0.0.1:1"}


class Event(NamedTuple):
    """One of the stream, and what becomes of it on its live way."""

    topic: bytes
    header: Header
    payload: bytes
    fate: str


class Frame:
    """What the socket gives for a payload."""

    def __init__(self, data: bytes) -> None:
        self.buffer = memoryview(data)


class Lists(ZeroMqTransport):
    """A socket and a journal that are lists: what it ``publishes`` is in the journal, and maybe live.

    Without dice each event travels alone; with them, those that may go together sometimes do.
    """

    has_past = True
    queues: ClassVar[dict[int, deque[Frames]]] = {}  # by the socket that they are in place of
    dice: Random | None = None

    def open(self, stream: Sequence[Event], published: int) -> None:
        """Begin where others have ``published`` so many already."""
        self._stream, self._published = stream, published
        self.queue = self.queues[id(self._live.socket)] = deque()
        self.limit = 1

    def publish_next(self, count: int, topics: tuple[bytes, ...]) -> None:
        """Publish so many events more."""
        live: list[Event] = []
        for place in range(self._published, min(self._published + count, len(self._stream))):
            event = self._stream[place]
            copies = {"lost": 0, "twice": 2}.get(event.fate, 1)
            live += [event] * copies
            if event.fate == "with those before":
                live += self._stream[max(place - 4, 0) : place + 1]
            self._published = place + 1
        self.queue.extend(self._in_messages(event for event in live if event.topic.startswith(topics)))

    async def fetch(self, share: Share) -> Piece | None:
        """Return a piece of at most ``limit`` events."""
        after, topics = share.follower.offset, share.view.topics
        rest = [event for event in self._stream[after : self._published] if event.topic.startswith(topics)]
        part = rest[: self.limit]
        arrivals = [Arrival.of(t, h, memoryview(p)) for t, h, p in self._in_messages(iter(part))]
        if len(part) < len(rest):
            return Piece(arrivals, part[-1].header.offset, part[-1].header.event_number, end=False)
        last = self._stream[self._published - 1].header if self._published else Header(b"", 0, 0)
        return Piece(arrivals, last.offset, last.event_number, end=True)

    def _in_messages(self, events: Iterator[Event]) -> Iterator[Frames]:
        together: list[Event] = []
        for event in events:
            if together and not (self.dice and self.dice.random() < 0.8 and _follows(event, together[-1])):
                yield _message(together)
                together = []
            together.append(event)
        if together:
            yield _message(together)


def _receive(socket: object) -> tuple[bytes, bytes, Frame]:
    queue = Lists.queues[id(socket)]
    if not queue:
        raise zmq.Again
    topic, header, payload = queue.popleft()
    return topic, header, Frame(payload)


def _follows(event: Event, last: Event) -> bool:
    after = bundle.following(last.header, 1)._replace(events=1)
    return event.topic == last.topic and not event.header.records and event.header == after


def _message(events: Sequence[Event]) -> Frames:
    topic, header, payload, _ = events[0]
    if len(events) == 1:
        return topic, header.pack(), payload
    return topic, *bundle.join(header.pack(), [event.payload for event in events])


class Some(Consumer):
    """Takes one kind of event; fails on one with a certain number."""

    retry_times = 0

    def __init__(self) -> None:
        self.handled: list[tuple[Any, ...]] = []

    async def on_phase_start(self, event: PhaseStart) -> None:
        await self.note(event.ts_ns)

    async def note(self, number: int) -> None:
        """Remember what is handled, and what is known of it meanwhile; wait for nothing, at times."""
        if number % 5 == 0:
            await asyncio.sleep(0)
        if number % 7 == 3:
            raise ValueError(number)
        self.handled.append((number, self.offset, self.source, self.sequence, self.event_number))


class All(Some):
    """Takes records, too, so that it follows every offset."""

    async def on_event(self, event: EventBase) -> None:
        await self.note(event.ts_ns)


class Raw(RawConsumer):
    """Takes events as they travel."""

    def __init__(self) -> None:
        self.handled: list[tuple[Any, ...]] = []

    async def on_event(self, event: RawEvent) -> None:
        self.handled.append((event.topic, event.header, bytes(event.payload), self.offset, self.sequence))


class Course(NamedTuple):
    """What happened, and what a consumer made of it."""

    handled: list[tuple[Any, ...]]
    topics: dict[bytes, TopicCounts]
    totals: Totals
    dead: list[int]


@st.composite
def streams(draw: st.DrawFn, *, direct: bool) -> list[Event]:
    """Events of two sources on some topics, records among them, some of which cannot be decoded."""
    kinds = st.sampled_from(["start", "start", "start", "start", "complete", "records", "broken"])
    fates = st.sampled_from(["once", "once", "once", "once", "lost", "twice", "with those before"])
    seqs: dict[tuple[bytes, ...], int] = {}
    stream: list[Event] = []
    number = 0
    for kind, fate, source in draw(
        st.lists(st.tuples(kinds, fates, st.sampled_from([b"a" * 16, b"a" * 16, b"b" * 16])), max_size=40)
    ):
        offset = len(stream) + 1
        made: EventBase = PhaseStart(run_id="r", phase=PHASE, ts_ns=offset)
        if kind == "complete":
            made = PhaseComplete(run_id="r", phase=PHASE, ts_ns=offset)
        elif kind == "records":
            made = Records(run_id="r", phase=PHASE, count=2, ts_ns=offset)
        number += kind != "records"
        topic, payload = topic_of(made), b"\xc1" if kind == "broken" else encode_event(made)
        for counted in ((source,), (source, topic)):
            seqs[counted] = seqs.get(counted, 0) + 1
        header = Header(source, seqs[source,], seqs[source, topic], 2 * (kind == "records"))
        if not direct:
            header = header._replace(offset=offset, event_number=number)
        stream.append(Event(topic, header, payload, fate))
    return stream


steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 12)),
        st.tuples(st.just("read"), st.integers(1, 12)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=20,
)


async def follow(
    stream: list[Event], script: list[Step], make: type[Any], dice: Random | None, *, direct: bool
) -> Course:
    """Let a consumer follow a stream, through restarts if there are any, to its end."""
    handled: list[tuple[Any, ...]] = []
    kept: Checkpoint | None = None
    published = 0
    rest = iter([*script, ("publish", len(stream)), *[("read", 5)] * (2 * len(stream) + 2)])
    while True:
        consumer = named(make(), "some")
        consumer.handled = handled
        runner = ConsumerRunner(consumer, Address.parse(ADDRESSES[direct]), transport=Lists)
        share, transport = runner.share, runner._transport
        assert isinstance(transport, Lists)
        try:
            transport.dice = dice
            transport.open(stream, published)
            runner.state = "ready"
            if not direct:
                await share.begin(kept, Lineage([Segment(STREAM, 1)]))
            for what, count in rest:
                if what == "publish":
                    transport.publish_next(count, share.view.topics)
                    published = min(published + count, len(stream))
                elif what == "read":
                    await _read(runner, count, transport)
                elif what == "flush" and await share.flush() and share.commit is not None:
                    kept = Checkpoint(share.commit.position, share.commit.saved)
                elif what == "restart":
                    break
                if published == len(stream) and stream and not direct:
                    share.heartbeat(stream[-1].header, {})
            else:
                accounts = decode_saved(share.dispatcher.saved()).accounts
                topics = accounts["r"].topics if "r" in accounts else {}
                dead = [letter.offset for letter in share.dispatcher.dead_letters]
                return Course(handled, topics, share.dispatcher.totals(), dead)
        finally:
            await transport.close()


async def _read(runner: ConsumerRunner, limit: int, transport: Lists) -> None:
    """Read what has come live, and then a piece of the past if something is missing."""
    transport.limit = limit
    while await transport.drain():
        pass
    if runner.share.follower.replaying:
        await runner._fetch(runner.share, lambda: True)


@pytest.mark.parametrize("make", [Some, All, Raw])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("breath_s", [0.0, math.inf])
def test_a_stream_in_bundles_is_that_stream(make: type[Any], direct: bool, breath_s: float) -> None:
    """Whatever is lost, repeated, replayed and restarted: what is handled and counted is the same."""

    @settings(max_examples=60, deadline=None, print_blob=True)
    @given(streams(direct=direct), steps, st.randoms(use_true_random=False))
    def check(stream: list[Event], script: list[Step], dice: Random) -> None:
        alone = asyncio.run(follow(stream, script, make, None, direct=direct))
        together = asyncio.run(follow(stream, script, make, dice, direct=direct))
        assert together == alone
        if not direct and "restart" not in [what for what, _ in script]:
            offsets = [each[-2 if make is Raw else 1] for each in together.handled]
            expected = [e.header.offset for e in stream if make is not Some or e.topic == TOPIC]
            assert sorted([*offsets, *together.dead]) == expected
            assert offsets == sorted(offsets)
            assert together.totals.received == len(expected)
            assert together.totals.missed == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phase_bus.consumer.zeromq.receive_event", _receive)
        patch.setattr("phase_bus.consumer.zeromq._BREATH_S", breath_s)
        patch.setattr("phase_bus.consumer.member._BREATH_S", breath_s)
        logging.disable()
        try:
            check()
        finally:
            logging.disable(logging.NOTSET)


class Always(Random):
    """Dice by which all that may go together does."""

    def random(self) -> float:
        return 0.0


@pytest.mark.parametrize("replayed", [False, True])
async def test_another_bus_amid_a_bundle(replayed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is not handled: the other bus may have lost it, and have something else in its place."""
    monkeypatch.setattr("phase_bus.consumer.zeromq.receive_event", _receive)
    made = [PhaseStart(run_id="r", phase=PHASE, ts_ns=number) for number in (1, 2, 4, 5)]
    stream = [
        Event(TOPIC, Header(SOURCE, place, place, 0, place, place), encode_event(event), "once")
        for place, event in enumerate(made, 1)
    ]

    async def meet_another(event: EventBase) -> None:
        if event.ts_ns == 2:
            assert isinstance(transport, Lists)
            transport._tag, runner._bus_id = b"new", "new"

    recorder = named(Recorder(meet_another), "recorder")
    runner = ConsumerRunner(recorder, Address.parse(ADDRESSES[False]), transport=Lists)
    transport = runner._transport
    assert isinstance(transport, Lists)
    try:
        transport.open(stream, 0)
        transport.dice = Always()
        transport.limit = len(stream)
        runner.state = "ready"
        await runner.share.begin(None, Lineage([Segment(STREAM, 1)]))
        runner.share.follower.replaying = replayed
        transport.publish_next(len(stream), (TOPIC,))
        if replayed:
            transport.queue.clear()
        await runner._step()
        assert recorder.numbers == [1, 2]
        assert runner.share.follower.offset == 2
    finally:
        await transport.close()
