"""Every decoder gives what it read, or one error: whatever bytes it is given."""

from __future__ import annotations

import struct
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from phase_bus.bus.intake import check_bundle, check_event
from phase_bus.consumer.dispatcher import Dispatcher, HandledEnd, decode_saved
from phase_bus.consumer.view import View
from phase_bus.core import bundle
from phase_bus.core.bundle import LARGEST_BUNDLED_BYTES
from phase_bus.core.outbox import Outbox
from phase_bus.core.records import RecordBatch, to_plain
from phase_bus.core.wire import (
    BUNDLED_MOST,
    HEADER,
    Header,
    decode_event,
    decode_reply,
    decode_request,
    encode_event,
    parse_topic,
    partition_of,
    topic_of,
    unpack_header,
)
from phase_bus.errors import SpoolError, WireError
from phase_bus.events import PhaseProgress, Records
from phase_bus.publisher.spool import SpoolReader, write_spool
from tests.fuzz.mutations import corpus, fuzzed, messages, mutated
from tests.support.recorder import PHASE, Recorder, start
from tests.wire import decoder, encoder

EVENTS = corpus("events", "records")
BUNDLES = corpus("bundles")
PROGRESS, TOPIC = encode_event(progress := PhaseProgress(run_id="r", phase=PHASE)), topic_of(progress)


@fuzzed(300)
@given(st.sampled_from(EVENTS).flatmap(lambda frames: st.tuples(*map(mutated, frames))))
def test_events(frames: tuple[bytes, bytes, bytes]) -> None:
    """What the bus takes in can be decoded, read record by record, and shown."""
    topic, header_frame, payload = frames
    try:
        header = unpack_header(header_frame, topic)
        event = check_event(topic, parse_topic(topic), partition_of(topic), header, payload)
    except WireError:
        return
    again = decode_event(topic, payload)
    assert (event is None) == (again is None)
    if event is not None and again is not None and b"\xa5ts_ns" in payload:  # without it, it is now
        assert encode_event(again) == encode_event(event)
    if isinstance(event, Records):
        try:
            assert len(list(RecordBatch(event))) == event.count == header.records
            to_plain(event)
        except WireError:  # the texts and lists in tables are not looked into by the bus
            assert any(table.others for table in (*event.metrics, *event.fields))


def _split(topic: bytes, frame: bytes, payload: bytes) -> list[tuple[Header, memoryview]]:
    return list(bundle.split(unpack_header(frame, topic), frame, memoryview(payload), topic))


@fuzzed(300)
@given(st.sampled_from(BUNDLES).flatmap(lambda frames: st.tuples(*map(mutated, frames))))
def test_bundles(frames: tuple[bytes, bytes, bytes]) -> None:
    """A message is taken apart into what it is put together of, or a WireError; so is each event in it."""
    topic, frame, payload = frames
    try:
        parts = _split(topic, frame, payload)
    except WireError:
        return
    if len(parts) > 1:
        again = bundle.join(frame[: HEADER.size], [bytes(part) for _, part in parts])
        assert again == (frame, payload)
    for header, part in parts:
        with suppress(WireError):
            check_event(topic, parse_topic(topic), partition_of(topic), header, part)


def _all_are_good(frames: tuple[bytes, bytes, bytes]) -> bool:
    """Return whether each event of a bundle would be taken in if it came alone."""
    topic, *_ = frames
    try:
        for header, part in _split(*frames):
            event = check_event(topic, parse_topic(topic), partition_of(topic), header, part)
            if not isinstance(event, PhaseProgress) or len(part) > LARGEST_BUNDLED_BYTES:
                return False
    except WireError:
        return False
    return True


@fuzzed(300)
@given(st.lists(mutated(PROGRESS), min_size=2, max_size=5), st.integers(0, 2**64 - 1))
def test_bundles_that_are_taken_in_whole(payloads: list[bytes], seq: int) -> None:
    """The bus takes a bundle as one if, and only if, it would take each of its events."""
    first = Header(bytes(16), seq, min(seq, 7))
    frame, payload = bundle.join(first.pack(), payloads)
    header, view = unpack_header(frame), memoryview(payload)
    try:
        sizes = bundle.sizes_of(header, frame, view, TOPIC)
        check_bundle(TOPIC, parse_topic(TOPIC), header, sizes, view)
        taken = True
    except WireError:
        taken = False
    assert taken == _all_are_good((TOPIC, frame, payload))


@fuzzed(300)
@given(st.lists(st.binary(max_size=300), min_size=2, max_size=BUNDLED_MOST), st.booleans())
def test_bundles_of_anything(payloads: list[bytes], placed: bool) -> None:
    """Our writer, our reader and the foreign one agree, whatever is in it."""
    first = Header(bytes(16), 7, 3, 0, 5 if placed else 0, 4 if placed else 0)
    frame, payload = bundle.join(first.pack(), payloads)
    assert (frame, payload) == encoder.bundle(first.pack(), payloads)
    parts = _split(b"brand_new.r$", frame, payload)
    assert [bytes(part) for _, part in parts] == payloads
    theirs = decoder.read_message([b"brand_new.r$", frame, payload], set())
    assert [header.pack() for header, _ in parts] == [
        decoder.HEADER.pack(decoder.WIRE_VERSION, *event.head) for event in theirs
    ]


@fuzzed(300)
@given(messages("control"))
def test_control(frames: list[bytes]) -> None:
    """A request or reply, or a WireError."""
    for frame in frames:
        for decode in (decode_request, decode_reply):
            with suppress(WireError):
                decode(frame)


def _saved() -> bytes:
    consumer = Recorder()
    dispatcher = Dispatcher(consumer, View.whole(consumer), "0" * 32)
    dispatcher.repetition(b"phase_start.r$")
    dispatcher.finished("r", HandledEnd(whole=True))
    return dispatcher.saved()


@fuzzed(200)
@given(mutated(_saved()))
def test_saved_states(saved: bytes) -> None:
    """What is kept in a checkpoint, or a WireError."""
    with suppress(WireError):
        decode_saved(saved)


def _spool() -> bytes:
    outbox = Outbox(b"s" * 16, 1 << 20)
    for number in range(3):
        outbox.put(start(number))
    with tempfile.TemporaryDirectory() as directory:
        path, _ = write_spool(Path(directory), "fuzz", outbox)
        return path.read_bytes()


@fuzzed(200)
@given(mutated(_spool()), st.booleans())
def test_spools(content: bytes, mend: bool) -> None:
    """As many whole messages as there are before the first damage, or a SpoolError."""
    head = struct.Struct("<II")
    if mend and len(content) > 16:  # so that the head is decoded, whatever is in it
        size = min(head.unpack_from(content, 8)[0], len(content) - 16)
        content = content[:8] + head.pack(size, zlib.crc32(content[16 : 16 + size])) + content[16:]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.spool"
        path.write_bytes(content)
        try:
            reader = SpoolReader(path)
            read = list(reader)
        except SpoolError:
            return
        assert len(read) == reader.head.events or reader.damage


@fuzzed(300)
@given(
    st.one_of(st.binary(max_size=80), st.sampled_from(EVENTS).flatmap(lambda frames: mutated(frames[0])))
)
def test_topics(topic: bytes) -> None:
    """A kind and a run, or a WireError."""
    try:
        assert parse_topic(topic).kind or True
        assert -1 <= partition_of(topic) <= 9999
    except WireError:
        pass
