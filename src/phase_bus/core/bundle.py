"""Bundles: events of one topic that one source publishes in a row, in one message.

It has the three frames of an event. The header is that of the first event, followed by the size of each
event's payload (u4, little-endian); the numbers of the others follow on the first one's, each by one. The
payload is a msgpack array (``array 16``) of the events, so that it is decoded at once, or, by the sizes,
event by event. Records do not travel so: a batch of them is a bundle already.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from types import GenericAlias

import msgspec

from phase_bus.core.wire import HEADER, Header, decode, parse_topic
from phase_bus.errors import WireError
from phase_bus.events import KINDS, Event

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
    return parts(header, sizes_of(header, header_frame, payload, topic), payload)


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


def parts(header: Header, sizes: Sequence[int], payload: memoryview) -> Iterator[tuple[Header, memoryview]]:
    """Yield header and payload of each event of a bundle, by the sizes that its header frame says."""
    source, seq, topic_seq, _, offset, number, _, stream, _ = header
    placed = 1 if offset else 0  # what no bus has placed has no offset
    for each in payloads(sizes, payload):
        yield Header(source, seq, topic_seq, 0, offset, number, 0, stream), each
        seq, topic_seq, offset, number = seq + 1, topic_seq + 1, offset + placed, number + placed


def payloads(sizes: Sequence[int], payload: memoryview) -> Iterator[memoryview]:
    """Yield the payload of each event of a bundle."""
    end = ARRAY_BYTES
    for size in sizes:
        begin, end = end, end + size
        yield payload[begin:end]


def following(header: Header, count: int) -> Header:
    """Return the header of what is left of a bundle behind its first events."""
    source, seq, topic_seq, _, offset, number, _, stream, events = header
    placed = count if offset else 0
    seq, topic_seq, left = seq + count, topic_seq + count, events - count
    return Header(source, seq, topic_seq, 0, offset + placed, number + placed, 0, stream, left)


def decode_events(topic: bytes, payload: bytes | memoryview) -> Sequence[Event | None]:
    """Return the events of a bundle's payload, decoded at once; each is None if their kind is not known.

    Raises:
        WireError: if one of them is not an event of the topic's kind.
    """
    kind = parse_topic(topic).kind
    if kind not in KINDS:
        return [None] * int.from_bytes(payload[1:ARRAY_BYTES], "big")
    return decode(_decoder_of(kind).decode, payload, "not a bundle of events", topic)


@functools.cache
def _decoder_of(kind: str) -> msgspec.msgpack.Decoder[list[Event]]:
    return msgspec.msgpack.Decoder(GenericAlias(list, KINDS[kind]))
