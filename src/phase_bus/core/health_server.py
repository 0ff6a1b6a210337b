"""``/healthz``, ``/readyz`` and ``/metrics`` over HTTP, in threads beside a process's loop."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from phase_bus.core.classes import import_extra
from phase_bus.core.health import Metric, Snapshot, parse_place
from phase_bus.errors import ConfigError

logger = logging.getLogger("phase_bus.health")

_CONNECTIONS = 16  # at once; one more takes the place of the oldest
_SILENT_S = 5.0  # how long a client may keep a connection waiting
_LOOK_S = 0.2  # between two looks whether to stop
_TEXT = [("Content-Type", "text/plain; charset=utf-8")]


class HealthServer:
    """Answers from the latest snapshot that the loop has left.

    It is read only, and there is no authentication: it listens on loopback unless a host is given. The
    place is ``PORT`` or ``HOST:PORT``; port 0 takes a free one.

    Attributes:
        snapshot: the latest; the loop puts another one in its place.
        url: where it is.

    Raises:
        ConfigError: if it cannot listen there, or prometheus_client is not installed.
    """

    def __init__(self, place: str) -> None:
        self.snapshot: Snapshot | None = None
        self._prometheus = import_extra("prometheus_client", "prometheus", "--health: ")
        self._families = import_extra("prometheus_client.core", "prometheus", "--health: ")
        where = parse_place(place)
        try:
            self._server = _Server(None if where.host == "*" else where.host.strip("[]"), where.port)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--health {place}: {reason}; give another place, or port 0") from error
        self.url = f"http://{where.host}:{self._server.server_port}"
        self._thread: threading.Thread | None = None

    def start(self, snapshot: Snapshot) -> None:
        """Answer from now on, and say where."""
        self.snapshot = snapshot
        registry = self._prometheus.CollectorRegistry(auto_describe=True)
        registry.register(self)
        self._prometheus.ProcessCollector(registry=registry)
        self._metrics = self._prometheus.make_wsgi_app(registry)
        self._server.set_app(self._answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_S,), name="phase-bus-health", daemon=True
        )
        self._thread.start()
        all_may = "" if self._server.is_local else ", for everybody who can connect"
        logger.info("health at %s%s", self.url, all_may)

    def close(self) -> None:
        """Answer no more."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as prometheus_client has them, which calls this."""
        snapshot = self._latest
        yield self._family(
            Metric(
                "phase_bus_ready", "gauge", "Whether /readyz says so.", {(): float(not _unready(snapshot))}
            )
        )
        yield self._family(
            Metric(
                "phase_bus_loop_age_seconds",
                "gauge",
                "Time since the process's loop turned, as far as it has said.",
                {(): _age_s(snapshot)},
            )
        )
        yield from map(self._family, snapshot.metrics())

    def _family(self, metric: Metric) -> Any:
        kinds = {"counter": "CounterMetricFamily", "gauge": "GaugeMetricFamily"}
        made = getattr(self._families, kinds[metric.kind])(metric.name, metric.text, labels=metric.labels)
        for labels, value in metric.values.items():
            made.add_metric(labels, value)
        return made

    @property
    def _latest(self) -> Snapshot:
        assert self.snapshot is not None
        return self.snapshot

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        status, headers, body = self._route(environ)
        start(status, [*headers, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _route(self, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", [*_TEXT, ("Allow", "GET, HEAD")], b"GET and HEAD only\n"
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._answer_metrics(environ)
            case "/healthz":
                return _verdict(_stuck(self._latest))
            case "/readyz":
                return _verdict(_unready(self._latest))
        return "404 Not Found", _TEXT, b"/healthz, /readyz and /metrics are here\n"

    def _answer_metrics(self, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], bytes]:
        said: list[Any] = []
        body = b"".join(
            self._metrics({**environ, "REQUEST_METHOD": "GET"}, lambda *told: said.extend(told))
        )
        status, headers = said
        return status, headers, body


def _age_s(snapshot: Snapshot) -> float:
    return max(time.monotonic() - snapshot.taken_s, 0.0)


def _stuck(snapshot: Snapshot) -> str:
    age_s = _age_s(snapshot)
    return f"its loop has not turned for {age_s:.1f} s" if age_s > snapshot.patience_s else ""


def _unready(snapshot: Snapshot) -> str:
    return _stuck(snapshot) or snapshot.problem


def _verdict(problem: str) -> tuple[str, list[tuple[str, str]], bytes]:
    if problem:
        return "503 Service Unavailable", _TEXT, f"{problem}\n".encode()
    return "200 OK", _TEXT, b"ok\n"


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_S

    def log_message(self, *_what: object) -> None:
        """Log nothing: a probe asks every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each of a few connections; who is slow makes room for who comes.

    Attributes:
        is_local: whether only this machine can connect.
    """

    daemon_threads = True
    request_queue_size = 128  # a burst beyond it would keep a probe waiting for a second

    def __init__(self, host: str | None, port: int) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # the oldest first
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, where = found[0]
        self.address_family = family
        super().__init__((str(where[0]), int(where[1])), _Handler)
        self.is_local = ip_address(str(self.server_address[0])).is_loopback

    def server_bind(self) -> None:
        """Bind without looking the host's name up, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def server_close(self) -> None:
        """Close the listener, and all connections."""
        super().server_close()
        with self._lock:
            while self._open:
                self._cut_oldest()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; without a file descriptor for it, wait a while before the next try."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_LOOK_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread."""
        with self._lock:
            if len(self._open) >= _CONNECTIONS:
                self._cut_oldest()
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Log what went wrong, unless it was the client that said nothing, or is gone."""
        logger.debug("a request for health failed", exc_info=True)

    def _cut_oldest(self) -> None:
        oldest = next(iter(self._open))
        del self._open[oldest]
        with suppress(OSError):  # its client is gone already
            oldest.shutdown(socket.SHUT_RDWR)
