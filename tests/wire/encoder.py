"""A writer of the wire with nothing of phase-bus in it: the other half of :mod:`tests.wire.decoder`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from tests.wire.decoder import HEADER, WIRE_VERSION


def pack(value: Any) -> bytes:
    """Return msgpack, not the shortest there is: any valid one will do."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return struct.pack(">Bq", 0xD3, value)
        case float():
            return struct.pack(">Bd", 0xCB, value)
        case str():
            return struct.pack(">BI", 0xDB, len(raw := value.encode())) + raw
        case bytes():
            return struct.pack(">BI", 0xC6, len(value)) + value
        case list():
            return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))
        case dict():
            parts = [pack(part) for pair in value.items() for part in pair]
            return struct.pack(">BI", 0xDF, len(value)) + b"".join(parts)
        case _:
            raise TypeError(f"{value!r} cannot travel")


def header(source: bytes, source_seq: int, topic_seq: int, records: int = 0) -> bytes:
    """Return a publisher's header."""
    return HEADER.pack(WIRE_VERSION, bytes(3), records, source, source_seq, topic_seq, 0, 0, 0)


def bundle(first: bytes, payloads: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the header and the payload of a bundle, whose first event has this header."""
    count = len(payloads)
    sizes = struct.pack(f"<{count}I", *map(len, payloads))
    return first + sizes, struct.pack(">BH", 0xDC, count) + b"".join(payloads)
