"""What viewers follow: made once for all of them, and for a slow one skipped.

There are no queues. A viewer knows which version of each feed it has been sent; when it can take more it
gets the change since then, if that is the last one, or else all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from phase_bus import printable_json

_PING = b": alive\n\n"
_PING_S = 10.0
_WRITE_S = 30.0  # how long a viewer may take for what it is sent


class Feed:
    """A document that changes, as server-sent events of one kind.

    Attributes:
        version: how often it has changed.
    """

    def __init__(self, kind: str) -> None:
        self.version = 0
        self._kind = kind
        self._make: Callable[[], Any] = lambda: None
        self._whole = b""
        self._change = b""

    def put(self, make: Callable[[], Any], change: Any = None) -> None:
        """Take in that it has changed.

        Args:
            make: makes the whole document; called once, if anybody needs it.
            change: what a viewer needs who has the version before; None if that is all of it.
        """
        self.version += 1
        self._make, self._whole = make, b""
        self._change = b"" if change is None else self._event(change)

    def since(self, version: int) -> bytes:
        """Return what a viewer is to be sent that has a version, 0 for none."""
        if self._change and version and version == self.version - 1:
            return self._change
        if not self._whole:
            self._whole = self._event(self._make())
        return self._whole

    def _event(self, document: Any) -> bytes:
        text = printable_json(msgspec.json.encode(document).decode())
        return f"event: {self._kind}\ndata: {text}\n\n".encode()


class Viewer:
    """A page that is open somewhere.

    Args:
        runs: the runs that it shows.
    """

    def __init__(self, runs: Iterable[str]) -> None:
        self.runs = frozenset(runs)
        self._seen: dict[Feed, int] = {}
        self._news = asyncio.Event()
        self.ended = False

    def tell(self) -> None:
        """Say that feeds have changed."""
        self._news.set()

    def end(self) -> None:
        """Let it go."""
        self.ended = True
        self._news.set()

    async def follow(
        self, feeds: Callable[[Viewer], Iterable[Feed]], write: Callable[[bytes], Any]
    ) -> None:
        """Write what is new, again and again, until it is let go of.

        Raises:
            TimeoutError: if it is too slow.
            ConnectionError: if it is gone.
        """
        while not self.ended:
            self._news.clear()
            pieces = []
            current = {feed: feed.version for feed in feeds(self) if feed.version}
            for feed, version in current.items():
                if (known := self._seen.get(feed, 0)) != version:
                    pieces.append(feed.since(known))
            self._seen = current
            async with asyncio.timeout(_WRITE_S):
                await write(b"".join(pieces) or _PING)
            try:
                async with asyncio.timeout(_PING_S):
                    await self._news.wait()
            except TimeoutError:
                continue
