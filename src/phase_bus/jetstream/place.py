"""How far a bus has come in the stream: what is there says it, and nothing else is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import nats.js.errors

from phase_bus.core.position import Lineage, Position
from phase_bus.errors import WireError
from phase_bus.jetstream.connection import Connection
from phase_bus.jetstream.cursor import Cursor
from phase_bus.jetstream.message import Message, subjects_of_bus, unpacked

_WINDOW = 2000  # messages that are looked back at first
_WIDER = 10  # then so many times as many
_LOOK_S = 20.0
_NEWS_S = 0.2

Key = tuple[bytes, bytes]
"""A source and a topic: by these and a number an event is known wherever it comes."""


class Place(NamedTuple):
    """How far a bus has come.

    Attributes:
        last: the sequence number of the last message of this bus's journal, 0 for none.
        position: that of the last event that is of this bus; None for none.
        beyond: of the events there that its journal has lost, by key the highest number of a topic: their
            publishers may send them to it once more.
    """

    last: int
    position: Position | None
    beyond: Mapping[Key, int]


async def find_place(connection: Connection, lineage: Lineage, *, look_back: bool) -> Place:
    """Return how far the bus of a lineage has come.

    A copy of its journal may be that of another bus, whose events are here too; they are passed over. And
    its journal may have been cut by a power failure, after which other events have their offsets.

    Args:
        look_back: whether to look for what its journal has lost, even if the last event is in it.

    Raises:
        nats.errors.Error, TimeoutError, OSError: the server does not answer.
    """
    stream = connection.address.stream
    subjects = subjects_of_bus(stream, lineage.journal_id)
    try:
        raw = await connection.js.get_last_msg(stream, subjects)
    except nats.js.errors.NotFoundError:
        return Place(0, None, {})
    last = raw.seq or 0
    with suppress(WireError):  # else something else was put in the place of its events: it is passed over
        position = unpacked(raw.data or b"").position
        if lineage.find(position).found == "here" and not look_back:
            return Place(last, position, {})
    window = _WINDOW
    while True:
        after = max(last - window, 0)
        async with asyncio.timeout(_LOOK_S * window / _WINDOW):
            found, beyond = await _look(connection, subjects, after, last, lineage)
        if found is not None or not after:
            return Place(last, found, beyond)
        window *= _WIDER


async def _look(
    connection: Connection, subjects: str, after: int, last: int, lineage: Lineage
) -> tuple[Position | None, dict[Key, int]]:
    news = asyncio.Event()
    cursor = Cursor(connection, connection.address.stream, [subjects], after, news.set)
    found: Position | None = None
    beyond: dict[Key, int] = {}
    try:
        while True:
            news.clear()
            for each in await cursor.take():
                if each.offset > last:
                    return found, beyond
                found = _judged(each.message, lineage, beyond) or found
            if cursor.position >= last:
                return found, beyond
            if not cursor.has_more:
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), _NEWS_S)
    finally:
        await cursor.close()


def _judged(message: Message, lineage: Lineage, beyond: dict[Key, int]) -> Position | None:
    """Return where the bus stands by an event of it; note one that its journal has lost."""
    position = message.position
    found, offset = lineage.find(position)
    if found == "elsewhere":
        return None
    if found == "cut":
        header = message.header
        key = header.source, message.topic
        beyond[key] = max(beyond.get(key, 0), header.topic_seq)
    return Position(position.stream, offset)
