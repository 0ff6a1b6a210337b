"""Streams in NATS for tests."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from nats.js.api import PubAck

from phase_bus.core.address import StreamAddress
from phase_bus.core.wire import Header, encode_event, topic_of
from phase_bus.events import EventBase
from phase_bus.jetstream.connection import Connection, connected
from phase_bus.jetstream.keys import Keys, open_keys
from phase_bus.jetstream.message import packed, subject_of, subjects_of_bus, unpacked
from phase_bus.jetstream.stream import Stream, open_stream
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry


class Opened(NamedTuple):
    connection: Connection
    stream: Stream
    keys: Keys


@asynccontextmanager
async def opened(url: str, name: str = "test") -> AsyncIterator[Opened]:
    """Connect to a server, and open its stream, which is made if it is not there."""
    async with connected(StreamAddress.parse(url), name) as connection:
        stream = await open_stream(connection, make=True)
        yield Opened(connection, stream, await open_keys(connection, stream))


async def fill(url: str, *journals: Path, again: bool = False) -> list[str]:
    """Append what journals hold to the stream, by turns an event of each; return the ids of their buses.

    Args:
        again: only what is new since the last time.
    """
    async with opened(url) as (connection, stream, _):
        readers = [JournalReader(path) for path in journals]
        buses = [reader.lineage.journal_id for reader in readers]
        after = [0] * len(buses)
        for number, bus in enumerate(buses if again else ()):
            last = await connection.js.get_last_msg(stream.name, subjects_of_bus(stream.name, bus))
            after[number] = unpacked(last.data or b"").position.offset
        for events in itertools.zip_longest(*(reader.entries() for reader in readers)):
            for bus, entry, offset in zip(buses, events, after, strict=True):
                if entry is not None and entry.offset > offset:
                    await append(connection, stream, bus, entry)
        for reader in readers:
            reader.close()
    return buses


async def append(connection: Connection, stream: Stream, who: str, entry: Entry, subject: str = "") -> None:
    """Append an event, in as many messages as it takes, under its subject or another one."""
    subject = subject or subject_of(stream.name, who, entry.topic)
    limit_bytes = connection.max_payload_bytes - 1024
    for data in packed(entry.topic, entry.header, stream.id, entry.payload, limit_bytes):
        await connection.js.publish(subject, data)


def entry_of(event: EventBase, number: int, source: bytes = b"s" * 16) -> Entry:
    """Return an event as the so-manieth of a source, which has published no records."""
    header = Header(source, number, number, 0, number, number)
    topic, payload = topic_of(event), encode_event(event)
    return Entry(
        number, topic, header.pack(), payload, event.run_id, event.kind, source, number, 0, number, 0
    )


class Filler:
    """Appends events to a stream as one bus's forwarder would, without any condition.

    Args:
        limit_bytes: the size of a message at most.

    Attributes:
        payloads: of all events, in order. They are no events of ours.
    """

    def __init__(self, opened: Opened, limit_bytes: int = 1 << 20) -> None:
        self.payloads: list[bytes] = []
        self._opened = opened
        self._limit_bytes = limit_bytes
        self._bus = uuid.uuid4().hex

    async def append(self, count: int, *, kind: str = "phase_start", size_bytes: int = 20) -> None:
        """Append so many events of a kind, such as "phase_start" or "records.07"."""
        topic = f"{kind}.run$".encode()
        stream, js = self._opened.stream.name, self._opened.connection.js
        waiting: list[asyncio.Future[PubAck]] = []
        for _ in range(count):
            number = len(self.payloads) + 1
            payload = str(number).encode().ljust(size_bytes, b".")
            self.payloads.append(payload)
            header = Header(bytes.fromhex(self._bus), number, number, 0, number, number, 0, b"abc").pack()
            for data in packed(topic, header, self._bus, payload, self._limit_bytes):
                subject = subject_of(stream, self._bus, topic)
                waiting.append(await js.publish_async(subject, data, wait_stall=30))
        await asyncio.gather(*waiting)
