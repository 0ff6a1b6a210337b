"""The page over HTTP: its files, its events and the reports that are saved from it."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address

from phase_bus_consumers.dashboard_access import Access, security_headers
from phase_bus_consumers.dashboard_bus import ReportError
from phase_bus_consumers.dashboard_feeds import Feed, Viewer
from phase_bus_consumers.extras import needs

with needs("dashboard"):
    from aiohttp import web

    from phase_bus_consumers.web import listen, url_of

MAX_VIEWERS = 100
MAX_SHOWN = 6  # runs side by side
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FILES = {
    "/": "page.html",
    **{
        f"/{name}": name
        for name in ("page.css", "page.js", "charts.js", "uPlot.min.css", "uPlot.iife.min.js")
    },
}
_ENDING_S = 1.0
_UNUSUAL = re.compile(r"[^\w.-]+", re.ASCII)


class Server:
    """Serves the page.

    Args:
        feeds: the feeds that a viewer follows now.
        page: makes the report of a run.
        on_viewer: called when one has come or gone.
    """

    def __init__(
        self,
        feeds: Callable[[Viewer], Iterable[Feed]],
        page: Callable[[str], Awaitable[bytes]],
        on_viewer: Callable[[], None],
    ) -> None:
        self.viewers: set[Viewer] = set()
        self._feeds, self._page, self._on_viewer = feeds, page, on_viewer
        self._runner: web.AppRunner | None = None
        folder = files("phase_bus_consumers").joinpath("dashboard_page")
        self._files = {path: folder.joinpath(name).read_bytes() for path, name in _FILES.items()}
        digest = hashlib.sha256(b"".join(self._files.values())).hexdigest()
        self._greeting = f'retry: 1000\nevent: page\ndata: {{"build": "{digest[:16]}"}}\n\n'.encode()

    async def start(self, host: str, port: int, names: Iterable[str], token: str) -> str:
        """Listen, and return the address of the page.

        Raises:
            ConfigError: if it cannot, or the token is too short.
        """
        access = Access(host, names, token, self._files)
        app = web.Application(middlewares=[access.guard])
        for path in self._files:
            app.router.add_get(path, self._file)
        app.router.add_post("/login", access.log_in)
        app.router.add_get("/session", _session)
        app.router.add_get("/events", self._events)
        app.router.add_get("/report", self._report)
        self._runner, found, port = await listen(app, "dashboard", host, port, _ENDING_S)
        return f"{url_of('127.0.0.1' if ip_address(found).is_unspecified else found, port)}/"

    async def stop(self) -> None:
        """Let viewers go, and listen no more."""
        for viewer in self.viewers:
            viewer.end()
        if self._runner is not None:
            await self._runner.cleanup()

    def tell(self) -> None:
        """Say to all viewers that feeds have changed."""
        for viewer in self.viewers:
            viewer.tell()

    async def _file(self, request: web.Request) -> web.Response:
        kind = _TYPES[_FILES[request.path].rpartition(".")[2]]
        return web.Response(
            body=self._files[request.path],
            content_type=kind,
            charset="utf-8",
            headers={"Cache-Control": "no-cache"},
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if len(self.viewers) >= MAX_VIEWERS:
            return web.Response(status=503, text=f"there are {MAX_VIEWERS} viewers already\n")
        viewer = Viewer(request.query.getall("run", [])[:MAX_SHOWN])
        headers = security_headers() | {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=headers)
        self.viewers.add(viewer)
        try:
            self._on_viewer()
            await response.prepare(request)
            await response.write(self._greeting)
            await viewer.follow(self._feeds, response.write)
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()  # what is left to be sent would keep it open
        finally:
            self.viewers.discard(viewer)
            self._on_viewer()
        return response

    async def _report(self, request: web.Request) -> web.Response:
        run_id = request.query.get("run", "")
        try:
            body = await self._page(run_id)
        except ReportError as error:
            return web.Response(status=503, text=f"{error}\n")
        name = f"phase-bus-{_UNUSUAL.sub('-', run_id)[:100]}.html"
        return web.Response(
            body=body,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
        )


async def _session(_request: web.Request) -> web.Response:
    return web.Response(status=204)


async def ended(task: asyncio.Task[None] | None) -> None:
    """End a task, and wait for that."""
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
