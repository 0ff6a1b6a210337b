"""Waiting in asyncio, for ZeroMQ sockets and others, which a publisher's process need not import."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import zmq


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Return when an event is set, or after a time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):  # asyncio.wait_for may swallow being cancelled
            await event.wait()


class Readable:
    """Waits until a ZeroMQ socket has something, in asyncio.

    A socket's descriptor is edge-triggered: the socket must be read until empty, and looked at again after
    other calls on it (https://zguide.zeromq.org, zmq_getsockopt(3), ZMQ_FD). To asyncio it is readable
    until that look: it is watched only while somebody waits, or the loop would spin.
    """

    def __init__(self, sock: zmq.Socket[bytes]) -> None:
        self._sock = sock
        self._event = asyncio.Event()
        self._fd = int(sock.getsockopt(zmq.FD))
        self._watching: asyncio.AbstractEventLoop | None = None

    async def wait(self, timeout_s: float) -> None:
        """Return when the socket may be readable, when told to look again, or after a time."""
        self._event.clear()
        if int(self._sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return
        self._watching = loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, self._event.set)
        try:
            await wait_for_event(self._event, timeout_s)
        finally:
            self._unwatch()

    def look_again(self) -> None:
        """End a wait: another call on the socket may have consumed its signal."""
        self._event.set()

    def release(self) -> None:
        """End a wait for good, before the socket is closed: its descriptor will be somebody else's."""
        self._unwatch()
        self._event.set()

    def _unwatch(self) -> None:
        if self._watching is not None:
            self._watching.remove_reader(self._fd)
            self._watching = None
