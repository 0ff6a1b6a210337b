"""Bundles: events of one topic that one source publishes in a row, in one message.

It has the three frames of an event. The header is that of the first event, followed by the size of each
event's payload (u4, little-endian); the numbers of the others follow on the first one's, each by one. The
payload is a msgpack array (``array 16``) of the events, so that it is decoded at once, or, by the sizes,
event by event. Records do not travel so: a batch of them is a bundle already.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from phase_bus.core.wire import HEADER, Header
from phase_bus.errors import WireError

BUNDLED_BYTES = 64 << 10  # of payloads in a bundle, at most
LARGEST_BUNDLED_BYTES = 8 << 10  # of a payload; a larger one gains nothing
ARRAY_BYTES = 3  # before the events: the type, and how many they are


def join(header: bytes, payloads: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the header and payload frames of a bundle.

    Args:
        header: the first event's header frame.
        payloads: of two events to :data:`~phase_bus.core.wire.BUNDLED_MOST`.
    """
    count = len(payloads)
    sizes = struct.pack(f"<{count}I", *map(len, payloads))
    return header + sizes, b"".join((b"\xdc", count.to_bytes(2, "big"), *payloads))


def split(
    header: Header, header_frame: bytes, payload: memoryview, topic: bytes = b""
) -> Iterator[tuple[Header, memoryview]]:
    """Yield header and payload of each event of a message; of one that is no bundle, its own.

    Args:
        header: what ``header_frame`` says.
        topic: for errors.

    Raises:
        WireError: at once, if the frames do not agree.
    """
    if header.events == 1:
        return iter(((header, payload),))
    return _split(header, sizes_of(header, header_frame, payload, topic), payload)


def sizes_of(header: Header, frame: bytes, payload: memoryview, topic: bytes = b"") -> tuple[int, ...]:
    """Return the size of each event's payload in a bundle.

    Raises:
        WireError: if the frames do not agree.
    """
    count = header.events
    sizes: tuple[int, ...] = struct.unpack_from(f"<{count}I", frame, HEADER.size)
    start = b"\xdc" + count.to_bytes(2, "big")
    if header.records or header.previous:
        raise WireError("records do not travel in bundles", topic)
    if sum(sizes) + ARRAY_BYTES != len(payload) or payload[:ARRAY_BYTES] != start:
        raise WireError(f"the payload does not hold {count} events of the sizes in its header", topic)
    return sizes


def _split(
    header: Header, sizes: Sequence[int], payload: memoryview
) -> Iterator[tuple[Header, memoryview]]:
    source, seq, topic_seq, _, offset, number, _, stream, _ = header
    placed = 1 if offset else 0  # what no bus has placed has no offset
    end = ARRAY_BYTES
    for size in sizes:
        begin, end = end, end + size
        yield Header(source, seq, topic_seq, 0, offset, number, 0, stream), payload[begin:end]
        seq, topic_seq, offset, number = seq + 1, topic_seq + 1, offset + placed, number + placed


def place(header: Header, header_frame: bytes, offset: int, event_number: int, stream: bytes) -> bytes:
    """Return a bundle's header frame with the place that the bus gives to its first event."""
    return header.pack_at(offset, event_number, 0, stream) + header_frame[HEADER.size :]
