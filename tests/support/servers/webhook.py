"""An HTTP server that writes down what it is sent: Slack, PagerDuty, a webhook of one's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.support.servers.app import App


@dataclass(frozen=True)
class Received:
    """A request, its headers by names in small letters."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, from JSON."""
        return json.loads(self.body)


class Webhook(App):
    """A server for any method and path.

    Args:
        status: of each answer.
        body: of each answer.

    Attributes:
        received: all requests that it answered, in order; they outlive ``kill()``.
    """

    def __init__(self, status: int = 200, body: str = "ok") -> None:
        super().__init__({"* /{path:.*}": self._on_request})
        self.status, self.body = status, body
        self.received: list[Received] = []

    async def _on_request(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.read()
        self.received.append(Received(request.method, request.path, dict(request.query), headers, body))
        kind = "application/json" if self.body[:1] in ("{", "[") else "text/plain"
        return web.Response(status=self.status, text=self.body, content_type=kind)
