"""Processes that a test starts, kills and starts again; a bus is one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, Self

from phase_bus.testing.waiting import DEADLINE_S, wait_until

_READY = "bus ready at "


class PythonProcess:
    """A Python process that can be killed and started again; its output goes to a file.

    As a context manager it is started, and killed at the end. ``under`` is a command that runs it in its
    turn, as ``strace`` does.

    Attributes:
        environment: the variables that it has and this process has not.
    """

    def __init__(
        self, log: Path, *arguments: str, cwd: Path | None = None, under: tuple[str, ...] = ()
    ) -> None:
        self.log = log
        self.arguments = arguments
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._cwd, self._under = cwd, under

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process as it was started last."""
        assert self._process is not None, "it was not started"
        return self._process

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def whole_environment(self) -> dict[str, str]:
        """All variables that it is started with."""
        return {**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._under, sys.executable, *self.arguments],
                cwd=self._cwd,
                env=self.whole_environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it by SIGKILL, if it is still there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)

    def terminate(self) -> int:
        """End it by SIGTERM; return its exit code."""
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def tail(self) -> str:
        """Return the end of its output."""
        return f"{self.log.name}:\n" + "\n".join(self.log.read_text().splitlines()[-40:])


class BusProcess(PythonProcess):
    """``phase-bus bus`` as a process; it keeps its addresses when it is started again.

    A port 0 takes a free one at the first start; ``options`` are more of the command's.
    """

    def __init__(
        self,
        log: Path,
        *addresses: str,
        options: tuple[str, ...] = (),
        cwd: Path | None = None,
        under: tuple[str, ...] = (),
    ) -> None:
        super().__init__(log, cwd=cwd, under=under)
        self.addresses = addresses
        self._options = options

    @property
    def address(self) -> str:
        """Its first address."""
        return self.addresses[0]

    def start(self) -> None:
        """Start it, and wait until it is bound.

        Raises:
            AssertionError: it ended, or is not bound in time; its output is the message.
        """
        places = [part for address in self.addresses for part in ("--address", address)]
        self.arguments = ("-m", "phase_bus", "bus", *places, *self._options)
        said = self.log.stat().st_size if self.log.exists() else 0
        super().start()
        line = wait_until(lambda: self._ready_line(said))
        self.addresses = tuple(line.split(";")[0].removeprefix(_READY).split(" and "))

    def _ready_line(self, said: int) -> str | Literal[False]:
        ended = not self.runs
        lines = self.log.read_bytes()[said:].decode().splitlines(keepends=True)
        for line in lines:
            if line.startswith(_READY) and line.endswith("\n"):
                return line
        assert not ended, f"the bus did not start: {self.tail()}"
        return False
