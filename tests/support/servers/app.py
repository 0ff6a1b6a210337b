"""A server of the tests' own: an aiohttp application on a thread, which can be killed and started again."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

from aiohttp import web

from tests.support.servers.process import HOST, free_port

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something there; return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def end(self) -> None:
        """Cancel what is left, and end the thread."""
        self.do(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class Threaded(ABC):
    """A server on a thread that behaves as a process would when it is killed.

    ``kill()`` resets all connections and frees the port; a request that was being worked on is abandoned
    where it stands. What the server counts as stored stays.

    Attributes:
        port: the same for its whole life.
    """

    def __init__(self) -> None:
        self.port = 0
        self._thread: LoopThread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.port}"

    @property
    def runs(self) -> bool:
        """Whether it is there."""
        return self._thread is not None

    def start(self) -> None:
        """Start it on its port; it answers at once."""
        assert not self.runs, "it runs"
        self.port = self.port or free_port()
        self._thread = LoopThread()
        self._thread.do(self.open())

    def kill(self) -> None:
        """End it as SIGKILL would, if it is still there."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            thread.do(self.close())
            thread.end()

    @abstractmethod
    async def open(self) -> None:
        """Listen."""

    @abstractmethod
    async def close(self) -> None:
        """Close the listener, and reset the connections."""


class App(Threaded):
    """An HTTP server.

    Args:
        handlers: by method and path, such as "POST /v1/logs".
        auto_decompress: whether handlers see bodies without their compression.
    """

    def __init__(self, handlers: dict[str, Handler], auto_decompress: bool = True) -> None:
        super().__init__()
        self._handlers = handlers
        self._auto_decompress = auto_decompress

    async def open(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        for route, handler in self._handlers.items():
            method, path = route.split(" ")
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.0, auto_decompress=self._auto_decompress
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port).start()

    async def close(self) -> None:
        server = self._runner.server
        for connection in server.connections if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
