"""Streams in NATS for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from phase_bus.core.address import StreamAddress
from phase_bus.jetstream.connection import Connection, connected
from phase_bus.jetstream.keys import Keys, open_keys
from phase_bus.jetstream.stream import Stream, open_stream


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
