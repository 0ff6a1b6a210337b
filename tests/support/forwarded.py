"""What a stream in NATS holds, read with nats-py alone, and a journal, read with SQLite alone."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import nats
import nats.js.errors

from tests.support.bundles import taken_apart

_FIXED = struct.Struct("<B3sI16sQQQQQ16sHH")  # header, stream, parts that follow, length of the topic


JUNK = b"junk"
"""A message that is none of ours, and is passed over."""


class Held(NamedTuple):
    """An event in the stream, put together from its messages.

    Attributes:
        bus: as its subject says.
        journal_stream, offset: its place in the journal of its bus.
    """

    bus: str
    journal_stream: str
    offset: int
    topic: bytes
    header: bytes
    payload: bytes

    @property
    def frames(self) -> tuple[bytes, bytes, bytes]:
        return self.topic, self.header, self.payload

    @property
    def source(self) -> bytes:
        return self.header[8:24]

    @property
    def topic_seq(self) -> int:
        number: int = struct.unpack_from("<Q", self.header, 32)[0]
        return number


async def read_stream(url: str, name: str = "phase-bus") -> list[Held]:
    """Return all that a stream holds, in its order; nothing if there is no stream."""
    servers = [f"nats://{server}" for server in url.removeprefix("nats://").split(",")]
    client = await nats.connect(servers, connect_timeout=5)
    try:
        js = client.jetstream(timeout=10)
        try:
            info = await js.stream_info(name)
        except nats.js.errors.NotFoundError:
            return []
        if not info.state.messages:
            return []
        found: list[Held] = []
        parts: list[bytes] = []
        subscription = await js.subscribe(f"{name}.>", stream=name, ordered_consumer=True)
        while True:
            message = await subscription.next_msg(10)
            if message.data != JUNK:
                *_, stream, following, length = _FIXED.unpack_from(message.data)
                offset: int = struct.unpack_from("<Q", message.data, 40)[0]
                topic_end = _FIXED.size + length
                parts.append(message.data[topic_end:])
                if not following:
                    topic = message.data[_FIXED.size : topic_end]
                    bus = message.subject.split(".")[1]
                    header, payload = message.data[:64], b"".join(parts)
                    found.append(Held(bus, stream.hex(), offset, topic, header, payload))
                    parts.clear()
            if message.metadata.num_pending == 0:
                assert not parts, "an event without its end"
                return found
    finally:
        await client.close()


def journal_frames(journal: Path) -> list[tuple[int, tuple[bytes, bytes, bytes]]]:
    """Return offset, and topic, header and payload, of each event of a journal, in its order."""
    with closing(sqlite3.connect(f"file:{journal / 'journal.sqlite'}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT s.topic, e.header, e.payload FROM events AS e"
            " JOIN streams AS s ON s.id = e.stream ORDER BY e.offset"
        )
        return [event for row in rows for event in taken_apart(*row)]


def check_sources(events: Iterable[Held]) -> None:
    """Raise an AssertionError if something of a source is doubled, or not in its order."""
    last: dict[tuple[bytes, bytes], int] = {}
    for each in events:
        key = each.source, each.topic
        assert each.topic_seq > last.get(key, 0), f"{each.topic!r} {each.topic_seq} after {last[key]}"
        last[key] = each.topic_seq
