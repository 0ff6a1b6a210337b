"""What a forwarded event is in the stream: its subject, and the bytes of its message.

A subject is ``<stream>.<bus>.<kind>.<run>``, for records ``<stream>.<bus>.records.<partition>.<run>``: the
stream's name, ``phase-bus`` unless it was given another; the id of the bus's journal, 32 hex digits; and
the run id as one token, in which everything but letters, digits, ``_`` and ``-`` is written as ``=`` and
two hex digits of UTF-8. By its subject a server filters; a reader takes the topic from the message.

A message is 64 bytes of header as the bus gave it, 16 bytes of the id of the stream that its offset is in,
one byte that says how many parts of the event follow (2 bytes), the length of the topic (2 bytes), the
topic, and the payload. An event that is too large for one message comes in several, right after one
another, of one atomic batch; each has all of this, and a part of the payload.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from phase_bus.core.position import Position
from phase_bus.core.wire import HEADER, NO_PARTITION, Header, parse_topic, partition_of, unpack_header
from phase_bus.errors import WireError

_REST = struct.Struct("<16sHH")  # stream, parts that follow, length of the topic
_MOST_TOKEN = 200  # characters of a run's token; beyond that it ends with a checksum
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Message(NamedTuple):
    """A message of the stream, taken apart.

    Attributes:
        position: the event's place in the journal of its bus.
        parts: how many parts of the event follow; 0 for nearly all.
    """

    topic: bytes
    header: Header
    position: Position
    parts: int
    payload: memoryview


@functools.lru_cache(maxsize=4096)
def subject_of(stream: str, bus: str, topic: bytes) -> str:
    """Return the subject of an event of a bus.

    Raises:
        WireError: if the topic is malformed.
    """
    kind, run_id = parse_topic(topic)
    partition = partition_of(topic)
    where = f"{stream}.{bus}.{token(kind)}"
    return (
        f"{where}.{token(run_id)}"
        if partition == NO_PARTITION
        else f"{where}.{partition:02d}.{token(run_id)}"
    )


def token(text: str) -> str:
    """Return a text as one token of a subject."""
    data = text.encode("utf-8", "replace")
    plain = "".join(chr(byte) if byte in _PLAIN else f"={byte:02x}" for byte in data) or "="
    if len(plain) <= _MOST_TOKEN:
        return plain
    import hashlib  # rarely needed

    return f"{plain[:_MOST_TOKEN]}={hashlib.sha256(data).hexdigest()[:16]}"


def subjects_of_bus(stream: str, bus: str) -> str:
    """Return the filter of everything of one bus."""
    return f"{stream}.{bus}.>"


def subjects(stream: str, *, records: bool, partition: int | None = None) -> str:
    """Return the filter of what a reader wants of all buses.

    Args:
        records: whether batches of records are wanted too.
        partition: only the records of this partition.
    """
    if partition is not None:
        return f"{stream}.*.records.{partition:02d}.*"
    return f"{stream}.>" if records else f"{stream}.*.*.*"


def subjects_of_run(stream: str, run_id: str) -> list[str]:
    """Return the filters of everything of one run: its events, and its records."""
    return [f"{stream}.*.*.{token(run_id)}", f"{stream}.*.records.*.{token(run_id)}"]


def subjects_of_kind(stream: str, kind: str) -> str:
    """Return the filter of a kind of event that is no records."""
    return f"{stream}.*.{token(kind)}.*"


def packed(
    topic: bytes, header: bytes, stream: str, payload: bytes | memoryview, limit_bytes: int
) -> Iterator[bytes]:
    """Yield the messages of an event, each of at most so many bytes."""
    fixed = HEADER.size + _REST.size + len(topic)
    room = limit_bytes - fixed
    view = memoryview(payload)
    pieces = [view[at : at + room] for at in range(0, len(view), room)] or [view]
    identity = bytes.fromhex(stream)
    for following, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
        yield b"".join((header, _REST.pack(identity, following, len(topic)), topic, piece))


def unpacked(data: bytes) -> Message:
    """Take a message of the stream apart.

    Raises:
        WireError: if it is none of ours.
    """
    if len(data) < HEADER.size + _REST.size:
        raise WireError(f"a message of {len(data)} bytes is no event")
    stream, parts, length = _REST.unpack_from(data, HEADER.size)
    begin = HEADER.size + _REST.size
    topic = data[begin : begin + length]
    header = unpack_header(data[: HEADER.size], topic)
    if len(topic) < length:
        raise WireError("the message ends within its topic")
    return Message(
        topic, header, Position(stream.hex(), header.offset), parts, memoryview(data)[begin + length :]
    )
