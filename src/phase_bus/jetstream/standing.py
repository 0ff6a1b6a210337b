"""How things stand at a stream, for who only looks: nothing is made for that, and nothing changed."""

from __future__ import annotations

import nats.js.errors

from phase_bus.jetstream.connection import Connection, asking
from phase_bus.jetstream.keys import Kept, Keys
from phase_bus.jetstream.stream import Stream


async def kept_below(connection: Connection, stream: Stream, prefix: str) -> dict[str, Kept]:
    """Return what is kept beside a stream below a prefix.

    Raises:
        NatsUnreachableError: no answer in time.
    """
    with asking(connection.address):
        try:
            await connection.js.stream_info(f"KV_{stream.name}")
        except nats.js.errors.NotFoundError:  # no consumer has been there
            return {}
    return await Keys(connection, stream).all(prefix)
