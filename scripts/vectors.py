"""The test vectors: messages as bytes in hex, each beside what a reader is to make of it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from phase_bus.core.control import Fetched
from phase_bus.core.outbox import Outbox
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import (
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
from phase_bus.events import KINDS, EventBase, Records
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
    parsed, partition = parse_topic(topic), partition_of(topic)
    return {
        "name": name,
        "about": about,
        "frames": _hex(topic, header, payload),
        "topic": {
            "text": topic.decode(),
            "kind": parsed.kind,
            "run_id": parsed.run_id,
            "partition": None if partition == NO_PARTITION else partition,
        },
        "header": _header(unpack_header(header)),
        "payload": plain(msgspec.msgpack.decode(payload)),
    }


def _header(header: Header) -> JsonObject:
    fields = header._asdict() | {"source": header.source.hex(), "stream": header.stream.hex()}
    del fields["events"]  # the frame's size says so
    return {"wire_version": WIRE_VERSION, **fields}


def _hex(*frames: bytes) -> list[str]:
    return [frame.hex() for frame in frames]


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
