"""What sinks over HTTP share: what an answer means, and that nobody reads a secret anywhere."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import gzip
import json
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from phase_bus import ConfigError, DeniedError, PhaseBusError, RefusedRowsError, Secret, UnavailableError
from phase_bus_consumers.http import HttpClient, Login

pytestmark = pytest.mark.usefixtures("no_leaks")

PASSWORD = 'pass"word-7f3a'
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Answer all requests; give the address."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(
    url: str, headers: Mapping[str, str | Secret | Login] | None = None, **options: Any
) -> AsyncIterator[HttpClient]:
    """Give a client that is open."""
    client = HttpClient(url, headers, **options)
    await client.open()
    try:
        yield client
    finally:
        await client.close()


def answering(status: int, text: str = "", **headers: str) -> Handler:
    async def handle(_request: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=text, headers=named)

    return handle


async def error_of(handler: Handler, **options: Any) -> PhaseBusError:
    """Return what a request raises."""
    async with serving(handler) as url, client_of(url, **options) as client:
        with pytest.raises(PhaseBusError) as caught:
            await client.request("POST", "/x", b"body")
    return caught.value


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, DeniedError) for status in (401, 403, 404, 405)),
        *((status, UnavailableError) for status in (408, 429, 500, 502, 503, 504)),
        *((status, RefusedRowsError) for status in (400, 413, 415, 422)),
    ],
)
async def test_what_a_status_means(status: int, kind: type[PhaseBusError]) -> None:
    error = await error_of(answering(status, "for  a\nreason\x1b[1m"))
    assert type(error) is kind
    assert str(error).endswith(rf" answers {status}: for a reason\x1b[1m")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_nobody_is_followed_elsewhere(status: int) -> None:
    """The body would go to a server that the user has not named."""
    met: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        met.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    assert type(await error_of(redirect)) is DeniedError
    assert met == ["/x"]


@pytest.mark.parametrize("page", ["<!DOCTYPE html><p>log in", "\n<html>log in</html>"])
async def test_a_web_page_is_no_success(page: str) -> None:
    """Where nothing is expected of an answer but that it is a success, rows would be gone."""
    error = await error_of(answering(200, page))
    assert type(error) is DeniedError
    assert str(error).endswith("answers 200 with a web page; check url")


async def test_retry_after_is_seconds_or_a_date() -> None:
    async def asked_s(retry_after: str) -> float | None:
        error = await error_of(answering(429, Retry_After=retry_after))
        assert isinstance(error, UnavailableError)
        return error.after_s

    assert await asked_s("7") == 7.0
    in_a_minute = await asked_s(email.utils.formatdate(time.time() + 60, usegmt=True))
    assert in_a_minute is not None
    assert 55 < in_a_minute <= 60
    assert await asked_s(email.utils.formatdate(0, usegmt=True)) == 0.0
    for nonsense in ("soon", "-1", "9" * 400 + "x", "Mon, 99 Foo 2026 99:99:99 GMT"):
        assert await asked_s(nonsense) is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"error": {"type": "security_exception", "reason": "no\nway"}}, "security_exception: no way"),
        ({"text": "Invalid token", "code": 4}, "Invalid token (code 4)"),
        ({"error": "no"}, "no"),
        ({"message": "no"}, "no"),
        ({"other": 1}, '{"other": 1}'),
    ],
)
async def test_the_reason_is_taken_from_known_answers(said: object, reason: str) -> None:
    assert str(await error_of(answering(400, json.dumps(said)))).endswith(f" answers 400: {reason}")


async def test_a_long_answer_is_cut() -> None:
    assert len(str(await error_of(answering(400, "x" * 10_000_000)))) < 400
    assert str(await error_of(answering(500))).endswith("answers 500: nothing more")


async def test_an_answer_without_end_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phase_bus_consumers.http._LONGEST_ANSWER", 1000)
    assert type(await error_of(answering(200, "x" * 2000))) is UnavailableError


async def test_no_answer_in_time() -> None:
    async def never(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    error = await error_of(never, timeout_s=0.05)
    assert type(error) is UnavailableError
    assert "did not answer within 0.05 s" in str(error)


async def test_a_connection_that_is_refused_or_cut() -> None:
    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert type(await error_of(cut)) is UnavailableError
    async with serving(answering(200)) as url:
        pass
    async with client_of(url) as client:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
            await client.request("GET")


async def test_what_speaks_no_http() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ready\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with client_of(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(UnavailableError):
                await client.request("GET")


async def test_a_large_body_is_compressed_if_it_may_be() -> None:
    got: list[tuple[str, bytes]] = []

    async def take(request: web.Request) -> web.Response:
        got.append((request.headers.get("Content-Encoding", ""), await request.read()))
        return web.Response(body=gzip.compress(b"taken"), headers={"Content-Encoding": "gzip"})

    body = b"0123456789" * 1000
    async with serving(take) as url, client_of(url) as client:
        assert await client.request("POST", "", body, compress=True) == b"taken"
        await client.request("POST", "", b"short", compress=True)
        await client.request("POST", "", body)
    assert got == [("gzip", body), ("", b"short"), ("", body)]  # the server has decompressed the first


@pytest.mark.parametrize("scheme", ["Splunk", "ApiKey", "Bearer", "Basic"])
async def test_secrets_are_sent_and_never_shown(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the server says them again, as they are or as JSON writes them."""
    monkeypatch.setenv("THE_SECRET", PASSWORD)
    got: list[str] = []

    async def tell(request: web.Request) -> web.Response:
        got.append(request.headers["Authorization"])
        word = got[-1].partition(" ")[2]
        said = {"you said": [got[-1], word, PASSWORD, request.headers["X-Key"]]}
        return web.Response(status=401, text=json.dumps(said) + PASSWORD + word)

    headers: dict[str, Secret | Login] = {
        "Authorization": Login(scheme, Secret("env:THE_SECRET"), "me"),
        "X-Key": Secret("env:THE_SECRET"),
    }
    async with serving(tell) as url, client_of(url, headers) as client:
        with pytest.raises(DeniedError) as caught:
            await client.request("POST", "/x")
        assert "you said" in str(caught.value)
        shown = str(caught.value) + repr(caught.value) + repr(vars(client).get("_headers"))
    encoded = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    assert got == [f"Basic {encoded}" if scheme == "Basic" else f"{scheme} {PASSWORD}"]
    for form in (PASSWORD, json.dumps(PASSWORD)[1:-1], "word-7f3a", encoded):
        assert form not in shown


async def test_a_secret_is_read_again_when_it_was_refused(tmp_path: Path) -> None:
    """Whoever renews it writes it into the file, and nobody restarts the sink."""
    file = tmp_path / "token"
    file.write_text("old-token\n")

    async def check(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.headers["X-Token"] == "new-token" else 401)

    async with serving(check) as url, client_of(url, {"X-Token": Secret(f"file:{file}")}) as client:
        with pytest.raises(DeniedError):
            await client.request("GET")
        file.write_text("new-token\n")
        await client.request("GET")


async def test_a_secret_that_cannot_be_one_is_told_without_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one-7f3a\ntwo-7f3a")
    with pytest.raises(ConfigError, match="characters that no header can have") as caught:
        await HttpClient("http://h", {"X": Secret(f"file:{file}")}).open()
    assert "7f3a" not in str(caught.value)


async def test_a_login_of_the_home_directory_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent is what the options say, not what ~/.netrc has for the host."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other-secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("THE_SECRET", PASSWORD)
    got: list[str | None] = []

    async def take(request: web.Request) -> web.Response:
        got.append(request.headers.get("Authorization"))
        return web.Response()

    login = Login("Bearer", Secret("env:THE_SECRET"))
    async with serving(take) as url:
        both: list[dict[str, Login]] = [{}, {"Authorization": login}]
        for headers in both:
            async with client_of(url, headers) as client:
                await client.request("GET")
    assert got == [None, f"Bearer {PASSWORD}"]


async def test_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, str | None]] = []

    async def take(request: web.Request) -> web.Response:
        got.append((request.raw_path, request.headers.get("Proxy-Authorization")))
        return web.Response()

    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with serving(take) as url:
        monkeypatch.setenv("http_proxy", url.replace("http://", "http://me:p%40ss@"))
        async with client_of("http://server.invalid") as client:
            await client.request("GET", "/x")
            await client.request("GET", "/x")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with client_of(url) as client:
            await client.request("GET", "/y")
    login = "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert got == [*[("http://server.invalid/x", login)] * 2, ("/y", None)]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("elastic:9200", "begins with http"),
        ("ftp://elastic", "begins with http"),
        ("http://", "begins with http"),
        ("http://host:99999", "begins with http"),
        ("http://me:s3cret-7f3a@host", "must not have a user or password"),
        ("http://s3cret-7f3a@host", "must not have a user or password"),
        ("http://host/x?token=s3cret-7f3a", r"without \? or #"),
    ],
)
def test_addresses(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        HttpClient(url)
    assert "7f3a" not in str(caught.value)


async def test_certificates(tmp_path: Path) -> None:
    """A server is trusted by the certificates of ``ca_file``, and not without them."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=t -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*make.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    async with serving(answering(200, "in"), tls) as url:
        async with client_of(url, ca_file=certificate) as client:
            assert await client.request("GET") == b"in"
        async with client_of(url) as client:
            with pytest.raises(UnavailableError, match="certificate"):
                await client.request("GET")
    with pytest.raises(ConfigError, match=r"ca_file: .* cannot be used"):
        await HttpClient("https://h", ca_file=tmp_path / "none.pem").open()
