"""A server's own program as a process on a port of 127.0.0.1, which can be killed and started again."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import urllib.request
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from phase_bus.testing.waiting import wait_until

HOST = "127.0.0.1"
_TRIES = 5


def free_port() -> int:
    """Return a free port that no outgoing connection is given, so that a killed server gets it back.

    (A client that tries a port of that range again and again can even come to be connected to itself.)
    """
    while True:
        port = random.randrange(12_000, 32_000)
        with suppress(OSError), socket.create_server((HOST, port)):
            return port


class ServerProcess(ABC):
    """A server that is a program.

    As a context manager it is started, and killed at the end.

    Args:
        directory: where its data and its output are.

    Attributes:
        port: the same for its whole life.
    """

    scheme = "http"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.scheme}://{HOST}:{self.port}"

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it on its port, and wait until it answers.

        Raises:
            AssertionError: it ended, or does not answer in time; its output is the message.
        """
        if self.port:
            return self._launch()
        for last in (False,) * (_TRIES - 1) + (True,):  # somebody else may take a port that was free
            self.port = free_port()
            try:
                return self._launch()
            except AssertionError:
                if last or self.runs:
                    raise
        return None

    def kill(self) -> None:
        """End it by SIGKILL, if it is still there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it is ready; an OSError counts as no."""

    def log(self) -> str:
        """Return the end of its output."""
        return (self.directory / "log").read_text(errors="replace")[-4000:]

    def _launch(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        wait_until(self._is_up)

    def _is_up(self) -> bool:
        assert self.runs, f"it did not start: {self.log()}"
        with suppress(OSError):
            return self.answers()
        return False


def listens(port: int) -> bool:
    """Whether a connection can be made."""
    socket.create_connection((HOST, port), 1.0).close()
    return True


def request(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Ask a server; return the status, and the answer, from JSON where it is that."""
    asked = urllib.request.Request(url, body, headers or {}, method=method)  # noqa: S310 - one of ours
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode(errors="replace")
