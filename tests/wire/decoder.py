"""A reader of the wire with nothing of phase-bus in it: what docs/wire.md says, and no more.

It shares no code with the program and no library but Python's own, msgpack included, so that reading the
test vectors with it shows that the page is enough for another language.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

WIRE_VERSION = 4
HEADER = struct.Struct("<B3sI16s5Q")


class RefusedError(Exception):
    """A message that a reader must not take."""


class Head(NamedTuple):
    """The header frame."""

    stream: bytes
    records: int
    source: bytes
    source_seq: int
    topic_seq: int
    offset: int
    event_number: int
    previous: int


class Received(NamedTuple):
    """An event as it was received; ``payload`` is None for a kind that is not among the known ones."""

    kind: str
    run_id: str
    partition: int | None
    head: Head
    payload: dict[str, Any] | None


# ---- msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) ----

# First byte to the format of a number, or of a length and what it is the length of.
_NUMBERS = {0xCA + place: f">{letter}" for place, letter in enumerate("fdBHIQbhiq")}
_LENGTHS = {
    **dict(zip(range(0xC4, 0xC7), (("bin", ">B"), ("bin", ">H"), ("bin", ">I")), strict=True)),
    **dict(zip(range(0xD9, 0xDC), (("str", ">B"), ("str", ">H"), ("str", ">I")), strict=True)),
    **dict(
        zip(
            range(0xDC, 0xE0), (("array", ">H"), ("array", ">I"), ("map", ">H"), ("map", ">I")), strict=True
        )
    ),
}


def unpack(data: bytes) -> Any:
    """Return the one value that msgpack data hold."""
    try:
        value, end = _value(data, 0)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise RefusedError(f"bad msgpack: {error}") from error
    if end != len(data):
        raise RefusedError("something follows the value")
    return value


def _value(data: bytes, at: int) -> tuple[Any, int]:
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return first if first < 0x80 else first - 256, at
    if first < 0x90:
        return _sized("map", first & 0x0F, data, at)
    if first < 0xA0:
        return _sized("array", first & 0x0F, data, at)
    if first < 0xC0:
        return _sized("str", first & 0x1F, data, at)
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        return *struct.unpack_from(_NUMBERS[first], data, at), at + struct.calcsize(_NUMBERS[first])
    if first not in _LENGTHS:
        raise RefusedError(f"byte {first:#x} begins nothing that phase-bus writes")
    kind, form = _LENGTHS[first]
    (size,) = struct.unpack_from(form, data, at)
    return _sized(kind, size, data, at + struct.calcsize(form))


def _sized(kind: str, size: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in ("str", "bin"):
        if at + size > len(data):
            raise RefusedError("it ends too early")
        raw = data[at : at + size]
        return raw.decode() if kind == "str" else raw, at + size
    parts = []
    for _ in range(size if kind == "array" else 2 * size):
        part, at = _value(data, at)
        parts.append(part)
    return parts if kind == "array" else dict(zip(parts[::2], parts[1::2], strict=True)), at


# ---- an event's three frames ----


def read_topic(frame: bytes) -> tuple[str, int | None, str]:
    """Return kind, partition and run id."""
    kind, dot, qualifier = frame.decode().partition(".")
    if not dot or not qualifier.endswith("$"):
        raise RefusedError("no topic")
    qualifier = qualifier[:-1]
    if kind != "records":
        return kind, None, qualifier
    partition, _, run_id = qualifier.partition(".")
    return kind, int(partition), run_id


def read_header(frame: bytes) -> Head:
    """Return the header."""
    if len(frame) != HEADER.size:
        raise RefusedError("no header")
    version, *rest = HEADER.unpack(frame)
    if version != WIRE_VERSION:
        raise RefusedError(f"wire version {version}")
    return Head(*rest)


def read_event(frames: list[bytes], known: set[str]) -> Received:
    """Return an event; one of an unknown kind is none of this reader's business."""
    topic, header, payload = frames
    kind, partition, run_id = read_topic(topic)
    head = read_header(header)
    if kind not in known:
        return Received(kind, run_id, partition, head, None)
    fields = unpack(payload)
    if not isinstance(fields, dict) or fields.get("kind") != kind:
        raise RefusedError("the payload is not of the topic's kind")
    return Received(kind, run_id, partition, head, fields)


def read_message(frames: list[bytes], known: set[str]) -> list[Received]:
    """Return the events of a message: of a bundle, all of them."""
    topic, header, payload = frames
    if len(header) <= HEADER.size:
        return [read_event(frames, known)]
    first, sizes = header[: HEADER.size], header[HEADER.size :]
    count, rest = divmod(len(sizes), 4)
    if rest or not 2 <= count <= 256:
        raise RefusedError("no bundle")
    head = read_header(first)
    if head.records or head.previous:
        raise RefusedError("records in a bundle")
    if payload[:3] != struct.pack(">BH", 0xDC, count):
        raise RefusedError("no array of as many events as the header has sizes")
    events, end = [], 3
    for number, size in enumerate(struct.unpack(f"<{count}I", sizes)):
        begin, end = end, end + size
        event = read_event([topic, first, payload[begin:end]], known)
        events.append(event._replace(head=_following(head, number)))
    if end != len(payload):
        raise RefusedError("the sizes are not those of the events")
    return events


def _following(head: Head, number: int) -> Head:
    """Return the header of a bundle's next event, or of the one after that, and so on."""
    placed = number if head.offset else 0
    return head._replace(
        source_seq=head.source_seq + number,
        topic_seq=head.topic_seq + number,
        offset=head.offset + placed,
        event_number=head.event_number + placed,
    )


# ---- request records ----


def read_records(event: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of a batch, one dict each."""
    records: list[dict[str, Any]] = [
        {"phase": event["phase"]["name"], "error": None} for _ in range(event["count"])
    ]
    for table in (*event["fields"], *event["metrics"]):
        for row, values in _rows(*table[:6]):
            records[row].update(values)
    for row, kind, message, code, *_ in event["errors"]:
        records[row]["error"] = {"type": kind, "message": message, "code": code}
    return records


def _rows(
    names: list[str],
    types: str,
    count: int,
    numbers: bytes = b"",
    others: bytes = b"",
    rows: bytes | None = None,
) -> list[tuple[int, dict[str, Any]]]:
    width = sum(letter in "ifb" for letter in types)
    form = struct.Struct("<" + "".join({"i": "q", "f": "d", "b": "q"}[letter] for letter in types[:width]))
    texts = unpack(others) if others else [[]] * count
    places = struct.unpack(f"<{count}I", rows) if rows is not None else range(count)
    found = []
    for number, place in enumerate(places):
        values = [*form.unpack_from(numbers, number * form.size), *texts[number]]
        values = [bool(v) if letter == "b" else v for letter, v in zip(types, values, strict=True)]
        found.append((place, dict(zip(names, values, strict=True))))
    return found
