"""How many functions a record, an event and a batch take, and how many blocks of memory they leave.

Unlike times they are the same on every machine and at every load, so that what is new on a path that every
record takes shows here first. They are no budget: code that is written differently may well call more.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import zmq

from benchmarks import shapes
from benchmarks.harness import Plan, Report, Table, directory, run, spread
from phase_bus.aggregation.state import RunState
from phase_bus.bus.intake import check_bundle
from phase_bus.bus.stream import Incoming, Stream
from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.dispatcher import Dispatcher
from phase_bus.consumer.view import View
from phase_bus.core.bundle import join, sizes_of
from phase_bus.core.outbox import Outbox, frames_of
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import (
    HEADER,
    NO_PARTITION,
    Header,
    decode_event,
    encode_event,
    parse_topic,
    topic_of,
    unpack_header,
)
from phase_bus.events import EventBase, Records
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.publisher.record_builder import RecordBuilder

_EVENTS = 500
_IN_A_BUNDLE = 100
_BATCHES = (256, 2048)
_SOURCE = b"s" * 16
_EVENT = shapes.event_of_size(200)
_TOPIC, _PAYLOAD = topic_of(_EVENT), encode_event(_EVENT)
_FLUSH_S = 20.0
_BEYOND_EXACT = 40  # batches, after which an aggregation's state is that of any long run


def main() -> Report:
    """Run it."""
    return run("calls", "How many functions are called for a record, an event and a batch?", _measure)


def _measure(_plan: Plan, report: Report) -> None:
    rows = []
    for who in (_publisher, _bus, _consumer):
        for key, what, found in who():
            report.figures[key] = spread([found])
            rows.append([who.__name__.strip("_"), what, f"{found:,.1f}"])
    report.tables.append(Table("By process", ["process", "what", "count"], rows))
    report.notes.append(
        "Calls: functions in Python and in C, as sys.setprofile sees them, before Python 3.12 with "
        "comprehensions. Blocks: of memory, while the result is kept, the least of five tries. Neither "
        "depends on the machine; neither is a budget."
    )


def _publisher() -> Iterator[tuple[str, str, float]]:
    records = shapes.records(_BATCHES[0])

    def record() -> None:
        for one in records:
            publisher.record(shapes.RUN_ID, shapes.PHASE, *one)

    def publish() -> None:
        for _ in range(_EVENTS):
            publisher.publish(_EVENT)

    with (
        directory() as place,
        Publisher(bind=f"ipc://{place}", batch_records=len(records), batch_s=60.0) as publisher,
    ):
        record()
        publisher.flush(_FLUSH_S)
        yield "calls_record", "calls a record, in the benchmark's thread", calls_of(record) / len(records)
        yield "calls_publish", "calls an event, in the benchmark's thread", calls_of(publish) / _EVENTS
    yield "calls_put", "calls to encode and number an event", calls_of(_put) / _EVENTS
    yield "blocks_put", "blocks kept by an event that waits", blocks_kept(_put) / _EVENTS
    outbox = _put(_IN_A_BUNDLE)
    yield "calls_send_bundle", f"calls to send a bundle of {_IN_A_BUNDLE}", calls_of(lambda: _send(outbox))
    for count in _BATCHES:
        yield from _packing(count)


def _put(count: int = _EVENTS) -> Outbox:
    outbox = Outbox(_SOURCE, 1 << 30)
    for _ in range(count):
        outbox.put(_EVENT)
    return outbox


def _send(outbox: Outbox) -> None:
    """Do what sending and acknowledging what waits does, but for the socket."""
    messages = outbox.together()
    frames_of(messages)
    outbox.sent(len(messages))
    outbox.acknowledge(outbox.last_seq)


def _packing(count: int) -> Iterator[tuple[str, str, float]]:
    builder, records = RecordBuilder(), shapes.records(count)

    def add() -> None:
        for record in records:
            builder.add(*record)

    def packed() -> object:
        add()
        return builder.build()

    packed()  # from now on the records' shape is known
    yield f"blocks_pack_{count}", f"blocks kept by a packed batch of {count:,} records", blocks_kept(packed)
    add()
    yield f"calls_pack_{count}", f"calls to pack {count:,} records", calls_of(builder.build)


def _bus() -> Iterator[tuple[str, str, float]]:
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, linger=0)
        journal = stack.enter_context(Journal(Path(stack.enter_context(directory()))))
        stream = Stream(context.socket(zmq.XPUB), journal, bytes(16).hex())

        def commit() -> None:
            for header in headers:
                stream.add(Incoming(_TOPIC, parsed, header, payload, NO_PARTITION, payload, _EVENT, sizes))
            stream.commit()

        parsed, payload, sizes = parse_topic(_TOPIC), _PAYLOAD, b""

        headers = [Header(_SOURCE, seq, seq) for seq in range(1, _EVENTS + 1)]
        commit()
        headers = [Header(_SOURCE, seq, seq) for seq in range(_EVENTS + 1, 2 * _EVENTS + 1)]
        yield "calls_commit", "calls to journal an event and fan it out", calls_of(commit) / _EVENTS
        frame, payload = _bundle(2 * _EVENTS + 1)
        headers, sizes = [unpack_header(frame)], frame[HEADER.size :]
        _check(frame, payload)  # from now on there is a decoder
        of = f"a bundle of {_IN_A_BUNDLE}"
        yield "calls_commit_bundle", f"calls to journal {of} and fan it out", calls_of(commit)
        yield "calls_check_bundle", f"calls to look at {of}", calls_of(lambda: _check(frame, payload))


def _bundle(seq: int, offset: int = 0) -> tuple[bytes, bytes]:
    """Return the header and payload of a bundle whose first event has these numbers."""
    return join(Header(_SOURCE, seq, seq, 0, offset, offset).pack(), [_PAYLOAD] * _IN_A_BUNDLE)


def _check(frame: bytes, payload: bytes) -> None:
    header, view = unpack_header(frame, _TOPIC), memoryview(payload)
    check_bundle(_TOPIC, parse_topic(_TOPIC), header, sizes_of(header, frame, view, _TOPIC), view)


class _Taker(Consumer):
    """Does nothing with events."""

    name = "taker"

    async def on_event(self, event: EventBase) -> None:
        """Take it."""


def _consumer() -> Iterator[tuple[str, str, float]]:
    consumer = _Taker()
    dispatcher = Dispatcher(consumer, View.whole(consumer, topics=("",)), "0" * 32)
    seq = 0

    def take() -> object:
        nonlocal seq
        for _ in range(_EVENTS):
            seq += 1
            header = Header(_SOURCE, seq, seq, 0, seq, seq)
            _to_end(dispatcher.take(Arrival(_TOPIC, header, _PAYLOAD), lambda: True, replayed=False))
        return dispatcher

    def take_bundle() -> object:
        nonlocal seq
        frame, payload = _bundle(seq + 1, seq + 1)
        seq += _IN_A_BUNDLE
        arrival = Arrival.of(_TOPIC, frame, memoryview(payload))
        _to_end(dispatcher.take(arrival, lambda: True, replayed=False))
        return dispatcher

    take()
    yield "calls_take", "calls an event, from the socket's frames to its handler", calls_of(take) / _EVENTS
    yield "blocks_take", "blocks left behind by an event", blocks_kept(take) / _EVENTS
    take_bundle()
    of = f"a bundle of {_IN_A_BUNDLE}"
    yield "calls_take_bundle", f"calls {of}, from its frames to the handler", calls_of(take_bundle)
    yield "blocks_take_bundle", f"blocks left behind by {of}", blocks_kept(take_bundle)
    for count in _BATCHES:
        yield from _aggregating(count)


def _aggregating(count: int) -> Iterator[tuple[str, str, float]]:
    event = shapes.batch(count)
    topic, payload = topic_of(event), encode_event(event)
    state = RunState(shapes.RUN_ID)

    def decoded() -> RecordBatch:
        event = decode_event(topic, payload)
        assert isinstance(event, Records)
        return RecordBatch(event)

    def update() -> None:
        state.update(decoded())

    for _ in range(_BEYOND_EXACT):
        update()
    of = f"{count:,} records of {len(shapes.records(1)[0].metrics)} metrics"
    yield f"calls_aggregate_{count}", f"calls to decode and aggregate {of}", calls_of(update)
    yield f"blocks_decode_{count}", f"blocks kept by {of}, decoded", blocks_kept(decoded)


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions this thread calls in ``work``, in Python and in C.

    To make an object of a class written in C does not count.
    """
    found = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found - 2  # work itself, and the setprofile that ends it


def blocks_kept(work: Callable[[], object]) -> int:
    """Return how many more blocks of memory are taken while what ``work`` returns is kept.

    The least of some tries: what Python fills its caches with is not meant.
    """
    tries = []
    for _ in range(5):
        result = None
        gc.collect()
        before = sys.getallocatedblocks()
        result = work()
        gc.collect()
        tries.append(sys.getallocatedblocks() - before)
    assert result is not None
    return min(tries)


def _to_end(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that waits for nothing.

    Raises:
        RuntimeError: if it waits.
    """
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a path that every event takes is to end in one go")


if __name__ == "__main__":
    main()
