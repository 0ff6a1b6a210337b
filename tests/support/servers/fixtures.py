"""The servers as fixtures, each started for the test that asks for it, and gone at its end.

==================  ========================================================================================
fixture             gives
==================  ========================================================================================
``prometheus``      a Prometheus of the test's own (30 ms)
``promtool``        the path of promtool
``opensearch``      OpenSearch's interface in memory, of the test's own (10 ms)
``mongodb``         a server of MongoDB's protocol, shared by all (1 s, once): use ``new_database()``
``mongodb_auth``    the same with a password, shared as well (2.5 s, once)
``otlp_receiver``   a receiver of OTLP over HTTP
``hec``             Splunk's HTTP Event Collector with acknowledgement; ``hec.ack = False`` is one without
``webhook``         an HTTP server that writes down what it is sent
``mail_server``     a mail server
``fault_proxy``     a function: ``fault_proxy(server.url, only="/_bulk")`` is an HTTP proxy with faults
``tcp_proxy``       a function: ``tcp_proxy(server.port)`` is a proxy with faults for databases
``nats``            a NATS server with JetStream, of the test's own (30 ms)
``nats_cluster``    three of them as a cluster, of the test's own (0.5 s); a new leader takes 5 to 10 s
==================  ========================================================================================

Each has ``url``, ``port``, ``runs``, ``kill()`` and ``start()``. A shared one that a test leaves killed is
started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.servers.faults import FaultProxy
from tests.support.servers.hec import Hec
from tests.support.servers.mail import MailServer
from tests.support.servers.mongodb import MongoDB
from tests.support.servers.nats import NatsCluster, NatsServer
from tests.support.servers.opensearch import OpenSearch
from tests.support.servers.otlp import OtlpReceiver
from tests.support.servers.prometheus import Prometheus, program
from tests.support.servers.tcp_faults import TcpProxy
from tests.support.servers.webhook import Webhook


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that takes remote writes; ``prometheus.scrape("127.0.0.1:PORT")`` lets it scrape."""
    with Prometheus(tmp_path / "prometheus") as server:
        yield server


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool."""
    return program("promtool")


@pytest.fixture
def opensearch(tmp_path: Path) -> Iterator[OpenSearch]:
    """OpenSearch's interface; what it has is gone after ``kill()``."""
    with OpenSearch(tmp_path / "opensearch") as server:
        yield server


@pytest.fixture(scope="session")
def _mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoDB]:
    with MongoDB(tmp_path_factory.mktemp("mongodb")) as server:
        yield server


@pytest.fixture
def mongodb(_mongodb: MongoDB) -> Iterator[MongoDB]:
    """A server of MongoDB's protocol that lets everybody in."""
    yield _mongodb
    if not _mongodb.runs:
        _mongodb.start()


@pytest.fixture(scope="session")
def _mongodb_auth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoDB]:
    with MongoDB(tmp_path_factory.mktemp("mongodb-auth"), auth=True) as server:
        yield server


@pytest.fixture
def mongodb_auth(_mongodb_auth: MongoDB) -> Iterator[MongoDB]:
    """A server of MongoDB's protocol that wants a password; ``url_with("wrong")`` has another."""
    yield _mongodb_auth
    if not _mongodb_auth.runs:
        _mongodb_auth.start()


@pytest.fixture
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver of OTLP; ``points()``, ``log_records()``, ``spans()`` and ``repeated()`` say what came."""
    with OtlpReceiver() as server:
        yield server


@pytest.fixture
def hec() -> Iterator[Hec]:
    """Splunk's collector; ``indexed`` is what it has, its token is ``tests.support.servers.hec.TOKEN``."""
    with Hec() as server:
        yield server


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """An HTTP server; ``received`` is what it was sent, ``status`` and ``body`` are what it answers."""
    with Webhook() as server:
        yield server


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    """A mail server; ``messages`` is what it has."""
    with MailServer() as server:
        yield server


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """Start HTTP proxies: call it with a server's URL and the arguments of FaultProxy."""
    with ExitStack() as stack:
        yield lambda to, **options: stack.enter_context(FaultProxy(to, **options))


@pytest.fixture
def tcp_proxy() -> Iterator[Callable[[int | Path], TcpProxy]]:
    """Start proxies for databases: call it with a port, or the path of a Unix socket."""
    with ExitStack() as stack:
        yield lambda to: stack.enter_context(TcpProxy(to))


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """One server; ``NatsServer(..., sync_always=True)`` is one that has on disk what it acknowledges."""
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Three servers that are one; ``nats_cluster.leader_of("phase-bus").kill()`` and the like."""
    with NatsCluster(tmp_path / "nats") as cluster:
        yield cluster
