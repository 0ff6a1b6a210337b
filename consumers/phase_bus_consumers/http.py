"""What sinks that speak HTTP share: a request, and what its answer means for the rows in it."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import gzip
import json
import os
import ssl
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import aiohttp

from phase_bus import ConfigError, DeniedError, RefusedRowsError, Secret, UnavailableError, printable

_QUOTED = 300  # characters of an answer that is no success
_LONGEST_REFUSAL = 64 << 10  # bytes
_LONGEST_ANSWER = 64 << 20  # bytes
# Wrong credentials, a wrong path, or a server that wants us elsewhere.
_DENIES = {301, 302, 303, 307, 308, 401, 403, 404, 405, 407}
_TOO_MUCH_AT_ONCE = {408, 425, 429}
_COMPRESSES_FROM = 1000  # bytes
_WEB_PAGE = (b"<!doctype", b"<html")
# Parts of the names of headers that let somebody in; of these "team" is Honeycomb's.
_CONFIDENTIAL = ("auth", "cookie", "credential", "key", "license", "pass", "secret", "team", "token")
_SHORTEST_SECRET = 4  # characters; to hide a shorter one would tell it, by what is missing


class Login(NamedTuple):
    """What an ``Authorization`` header says.

    Attributes:
        scheme: its first word, such as ``Bearer``.
        secret: what comes after it; for ``Basic`` the password.
        user: whose password it is.
    """

    scheme: str
    secret: Secret
    user: str = ""

    def header(self) -> str:
        """Read the secret; return the header.

        Raises:
            ConfigError: if it cannot be read.
        """
        word = self.secret.value()
        if self.scheme == "Basic":
            word = base64.b64encode(f"{self.user}:{word}".encode()).decode()
        return f"{self.scheme} {word}"


class Reply(NamedTuple):
    """A server's answer.

    Attributes:
        body: the beginning of it, if it is no success.
        after_s: in how many seconds the server asks to be tried again, if it does.
    """

    status: int
    body: bytes
    after_s: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the server did what it was asked for."""
        return 200 <= self.status < 300


class HttpClient:
    """A server that rows are sent to, over connections that are kept open.

    Args:
        url: where the server is; the paths of requests are added to it.
        headers: sent with each request. Secrets are read when they are needed, anew after a refusal, and
            never shown, nor what a server repeats of them.
        timeout_s: how long one request may take.
        ca_file: certificates of authorities to trust instead of the system's.

    Raises:
        ValueError: if the address is none, or has a password in it.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str | Secret | Login] | None = None,
        *,
        timeout_s: float = 30.0,
        ca_file: Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
            raise ValueError("url must be an address that begins with http:// or https://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not have a user or password in it: there are options for these")
        if parts.query or parts.fragment:
            raise ValueError("url must end with its path, without ? or #")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s:g}")
        self.host = printable(parts.netloc)
        self._parts = parts
        self._url = url.rstrip("/")
        self._headers = dict(headers or {})
        self._read: dict[str, str] = {}  # the headers with the secrets in them; empty: to be read
        self._hidden: list[str] = []  # the secrets in them, in all forms that a server may repeat
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._ca_file = ca_file
        self._proxy = ""
        self._proxy_headers: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Prepare; no connection is made yet. Once more does no harm.

        Raises:
            ConfigError: if a secret or the certificates cannot be read.
        """
        self._read_headers()
        trusted: ssl.SSLContext | bool = True
        if self._ca_file is not None:
            try:
                trusted = ssl.create_default_context(cafile=str(self._ca_file))
            except OSError as error:
                raise ConfigError(
                    f"ca_file: {str(self._ca_file)!r} cannot be used: {error.strerror or error}; "
                    "give a file with certificates (PEM)"
                ) from None
        await self.close()
        self._proxy, self._proxy_headers = _proxy_for(self._parts)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trusted), timeout=self._timeout
        )

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        compress: bool = False,
    ) -> bytes:
        """Make a request; return the body of an answer that is a success.

        Args:
            path: what is added to the address.
            body: what is sent, gzipped if ``compress`` is set and it is large enough.

        Raises:
            UnavailableError: no answer in time, or one that says to try again.
            DeniedError: wrong credentials or a wrong address.
            RefusedRowsError: the server does not take this body.
        """
        return self.check(await self.ask(method, path, body, headers, compress=compress))

    async def ask(
        self,
        method: str,
        path: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        compress: bool = False,
    ) -> Reply:
        """Make a request as :meth:`request` does; return the answer, whatever it says.

        Raises:
            UnavailableError: no answer in time.
        """
        assert self._session is not None, "open() comes first"
        if not self._read:
            self._read_headers()
        sent = {**self._read, **(headers or {})}
        if compress and len(body) >= _COMPRESSES_FROM:
            body = await asyncio.to_thread(gzip.compress, body, 1)
            sent["Content-Encoding"] = "gzip"
        if self._parts.scheme == "http":  # the proxy reads the request itself, not only that for a tunnel
            sent |= self._proxy_headers
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body or None,
                headers=sent,
                allow_redirects=False,
                proxy=self._proxy or None,
                proxy_headers={**self._proxy_headers},
            ) as answer:
                after_s = _seconds(answer.headers.get("Retry-After"))
                success = 200 <= answer.status < 300
                said = await _body(answer, _LONGEST_ANSWER if success else _LONGEST_REFUSAL)
        except TimeoutError:
            raise UnavailableError(f"{self.host} did not answer within {self._timeout.total:g} s") from None
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError) as error:
            raise UnavailableError(f"{self.host}: {self.plain(_why(error))}") from None
        if success and len(said) >= _LONGEST_ANSWER:
            raise UnavailableError(f"{self.host} answers with more than {_LONGEST_ANSWER:,} bytes")
        return Reply(answer.status, said, after_s)

    def check(self, reply: Reply) -> bytes:
        """Return an answer's body.

        Raises:
            UnavailableError: it says to try again.
            DeniedError: it says that the credentials or the address are wrong, or is a page for people:
                of a portal that wants a login, or of another server.
            RefusedRowsError: it says that the server does not take what it was sent.
        """
        if reply.is_success:
            if reply.body[:100].lstrip().lower().startswith(_WEB_PAGE):
                raise DeniedError(f"{self.host} answers {reply.status} with a web page; check url")
            return reply.body
        said = self.plain(_reason(reply.body)) or "nothing more"
        reason = f"{self.host} answers {reply.status}: {said}"
        if reply.status in _DENIES:
            self._read = {}
            raise DeniedError(reason)
        if reply.status >= 500 or reply.status in _TOO_MUCH_AT_ONCE:
            raise UnavailableError(reason, reply.after_s)
        raise RefusedRowsError(reason)

    def plain(self, text: str) -> str:
        """Return what a server said in one line, cut, and without the secrets that it may repeat."""
        for secret in self._hidden:
            text = text.replace(secret, "***")
        return printable(" ".join(text.split()))[:_QUOTED]

    def _read_headers(self) -> None:
        read: dict[str, str] = {}
        hidden: set[str] = set()
        for name, value in self._headers.items():
            if isinstance(value, str):
                read[name] = value
                continue
            secret = value.secret if isinstance(value, Login) else value
            word = secret.value()
            if not word.isprintable():
                raise ConfigError(f"secret {secret}: it has characters that no header can have")
            read[name] = value.header() if isinstance(value, Login) else word
            hidden.update((word, read[name], read[name].partition(" ")[2], json.dumps(word)[1:-1]))
        self._read = read
        self._hidden = sorted((w for w in hidden if len(w) >= _SHORTEST_SECRET), key=len, reverse=True)


def header(name: str, value: str) -> str | Secret:
    """Return what an option gives for a header: ``env:NAME`` and ``file:PATH`` say where it is.

    Raises:
        ValueError: if it is given in clear and looks as if it were a secret. It is not repeated.
    """
    if value.startswith(("env:", "file:")):
        return Secret(value)
    if any(part in name.lower() for part in _CONFIDENTIAL):
        raise ValueError(
            f"the header {name} is not given in clear; write env:NAME for an environment variable, "
            "or file:PATH"
        )
    return value


def _has_port(parts: SplitResult) -> bool:
    """Return whether an address has a port that is one, or none."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _proxy_for(parts: SplitResult) -> tuple[str, dict[str, str]]:
    """Return the proxy that the environment names for an address, and the login that it wants."""
    url = urllib.request.getproxies().get(parts.scheme)
    if not url or urllib.request.proxy_bypass(parts.netloc):
        return "", {}
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    headers = {}
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    return f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}", headers


def _why(error: Exception) -> str:
    """Return why there was no answer."""
    if type(error) is aiohttp.ClientConnectorError and error.errno:
        return os.strerror(error.errno)  # its own text has the address twice more
    return str(error) or type(error).__name__


async def _body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the beginning of an answer's body, so many bytes or a few more."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) >= most:
            break
    return bytes(body)


def _reason(body: bytes) -> str:
    """Return why a server did not do what it was asked for: all that it says, unless it is known JSON."""
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    match said:
        case {"error": {"type": str(kind), "reason": str(why)}}:  # Elasticsearch
            return f"{kind}: {why}"
        case {"text": str(why), "code": int(code)}:  # Splunk
            return f"{why} (code {code})"
        case {"error": str(why)} | {"message": str(why)}:
            return why
    return text


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header: it has these, or a date."""
    if not retry_after:
        return None
    try:
        if retry_after.strip().isdecimal():
            return float(retry_after)
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
