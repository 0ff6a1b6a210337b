"""The NATS servers of the tests: what they acknowledged outlives them."""

from __future__ import annotations

import socket

import pytest

from phase_bus.core.address import StreamAddress
from phase_bus.jetstream.connection import connected
from phase_bus.jetstream.stream import open_stream
from tests.support.servers.nats import NatsServer


async def append(server: NatsServer, body: bytes) -> None:
    async with connected(StreamAddress.parse(server.url), "test") as connection:
        await open_stream(connection, make=True)
        await connection.js.publish("phase-bus.test", body)


async def count(server: NatsServer) -> int:
    async with connected(StreamAddress.parse(server.url), "test") as connection:
        return (await open_stream(connection, make=False)).last_offset


async def test_a_killed_server_is_there_again_with_what_it_had(nats: NatsServer) -> None:
    await append(nats, b"one")
    nats.kill()
    assert not nats.runs
    nats.start()
    assert await count(nats) == 1
    nats.pause()
    with socket.create_connection(("127.0.0.1", nats.port), 1.0) as client:
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)  # a server greets at once
    nats.resume()
    await append(nats, b"two")
    assert await count(nats) == 2
