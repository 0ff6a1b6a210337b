"""Streams in NATS for tests."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

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
