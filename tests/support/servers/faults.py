"""What goes wrong between an HTTP client and a server, on purpose."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.servers.app import App

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Fault:
    """What becomes of one request.

    Attributes:
        name: under which it is counted.
        delay_s: how long it waits before anything else.
        status: what it is answered with instead of reaching the server; 0 lets it through.
        headers, body: those of that answer.
        forward: whether it reaches the server.
        answer: whether the client gets an answer, or its connection is reset.
    """

    name: str
    delay_s: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    forward: bool = True
    answer: bool = True


PASS = Fault("passed")
LOSE_ANSWER = Fault("lost", answer=False)
CUT = Fault("cut", forward=False, answer=False)


def answer(status: int, body: str = "", **headers: str) -> Fault:
    """Answer with a status; ``Retry_After="2"`` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(str(status), status=status, headers=named, body=body)


def delay(seconds: float) -> Fault:
    """Let a request through later."""
    return Fault("delayed", delay_s=seconds)


class FaultProxy(App):
    """An HTTP proxy before a server, which does what it is told with the next requests.

    ``script`` is a list of faults for the next requests, one each; after it ``always`` holds. Both may be
    changed at any time. ``kill()`` refuses connections, ``start()`` takes them again on the same port;
    ``reset()`` cuts those there are.

    Args:
        to: the server's URL.
        only: the part of a path that a request must have to be met by faults; others pass.
        authorization: what that header must say, or the answer is 401: for servers that ask for nothing.

    Attributes:
        script, always: what is to be done.
        counts: what was done, by the faults' names: "passed", "lost", "cut", "429", "delayed", and
            "unreachable" where the server was not there (the connection is reset then).
        statuses: what the server itself answered, each as often as it did, also where the answer was lost.
    """

    def __init__(self, to: str, only: str = "", authorization: str = "") -> None:
        super().__init__({"* /{path:.*}": self._on_request}, auto_decompress=False)
        self._to, self._only, self._authorization = to.rstrip("/"), only, authorization
        self.script: list[Fault] = []
        self.always = PASS
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    def next(self, *faults: Fault, times: int = 1) -> None:
        """Add faults for the next requests."""
        self.script += list(faults) * times

    def reset(self) -> None:
        """Cut all connections, and take new ones."""
        self.kill()
        self.start()

    async def open(self) -> None:
        self._client = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(60))
        await super().open()

    async def close(self) -> None:
        await super().close()
        await self._client.close()

    async def forwarded(self, _request: web.Request, body: bytes) -> bytes:
        """Return what the server is sent instead of a request's body."""
        return body

    async def _on_request(self, request: web.Request) -> web.StreamResponse:
        body = await self.forwarded(request, await request.read())
        if self._authorization and request.headers.get("Authorization") != self._authorization:
            self.counts["401"] += 1
            return web.json_response({"error": "unauthorized", "status": 401}, status=401)
        fault = (
            PASS if self._only not in request.path else self.script.pop(0) if self.script else self.always
        )
        await asyncio.sleep(fault.delay_s)
        if fault.status:
            self.counts[fault.name] += 1
            return web.Response(status=fault.status, headers=fault.headers, text=fault.body)
        response: web.StreamResponse | None = None
        name = fault.name
        if fault.forward:
            try:
                response = await self._forward(request, body)
            except aiohttp.ClientError:
                name = "unreachable"
        self.counts[name] += 1
        if response is not None and fault.answer:
            return response
        return _cut(request)

    def _fault(self, request: web.Request) -> Fault:
        if self._only not in request.path:
            return PASS
        return self.script.pop(0) if self.script else self.always

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        url = URL(self._to + request.raw_path, encoded=True)
        async with self._client.request(
            request.method, url, data=body, headers=headers, allow_redirects=False
        ) as found:
            self.statuses[found.status] += 1
            kept = {k: v for k, v in found.headers.items() if k.lower() not in _HOP_BY_HOP}
            return web.Response(status=found.status, headers=kept, body=await found.read())


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
