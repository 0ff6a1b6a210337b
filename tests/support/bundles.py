"""Bundles packed and taken apart by struct alone: what a journal and a bus are held against."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from phase_bus.journal.rows import Entry
from tests.support.entries import _S, _SOURCE, Log

FIXED = struct.Struct("<B3sI16sQQQQQ")  # version, stream, records, source, and five numbers
Frames = tuple[bytes, bytes, bytes]


def add_bundle(
    log: Log,
    payloads: Sequence[bytes],
    kind: str = "phase_progress",
    run_id: str = "r1",
    source: bytes = _SOURCE,
) -> Entry:
    """Number events as a bus does that takes them in together; return the row that they are in.

    The log remembers them one by one, as they are when they have come alone.
    """
    assert kind != "records"
    topic = f"{kind}.{run_id}$".encode()
    fixed: list[bytes] = []
    for payload in payloads:
        log.offset += 1
        log.event_number += 1
        numbers = (log.offset, 100 + log.offset, log.offset, log.event_number, 0)
        fixed.append(FIXED.pack(4, b"abc", 0, source, *numbers))
        taken_ns = (log.offset - len(fixed) + len(payloads)) * _S
        rest = (run_id, kind, source, log.offset, 0, log.event_number, taken_ns)
        log.entries.append(Entry(log.offset, topic, fixed[-1], payload, *rest))
    count = len(payloads)
    if count == 1:
        return log.entries[-1]
    header = fixed[0] + b"".join(struct.pack("<I", len(payload)) for payload in payloads)
    content = struct.pack(">BH", 0xDC, count) + b"".join(payloads)
    return log.entries[-1]._replace(header=header, payload=content, events=count)


def packed(
    payloads: Sequence[bytes], topic: bytes, source: bytes = _SOURCE, seq: int = 1, topic_seq: int = 1
) -> Frames:
    """Return an event, or several in one message, as a publisher sends them."""
    header = FIXED.pack(4, bytes(3), 0, source, seq, topic_seq, 0, 0, 0)
    if len(payloads) == 1:
        return topic, header, payloads[0]
    sizes = b"".join(struct.pack("<I", len(payload)) for payload in payloads)
    return topic, header + sizes, struct.pack(">BH", 0xDC, len(payloads)) + b"".join(payloads)


def taken_apart(topic: bytes, header: bytes, payload: bytes) -> Iterator[tuple[int, Frames]]:
    """Yield offset and frames of each event of a message that a bus has placed."""
    version, stream, records, source, seq, topic_seq, offset, number, previous = FIXED.unpack_from(header)
    sizes = [size for (size,) in struct.iter_unpack("<I", header[FIXED.size :])]
    if not sizes:
        yield offset, (topic, header, payload)
        return
    assert payload[:3] == struct.pack(">BH", 0xDC, len(sizes))
    assert (records, previous) == (0, 0)
    end = 3
    for place, size in enumerate(sizes):
        numbers = (seq + place, topic_seq + place, offset + place, number + place, 0)
        frame = FIXED.pack(version, stream, 0, source, *numbers)
        yield offset + place, (topic, frame, payload[end : end + size])
        end += size
    assert end == len(payload)


def singles_of(row: Entry) -> list[Entry]:
    """Return the events of a row one by one, with what the journal knows of them."""
    if row.events == 1:
        return [row]
    parts = list(taken_apart(row.topic, row.header, row.payload))
    behind = [row.offset - offset for offset, _ in parts]
    assert behind == list(range(row.events - 1, -1, -1))
    return [
        row._replace(
            offset=row.offset - back,
            header=header,
            payload=payload,
            source_seq=row.source_seq - back,
            event_number=row.event_number - back,
            events=1,
        )
        for back, (_, (_, header, payload)) in zip(behind, parts, strict=True)
    ]
