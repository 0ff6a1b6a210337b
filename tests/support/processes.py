"""Processes that are killed and started again, and connections that are cut."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from phase_bus.testing.process import BusProcess, PythonProcess
from phase_bus.testing.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]


class Killable(PythonProcess):
    """A Python process that finds the tests' own modules.

    Args:
        log: where its output goes.
        arguments: those of ``python``.
    """

    def __init__(self, log: Path, *arguments: str) -> None:
        super().__init__(log, *arguments, cwd=ROOT)


class JournaledBus(BusProcess):
    """A bus process with a journal in a directory, started at once.

    Args:
        directory: where its journal and its output are.
        addresses: where it is; port 0 takes a free one at the first start.
        options: more of ``phase-bus bus``.
        under: a command that runs it.
    """

    def __init__(
        self, directory: Path, *addresses: str, options: tuple[str, ...] = (), under: tuple[str, ...] = ()
    ) -> None:
        self.directory = directory / "journal"
        journaled = ("--heartbeat-s", "0.2", "--data", str(self.directory), *options)
        super().__init__(directory / "bus.log", *addresses, options=journaled, under=under)
        self.start()


def consumer(directory: Path, kind: str, address: str, *settings: str, name: str = "") -> Killable:
    """Return a process of ``phase-bus consume``, not started yet."""
    name = name or kind.rpartition(":")[2].lower()
    options = [part for setting in settings for part in ("--set", setting)]
    return Killable(
        directory / f"{name}.log",
        "-m", "phase_bus", "consume", kind, "--name", name, "--address", address, *options,
    )  # fmt: skip


class Forwarder:
    """Stands between a client and a TCP port, and can cut all connections.

    Args:
        port: where to forward to, on 127.0.0.1.
        host: where it listens.
        at: on which port; by default any.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", at: int = 0) -> None:
        self._to = port
        self._host = host
        self.port = at
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.cut()

    def open(self) -> None:
        """Listen, on the same port as before."""
        self._stop = threading.Event()
        listener = socket.create_server((self._host, self.port), reuse_port=False)
        self.port = listener.getsockname()[1]
        self._start(self._accept, listener, self._stop)

    def cut(self) -> None:
        """Close everything; what was on its way is lost."""
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._threads.clear()

    def _start(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, stop: threading.Event) -> None:
        with listener:
            while not stop.is_set():
                if not select.select([listener], [], [], 0.02)[0]:
                    continue
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._to), 1.0)
                except OSError:
                    client.close()
                    continue
                self._start(self._pump, client, server, stop)

    def _pump(self, client: socket.socket, server: socket.socket, stop: threading.Event) -> None:
        other = {client: server, server: client}
        with client, server, suppress(OSError):
            while not stop.is_set():
                for ready in select.select([client, server], [], [], 0.02)[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    other[ready].sendall(data)
