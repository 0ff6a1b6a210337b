"""Real NATS servers with JetStream: one, or a cluster of three."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from phase_bus.testing.waiting import wait_until
from tests.support.servers.process import HOST, ServerProcess, free_port, request

_SERVERS = 3
_TRIES = 3


class NatsServer(ServerProcess):
    """A NATS server; what it acknowledged is there again after ``kill()`` and ``start()``.

    Args:
        directory: where its streams are.
        sync_always: whether it has written to the disk what it acknowledges; two minutes later otherwise.
        room: how much it may store, such as "20KB"; any amount by default.
        options: more of its configuration file, such as users or TLS.
        cluster: the ports of all routes of the cluster, its own first.
        under: a command that runs it, as strace does.

    Attributes:
        monitor_port: of its monitoring, over HTTP.
    """

    scheme = "nats"

    def __init__(
        self,
        directory: Path,
        *,
        sync_always: bool = False,
        room: str = "",
        options: str = "",
        cluster: tuple[int, ...] = (),
        under: tuple[str, ...] = (),
    ) -> None:
        super().__init__(directory)
        self.monitor_port = 0
        self._sync = "always" if sync_always else '"2m"'  # without quotes, m is a million
        self._room = room
        self._options = options
        self._cluster = cluster
        self._under = under

    @property
    def name(self) -> str:
        """What it is called in the cluster."""
        return self.directory.name

    @property
    def monitor_url(self) -> str:
        """Where it says how it is."""
        return f"http://{HOST}:{self.monitor_port}"

    def pause(self) -> None:
        """Stop it by SIGSTOP, and wait until all of it stands; ``kill()`` ends it nevertheless."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        threads = Path(f"/proc/{self._process.pid}/task")
        if threads.exists():  # elsewhere than on Linux nobody tells
            wait_until(lambda: all(_stands(each) for each in threads.iterdir()))

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def ask(self, path: str) -> Any:
        """Return what its monitoring says at "/jsz", "/varz" and the like."""
        status, answer = request("GET", self.monitor_url + path)
        assert status == 200, answer
        return answer

    def last_offset(self, stream: str = "phase-bus") -> int:
        """Return the offset of the last event of a stream that this server has, 0 if it has none."""
        return next((int(detail["state"]["last_seq"]) for detail in self._streams(stream)), 0)

    def leads(self, stream: str) -> bool:
        """Return whether it leads a stream of a cluster."""
        return any(detail.get("cluster", {}).get("leader") == self.name for detail in self._streams(stream))

    def _streams(self, name: str) -> list[dict[str, Any]]:
        try:
            accounts = self.ask("/jsz?streams=true").get("account_details") or []
        except (OSError, AssertionError):
            return []
        details = (detail for account in accounts for detail in account.get("stream_detail") or [])
        return [detail for detail in details if detail["name"] == name]

    def command(self) -> list[str]:
        if not self.monitor_port:
            self.monitor_port = free_port()
        path = self.directory / "nats.conf"
        path.write_text(self._configuration())
        return [*self._under, str(Path(sys.executable).with_name("nats-server")), "--config", str(path)]

    def answers(self) -> bool:
        # In a cluster JetStream is well only when all know their leader.
        path = "/healthz?js-server-only=true" if self._cluster else "/healthz"
        return request("GET", self.monitor_url + path)[0] == 200

    def _configuration(self) -> str:
        store = json.dumps(str(self.directory / "data"))
        room = f", max_file_store: {self._room}" if self._room else ""
        lines = [
            f"server_name: {json.dumps(self.name)}",
            f'listen: "{HOST}:{self.port}"',
            f'http: "{HOST}:{self.monitor_port}"',
            f"jetstream: {{store_dir: {store}, sync_interval: {self._sync}{room}}}",
        ]
        if self._cluster:
            own, *others = self._cluster
            routes = ", ".join(f'"nats://{HOST}:{port}"' for port in others)
            lines.append(f'cluster: {{name: test, listen: "{HOST}:{own}", routes: [{routes}]}}')
        return "\n".join((*lines, self._options, ""))

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def _stands(thread: Path) -> bool:
    with suppress(OSError):  # it has just ended
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    return True


class NatsCluster:
    """Three NATS servers that keep streams together.

    As a context manager all are started, and killed at the end.

    Args:
        directory: where their data is.
        sync_always, options: of each server.

    Attributes:
        servers: all three.
    """

    def __init__(self, directory: Path, *, sync_always: bool = False, options: str = "") -> None:
        self._directory = directory
        self._sync_always = sync_always
        self._options = options
        self.servers: list[NatsServer] = []

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """All three as one address."""
        return "nats://" + ",".join(f"{HOST}:{server.port}" for server in self.servers)

    @property
    def runs(self) -> bool:
        """Whether all processes are there."""
        return all(server.runs for server in self.servers)

    def kill(self) -> None:
        """End all of them at once, by SIGKILL."""
        for server in self.servers:
            if server.runs:
                server._signal(signal.SIGKILL)
        for server in self.servers:
            server.kill()

    def start(self) -> None:
        """Start those that do not run, and wait until the three are one."""
        for server in self.servers:
            if not server.runs:
                server.start()
        wait_until(lambda: self.meta_leader() is not None, 60)

    def meta_leader(self) -> NatsServer | None:
        """Return the server that leads the cluster, if all that run agree on one."""
        running = [server for server in self.servers if server.runs]
        try:
            said = {server.ask("/jsz").get("meta_cluster", {}).get("leader") for server in running}
        except (OSError, AssertionError):
            return None
        return next((server for server in running if said == {server.name}), None)

    def leader_of(self, stream: str = "phase-bus") -> NatsServer:
        """Return the server that leads a stream, as soon as there is one."""
        found: list[NatsServer] = []

        def look() -> bool:
            found[:] = [server for server in self.servers if server.runs and server.leads(stream)]
            return len(found) == 1

        wait_until(look, 60)
        return found[0]

    def _begin(self) -> None:
        # The servers have to know each other's ports before they are theirs, so somebody may be faster.
        for last in (False,) * (_TRIES - 1) + (True,):
            ports = [free_port() for _ in range(_SERVERS)]
            self.servers = [
                NatsServer(
                    self._directory / f"n{index}",
                    sync_always=self._sync_always,
                    options=self._options,
                    cluster=(*ports[index:], *ports[:index]),
                )
                for index in range(_SERVERS)
            ]
            try:
                return self.start()
            except AssertionError:
                self.kill()
                if last:
                    raise
        return None
