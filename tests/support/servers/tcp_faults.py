"""What goes wrong between a client and a server of any protocol, on purpose: on the level of TCP."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.support.servers.app import Threaded
from tests.support.servers.process import HOST

_CHUNK = 1 << 16
_LOOK_S = 0.02


class TcpProxy(Threaded):
    """A proxy before a database.

    ``kill()`` refuses connections, ``start()`` takes them again on the same port; ``reset()`` cuts those
    there are. While ``silent`` is set all are there, also new ones, and nothing comes through: as where a
    cable is pulled. What was sent meanwhile comes late, even from a client that has long gone.

    Args:
        to: the server's port on 127.0.0.1, or its Unix socket.

    Attributes:
        delay_s: how long each piece of an answer waits.
        silent: whether nothing comes through now.
        counts: what was done: "connections", "lost", "cut", and "unreachable" where no server was there.
    """

    def __init__(self, to: int | Path) -> None:
        super().__init__()
        self._to = to
        self.delay_s = 0.0
        self.silent = False
        self.counts: Counter[str] = Counter()
        self._losses = 0
        self._when = b""
        self._cut_after: int | None = None
        self._pipes: set[_Pipe] = set()

    def through(self, url: str) -> str:
        """Return a server's URL with the proxy's port in it."""
        assert f":{self._to}" in url, url
        return url.replace(f":{self._to}", f":{self.port}")

    def lose_answers(self, times: int = 1, when: bytes = b"") -> None:
        """Reset the connections of the next requests with these bytes when the server has answered."""
        self._losses, self._when = times, when

    def cut_after(self, size_bytes: int) -> None:
        """Reset a connection once, when this many bytes more have come, counted over all connections."""
        self._cut_after = size_bytes

    def reset(self) -> None:
        """Cut all connections, and take new ones."""
        self.kill()
        self.start()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._on_connection, HOST, self.port)

    async def close(self) -> None:
        self._server.close()
        for pipe in list(self._pipes):
            pipe.abort()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        try:
            if isinstance(self._to, Path):
                server = await asyncio.open_unix_connection(self._to)
            else:
                server = await asyncio.open_connection(HOST, self._to)
        except OSError:
            self.counts["unreachable"] += 1
            writer.transport.abort()
            return
        pipe = _Pipe(reader, writer, *server)
        self._pipes.add(pipe)
        try:
            await asyncio.gather(self._requests(pipe), self._answers(pipe))
        except OSError:
            pass
        finally:
            pipe.abort()
            self._pipes.discard(pipe)

    async def _requests(self, pipe: _Pipe) -> None:
        tail = b""
        while data := await self._come_through(pipe.client_reader):
            if self._cut_after is not None:
                if len(data) >= self._cut_after:
                    data = data[: self._cut_after]
                    self._cut_after = None
                    self.counts["cut"] += 1
                    pipe.server_writer.write(data)
                    await pipe.server_writer.drain()
                    raise ConnectionResetError
                self._cut_after -= len(data)
            seen = tail + data
            if self._losses and self._when in seen:
                self._losses -= 1
                pipe.loses = True
            tail = seen[len(seen) - len(self._when) + 1 :] if self._when else b""
            pipe.server_writer.write(data)
            await pipe.server_writer.drain()
        pipe.server_writer.write_eof()

    async def _come_through(self, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(_CHUNK)
        while self.silent:  # noqa: ASYNC110 - which another thread sets
            await asyncio.sleep(_LOOK_S)
        return data

    async def _answers(self, pipe: _Pipe) -> None:
        while data := await self._come_through(pipe.server_reader):
            if pipe.loses:
                self.counts["lost"] += 1
                raise ConnectionResetError
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            pipe.client_writer.write(data)
            await pipe.client_writer.drain()
        raise ConnectionResetError  # the server is gone


class _Pipe:
    def __init__(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self.client_reader, self.client_writer = client_reader, client_writer
        self.server_reader, self.server_writer = server_reader, server_writer
        self.loses = False

    def abort(self) -> None:
        self.client_writer.transport.abort()
        self.server_writer.transport.abort()
