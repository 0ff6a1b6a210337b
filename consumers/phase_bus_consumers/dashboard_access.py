"""Who may look at the page: whoever is on this machine, or has the token."""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address

from phase_bus import ConfigError
from phase_bus_consumers.extras import needs

with needs("dashboard"):
    from aiohttp import web

LEAST_TOKEN = 16  # characters
_PUBLIC = {"/", "/login"}  # what is answered without the token, besides the page's own files
_HEADERS = {
    # Nothing but this page's own files runs or is fetched, whatever might have got into it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to what listens at a host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Judges requests.

    Args:
        host: where the page is.
        names: what else it may be called.
        token: what a viewer has to know; empty for nothing.
        files: the paths of the page's own files.
    """

    def __init__(self, host: str, names: Iterable[str], token: str, files: Iterable[str]) -> None:
        if token and len(token) < LEAST_TOKEN:
            raise ConfigError(f"token: it has less than {LEAST_TOKEN} characters; give a longer one")
        self._names = {name.lower() for name in (host, "localhost", socket.gethostname(), *names)}
        self._public = _PUBLIC | set(files)
        self._token = token.encode()
        # What a browser is given in the token's place: it tells nothing of that, and outlives a restart.
        self._pass = hmac.new(self._token, b"phase-bus dashboard", hashlib.sha256).hexdigest()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request, unless it is none of a viewer."""
        response: web.StreamResponse | None = self._refusal(request)
        if response is None:
            try:
                response = await handler(request)
            except web.HTTPException as error:  # such as that there is nothing at this path
                response = web.Response(status=error.status, text=f"{error.reason}\n")
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def log_in(self, request: web.Request) -> web.Response:
        """Give a browser that knows the token a cookie."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(_bytes(given), self._token):
            return web.Response(status=401, text="this is not the token\n")
        response = web.Response(status=204)
        if self._token:
            response.set_cookie(_cookie(request), self._pass, httponly=True, samesite="Strict", path="/")
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        name = _host_of(request.headers.get("Host", ""))
        if not (name in self._names or _is_address(name)):
            # A name of somebody else's that leads here: a page of theirs would read this one.
            return web.Response(status=403, text=f"this is not {name!r}; to call it so give names=...\n")
        if not self._token or request.path in self._public:
            return None
        if hmac.compare_digest(_bytes(request.cookies.get(_cookie(request), "")), self._pass.encode()):
            return None
        return web.Response(status=401, text="the token is needed\n")


def security_headers() -> dict[str, str]:
    """Return the headers of every answer, for one that is sent piece by piece."""
    return dict(_HEADERS)


def _bytes(header: str) -> bytes:
    """Return what was sent: aiohttp has what is no UTF-8 of it as lone surrogates."""
    return header.encode(errors="surrogateescape")


def _cookie(request: web.Request) -> str:
    """Return the cookie's name, with the port: the cookies of a host are the same at all of its ports."""
    sockname = request.transport.get_extra_info("sockname") if request.transport else None
    return f"phase_bus_dashboard_{sockname[1] if sockname else 0}"


def _host_of(text: str) -> str:
    """Return the host in a ``Host`` header."""
    host = text.rpartition(":")[0] if not text.endswith("]") and ":" in text else text
    return host.strip("[]").lower()


def _is_address(name: str) -> bool:
    """Return whether it is no name, which might lead anywhere, but an address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
