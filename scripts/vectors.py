"""The test vectors: messages as bytes in hex, each beside what a reader is to make of it."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import structs

from phase_bus.core import bundle
from phase_bus.core.control import Fetched
from phase_bus.core.outbox import Outbox
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import (
    BUNDLED_MOST,
    HEADER,
    NO_PARTITION,
    NO_STREAM,
    WIRE_VERSION,
    Header,
    encode_control,
    encode_event,
    parse_topic,
    partition_of,
    stream_tag,
    topic_of,
    unpack_header,
)
from phase_bus.events import KINDS, EventBase, PhaseProgress, Records
from scripts.samples import BATCHES, BUS, PUBLISHER, REPLIES, REQUESTS, RUN, STREAM

JsonObject = dict[str, Any]

ABOUT = (
    "docs/wire.md says how to read these. Frames are in hex. In JSON, binary data are base64, keys that "
    'are whole numbers are texts, a float that JSON does not have is {"$float": "nan" | "inf" | "-inf"}.'
)
_encode = msgspec.msgpack.Encoder().encode


def files() -> dict[str, JsonObject]:
    """Return what each file of ``schemas/vectors/`` should hold, by its name."""
    vectors = {
        "events.json": _stream(),
        "records.json": [_batch(*each) for each in BATCHES],
        "bundles.json": [*_bundles(), *_no_bundles()],
        "control.json": [*_control("request", REQUESTS), *_control("reply", REPLIES), _fetched()],
        "evolution.json": [*_newer_writer(), *_older_writer(), *_not_for_this_reader()],
    }
    return {
        name: {"about": ABOUT, "wire_version": WIRE_VERSION, "vectors": found}
        for name, found in vectors.items()
    }


def plain(value: Any) -> Any:
    """Return what msgpack holds as JSON can."""
    match value:
        case dict():
            return {str(key): plain(part) for key, part in value.items()}
        case list() | tuple():
            return [plain(part) for part in value]
        case bytes():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case _:
            return value


def example_of(kind: str) -> JsonObject:
    """Return the payload of the first event of a kind in the stream, as JSON."""
    found: JsonObject = next(v["payload"] for v in _stream() if v["payload"]["kind"] == kind)
    return found


# ---- events ----


def _stream() -> list[JsonObject]:
    """Return the small run, numbered as its publishers and a bus would number it."""
    outboxes = {source: Outbox(source, 1 << 20) for source, _, _ in STREAM}
    offset = number = 0
    last: dict[int, int] = {}
    vectors = []
    for source, about, event in STREAM:
        outbox = outboxes[source]
        assert outbox.put(event) is not None
        message = outbox.peek()
        assert message is not None
        outbox.sent()
        topic, header, payload = message.frames
        previous = 0
        if source != BUS:  # a heartbeat has no place of its own
            offset += 1
            partition = partition_of(topic)
            if partition == NO_PARTITION:
                number += 1
            else:
                previous, last[partition] = last.get(partition, 0), offset
        placed = unpack_header(header)._replace(
            offset=offset, event_number=number, previous=previous, stream=stream_tag(BUS.hex())
        )
        vectors.append(_event(event.kind, about, topic, placed.pack(), payload))
    return vectors


def _batch(name: str, about: str, event: Records) -> JsonObject:
    """Return a batch as its publisher sends it: the bus has not given it an offset yet."""
    header = Header(PUBLISHER, source_seq=11, topic_seq=2, records=event.count).pack()
    vector = _event(name, about, topic_of(event), header, encode_event(event))
    return vector | {"records": plain(list(RecordBatch(event)))}


def _event(name: str, about: str, topic: bytes, header: bytes, payload: bytes) -> JsonObject:
    return {
        "name": name,
        "about": about,
        "frames": _hex(topic, header, payload),
        "topic": _topic(topic),
        "header": _header(unpack_header(header)),
        "payload": plain(msgspec.msgpack.decode(payload)),
    }


def _topic(topic: bytes) -> JsonObject:
    parsed, partition = parse_topic(topic), partition_of(topic)
    return {
        "text": topic.decode(),
        "kind": parsed.kind,
        "run_id": parsed.run_id,
        "partition": None if partition == NO_PARTITION else partition,
    }


def _header(header: Header) -> JsonObject:
    fields = header._asdict() | {"source": header.source.hex(), "stream": header.stream.hex()}
    del fields["events"]  # the frame's size says so
    return {"wire_version": WIRE_VERSION, **fields}


def _hex(*frames: bytes) -> list[str]:
    return [frame.hex() for frame in frames]


# ---- bundles ----


def _bundles() -> list[JsonObject]:
    """Return bundles as publishers send them, and as a bus publishes them."""
    topic, payloads = _progress()
    sent = Header(PUBLISHER, source_seq=11, topic_seq=2)
    placed = sent._replace(offset=12, event_number=9, stream=stream_tag(BUS.hex()))
    newer = [_encode(msgspec.msgpack.decode(each) | {"added": [1]}) for each in payloads]
    unknown = [_encode({"kind": "brand_new"})] * BUNDLED_MOST
    return [
        _bundle("sent", "three events, as their publisher sends them", topic, sent, payloads),
        _bundle("placed", "the same ones, as a bus publishes them", topic, placed, payloads),
        _bundle("fewest", "two events", topic, sent, payloads[:2]),
        _bundle("new-fields", "a field that a newer writer added", topic, sent, newer),
        _bundle("most", "as many as there may be, of an unknown kind", b"brand_new.r$", placed, unknown),
    ]


def _bundle(name: str, about: str, topic: bytes, first: Header, payloads: Sequence[bytes]) -> JsonObject:
    frame, payload = bundle.join(first.pack(), payloads)
    *_, last = bundle.split(unpack_header(frame), frame, memoryview(payload))
    skipped = parse_topic(topic).kind not in KINDS
    return {
        "name": name,
        "about": about,
        "outcome": "skip" if skipped else "read",
        "frames": _hex(topic, frame, payload),
        "topic": _topic(topic),
        "events": len(payloads),
        "first": _header(first),
        "last": _header(last[0]),
        "payloads": [] if skipped else [plain(msgspec.msgpack.decode(each)) for each in payloads],
    }


def _no_bundles() -> list[JsonObject]:
    """Return what is to be refused; each differs from a bundle in one thing."""
    topic, payloads = _progress()
    first = Header(PUBLISHER, source_seq=11, topic_seq=2)
    sizes = [len(each) for each in payloads]
    joined = b"".join(payloads)
    good = b"\xdc\x00\x03" + joined
    shifted = [sizes[0] + 1, sizes[1] - 1, sizes[2]]
    batches = [encode_event(event) for name, _, event in BATCHES if name in ("whole-numbers", "floats")]
    batch = first._replace(records=2)
    other = [*payloads[:2], encode_event(_sample("phase_start"))]
    start = _sizes(first, sizes)
    wrong: Sequence[tuple[str, str, bytes, bytes]] = [
        ("one-event", "a bundle of one", _sizes(first, sizes[:1]), b"\xdc\x00\x01" + payloads[0]),
        ("too-many", "257 events", *bundle.join(first.pack(), [b"\x80"] * (BUNDLED_MOST + 1))),
        ("half-a-size", "a header that ends within a size", start[:-1], good),
        ("other-version", "another wire version", bytes([WIRE_VERSION + 1]) + start[1:], good),
        ("size-too-large", "sizes of more than there is", _sizes(first, [*sizes[:2], sizes[2] + 1]), good),
        ("size-too-small", "sizes of less than there is", _sizes(first, [*sizes[:2], sizes[2] - 1]), good),
        ("boundaries", "a size that ends within the next event", _sizes(first, shifted), good),
        ("fewer-sizes", "a size fewer than events", _sizes(first, sizes[:2]), good),
        ("count-too-large", "an array of four that ends after three", start, b"\xdc\x00\x04" + joined),
        ("count-too-small", "an array of two, and more after it", start, b"\xdc\x00\x02" + joined),
        ("short-array", "an array, but not 'array 16'", start, b"\x93" + joined),
        ("long-array", "an array, but not 'array 16'", start, b"\xdd\x00\x00\x00\x03" + joined),
        ("no-array", "no array", start, bytes(3) + joined),
        ("no-payload", "an empty payload", start, b""),
        ("no-map", "an event that is none", *bundle.join(first.pack(), [*payloads[:2], b"\xc0"])),
        ("other-kind", "an event of another kind than the topic", *bundle.join(first.pack(), other)),
        ("records", "request records", *bundle.join(batch.pack(), batches)),
        ("previous", "a header as of records", *bundle.join(first._replace(previous=7).pack(), payloads)),
    ]
    records_topic = topic_of(_sample("records"))
    return [
        {
            "name": name,
            "about": about,
            "outcome": "refuse",
            "frames": _hex(records_topic if name == "records" else topic, header, payload),
        }
        for name, about, header, payload in wrong
    ]


def _progress() -> tuple[bytes, list[bytes]]:
    """Return a topic, and the payloads of three events of different sizes on it."""
    event = _sample("phase_progress")
    assert isinstance(event, PhaseProgress)
    counts = [structs.replace(event.stats, completed=completed) for completed in (2, 200, 70_000)]
    return topic_of(event), [encode_event(structs.replace(event, stats=stats)) for stats in counts]


def _sizes(first: Header, sizes: Sequence[int]) -> bytes:
    return first.pack() + struct.pack(f"<{len(sizes)}I", *sizes)


# ---- control ----


def _control(role: str, messages: Iterable[tuple[str, str, Any]]) -> list[JsonObject]:
    return [
        {
            "name": name,
            "about": about,
            "role": role,
            "frames": _hex(frame := encode_control(message)),
            "message": plain(msgspec.msgpack.decode(frame)),
        }
        for name, about, message in messages
    ]


def _fetched() -> JsonObject:
    """Return a piece of the journal: the answer's frame, then three for each event."""
    events = _stream()[:2]
    answer = encode_control(Fetched(after=0, offset=2, event_number=2, end=False))
    return {
        "name": "fetched",
        "about": "two events of events.json; there is more after them",
        "role": "reply",
        "frames": [*_hex(answer), *(frame for event in events for frame in event["frames"])],
        "message": plain(msgspec.msgpack.decode(answer)),
    }


# ---- evolution ----


def _newer_writer() -> list[JsonObject]:
    """Return events that have more in them than this version knows: it reads what it knows."""
    start = _sample("phase_start")
    fields = msgspec.msgpack.decode(encode_event(start))
    fields["added"] = {"x": [1, None]}
    fields["phase"]["added"] = "text"
    fields["stats"]["added"] = None
    batch = next(event for name, _, event in BATCHES if name == "several-shapes")
    rows = msgspec.msgpack.decode(encode_event(batch))
    for table in (*rows["metrics"], *rows["fields"]):
        table += [None] * (6 - len(table)) + ["added", 7]
    for error in rows["errors"]:
        error.append({"added": True})
    return [
        _read("new-fields", "fields that a newer writer added, on every level", start, fields),
        _read("new-elements", "elements added at the ends of arrays", batch, rows),
    ]


def _older_writer() -> list[JsonObject]:
    """Return one event of each kind that has what it must have, and nothing else."""
    vectors = []
    for kind in KINDS:
        event = _sample(kind)
        fields: JsonObject = {"kind": kind, "ts_ns": event.ts_ns}
        for field in msgspec.structs.fields(event):
            if field.required:
                fields[field.encode_name] = msgspec.to_builtins(getattr(event, field.name))
        if "phase" in fields:
            fields["phase"] = {"name": fields["phase"]["name"]}
        meant = msgspec.convert(fields, type(event))
        vectors.append(_read(f"old-{kind}", "only what must be there", meant, fields))
    return vectors


def _not_for_this_reader() -> list[JsonObject]:
    """Return what is to be skipped, and what is to be refused."""
    start = _sample("phase_start")
    topic, header, payload = topic_of(start), Header(PUBLISHER, 1, 1).pack(), encode_event(start)
    other_version = HEADER.pack(WIRE_VERSION + 1, NO_STREAM, 0, PUBLISHER, 1, 1, 0, 0, 0)
    unknown = _encode({"kind": "brand_new", "run_id": RUN, "ts_ns": start.ts_ns})
    unread: Sequence[tuple[str, str, str, tuple[bytes, ...]]] = [
        ("new-kind", "skip", "a kind that this version does not know", (b"brand_new.r$", header, unknown)),
        ("new-kind-opaque", "skip", "its payload is nobody's business", (b"brand_new.r$", header, b"\xc1")),
        ("other-version", "refuse", "another wire version", (topic, other_version, payload)),
        ("short-header", "refuse", "a header of 63 bytes", (topic, header[:-1], payload)),
        ("no-topic-end", "refuse", "a topic without '$'", (topic[:-1], header, payload)),
        ("no-qualifier", "refuse", "a topic without '.'", (b"phase_start$", header, payload)),
        ("other-kind", "refuse", "the payload is of another kind than the topic", (topic, header, unknown)),
        ("no-payload", "refuse", "an empty payload", (topic, header, b"")),
        ("field-missing", "refuse", "without 'phase'", (topic, header, _encode({"kind": start.kind}))),
    ]
    return [
        {"name": name, "about": about, "outcome": outcome, "frames": _hex(*frames)}
        for name, outcome, about, frames in unread
    ]


def _read(name: str, about: str, meant: EventBase, fields: JsonObject) -> JsonObject:
    """Return an event that is not as this version would write it, with what it means."""
    header = Header(PUBLISHER, 1, 1, getattr(meant, "count", 0)).pack()
    return {
        "name": name,
        "about": about,
        "outcome": "read",
        "frames": _hex(topic_of(meant), header, _encode(fields)),
        "payload": plain(msgspec.msgpack.decode(_encode(fields))),
        "means": plain(msgspec.msgpack.decode(encode_event(meant))),
    }


def _sample(kind: str) -> EventBase:
    return next(event for _, _, event in STREAM if event.kind == kind)
