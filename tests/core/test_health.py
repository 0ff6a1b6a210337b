"""The HTTP server beside a loop: what it answers, and who may hold it up."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from msgspec import Struct

from phase_bus.core.health import Metric, nth_place, parse_place
from phase_bus.core.health_server import HealthServer
from phase_bus.errors import ConfigError
from tests.support.health import ask, values, verdict

pytestmark = pytest.mark.usefixtures("no_leaks")


class Told(Struct, frozen=True):
    """A snapshot of a loop."""

    taken_s: float
    problem: str = ""
    patience_s: float = 5.0

    def metrics(self) -> Iterator[Metric]:
        """Yield one of each kind."""
        yield Metric("t_letters_total", "counter", "Letters.", {("a",): 3, ("b\n\"'",): 4}, ("of",))
        yield Metric("t_size", "gauge", "Size.", {(): 0.5})
        yield Metric("t_nothing", "gauge", "Nothing.", {})


@pytest.fixture
def server() -> Iterator[HealthServer]:
    """A server that was just told that all is well."""
    server = HealthServer("0")
    server.start(Told(time.monotonic()))
    yield server
    server.close()


def test_all_is_well(server: HealthServer) -> None:
    """On this machine only, in the formats that are promised."""
    assert server.url.startswith("http://127.0.0.1:")
    assert verdict(f"{server.url}/healthz") == verdict(f"{server.url}/readyz") == (200, "ok\n")
    told = values(server.url)
    assert told["t_letters_total[a]"] == 3
    assert told["t_letters_total[b\n\"']"] == 4
    assert told["t_size"] == 0.5
    assert told["phase_bus_ready"] == 1
    assert 0 <= told["phase_bus_loop_age_seconds"] < 5
    assert 1e6 < told["process_resident_memory_bytes"] < 1e10
    assert 0 < told["process_open_fds"] < told["process_max_fds"]
    assert ask(f"{server.url}/metrics").headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_not_ready_and_stuck(server: HealthServer) -> None:
    """One is about the loop, the other about its work; both in a line."""
    server.snapshot = Told(time.monotonic(), "its disk is full")
    assert verdict(f"{server.url}/healthz") == (200, "ok\n")
    assert verdict(f"{server.url}/readyz") == (503, "its disk is full\n")
    assert values(server.url)["phase_bus_ready"] == 0
    server.snapshot = Told(time.monotonic() - 7)
    for path in ("healthz", "readyz"):
        status, text = verdict(f"{server.url}/{path}")
        assert status == 503
        assert re.fullmatch(r"its loop has not turned for 7\.\d s\n", text)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/..", "/favicon.ico", "/%2e%2e/etc/passwd"])
def test_nothing_else_is_there(server: HealthServer, path: str) -> None:
    """Whatever else is asked for."""
    assert ask(server.url + path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_it_is_read_only(server: HealthServer, method: str) -> None:
    """Nothing can be sent to it."""
    answer = ask(f"{server.url}/healthz", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/else"])
def test_head(server: HealthServer, path: str) -> None:
    """The same without the body."""
    got, head = ask(server.url + path), ask(server.url + path, "HEAD")
    assert (head.status, head.text) == (got.status, "")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert got.headers["Content-Length"] == str(len(got.text))
    assert int(head.headers["Content-Length"]) > 0


def test_clients_that_say_nothing(server: HealthServer) -> None:
    """Many of them cost a few threads, and keep nobody from an answer."""
    port = int(server.url.rpartition(":")[2])
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(100)]
        for number, each in enumerate(silent):
            each.sendall(b"GET /healthz HTT"[: number % 17])
        begin_s = time.monotonic()
        for _ in range(20):
            assert verdict(f"{server.url}/healthz") == (200, "ok\n")
        assert time.monotonic() - begin_s < 4  # less than their time-out
        silent[0].settimeout(4)
        with suppress(ConnectionResetError):
            assert silent[0].recv(1) == b""  # it was cut
        server.close()  # with the latest of them still there


def test_junk(server: HealthServer, capfd: pytest.CaptureFixture[str]) -> None:
    """What is no HTTP is an error for its sender, and for nobody else."""
    port = int(server.url.rpartition(":")[2])
    for junk in (
        b"\0" * 70_000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 200,
    ):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while client.recv(4096):
                    pass
    assert verdict(f"{server.url}/healthz") == (200, "ok\n")
    assert capfd.readouterr().err == ""


def test_a_port_in_use(server: HealthServer) -> None:
    """One line says it."""
    port = server.url.rpartition(":")[2]
    with pytest.raises(ConfigError, match=rf"^--health {port}: Address already in use; give another"):
        HealthServer(port)


def test_a_host(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond this machine only if it is said; the log says who may connect."""
    for place, said in (("[::1]:0", r"\[::1\]:\d+$"), ("*:0", r"\*:\d+, for everybody who can connect$")):
        caplog.clear()
        server = HealthServer(place)
        try:
            with caplog.at_level("INFO"):
                server.start(Told(time.monotonic()))
            port = server.url.rpartition(":")[2]
            url = f"http://{place.replace('*', '127.0.0.1').removesuffix(':0')}:{port}"
            assert verdict(f"{url}/healthz") == (200, "ok\n")
        finally:
            server.close()
        assert re.match(f"health at http://{said}", caplog.messages[0])


def test_places() -> None:
    """A port, or a host and a port; of several processes each has one of its own."""
    assert str(parse_place("9464")) == "tcp://127.0.0.1:9464"
    assert str(parse_place("*:9464")) == "tcp://*:9464"
    assert [nth_place("9464", n) for n in (1, 2)] == ["127.0.0.1:9464", "127.0.0.1:9465"]
    assert [nth_place("[::]:0", n) for n in (1, 2)] == ["[::]:0", "[::]:0"]
    with pytest.raises(ConfigError, match="there are not 3 ports from there on"):
        nth_place("65534", 3)


@pytest.mark.parametrize(
    "place", ["", ":9464", "x", "localhost", "1.2.3.4", "::1:9464", "9464x", "70000", "-1"]
)
def test_no_places(place: str) -> None:
    """One line says what to write."""
    with pytest.raises(ConfigError, match="not a place to listen at; give a port, or HOST:PORT"):
        parse_place(place)


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"^--health: .* pip install 'phase-bus\[prometheus\]'$"):
        HealthServer("0")
