"""Real processes for end-to-end tests: a mock LLM server, real AIPerf, `phase-bus exec` around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MARK = "PHASE_BUS_TEST_MARK"


@dataclass
class Finished:
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


class Workplace:
    """A directory of its own, and every process started in it, so that none is left behind.

    Attributes:
        started: the commands that were started, also those that have ended.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command, its output in files beside it."""
        number = len(self.started)
        out = (self.directory / f"{number}.out").open("w")
        err = (self.directory / f"{number}.err").open("w")
        given = {k: v for k, v in os.environ.items() if not k.startswith("PHASE_BUS")}
        process = subprocess.Popen(
            arguments,
            cwd=self.directory,
            env={
                **given,
                "XDG_STATE_HOME": str(self.directory / "state"),
                "XDG_CONFIG_HOME": str(self.directory / "config"),
                MARK: self.mark,
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )
        out.close()
        err.close()
        self.started.append(process)
        return process

    def phase_bus(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start ``phase-bus``."""
        return self.start(sys.executable, "-m", "phase_bus", *arguments, **environment)

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 90.0) -> Finished:
        """Wait for a command and return what it said."""
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            number = self.started.index(process)
            said = (self.directory / f"{number}.err").read_text()
            pytest.fail(f"{process.args!r} did not end within {timeout_s} s; it said:\n{said[-4000:]}")
        return Finished(process.returncode, self.stdout(process), self.stderr(process))

    def run(self, *arguments: str, timeout_s: float = 90.0, **environment: str) -> Finished:
        """Run ``phase-bus`` to its end."""
        return self.finish(self.phase_bus(*arguments, **environment), timeout_s)

    def stdout(self, process: subprocess.Popen[str]) -> str:
        """Return what a command wrote to standard output so far."""
        return (self.directory / f"{self.started.index(process)}.out").read_text()

    def stderr(self, process: subprocess.Popen[str]) -> str:
        """Return what a command wrote to standard error so far."""
        return (self.directory / f"{self.started.index(process)}.err").read_text()

    def json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return json.loads((self.directory / name).read_text())

    def left(self) -> list[psutil.Process]:
        """Return the living processes that were started here, or by those that were."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close(self) -> list[str]:
        """End what is left; return the command lines of what should not have been."""
        deadline_s = time.monotonic() + 5.0
        while (left := self.left()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        names = []
        for process in left:
            try:
                names.append(" ".join(process.cmdline()))
                process.kill()
            except psutil.Error:
                continue
        for started in self.started:
            started.wait()
        return names


def child_of(process_id: int, *words: str) -> psutil.Process:
    """Return the one child process, of those that live, whose command line has these words in a row."""
    found = []
    for child in psutil.Process(process_id).children():
        with suppress(psutil.NoSuchProcess):  # it has just ended; a zombie is one of those
            if " ".join(words) in " ".join(child.cmdline()):
                found.append(child)
    (only,) = found
    return only


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Return the condition's value as soon as it is true.

    Raises:
        AssertionError: if it is not true by the deadline.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s in vain for {what}"
        time.sleep(0.02)
    return value


def interrupt(process: subprocess.Popen[str], signum: int = signal.SIGINT) -> None:
    """Send a signal to one process alone."""
    os.kill(process.pid, signum)


def json_lines(text: str) -> Sequence[dict[str, Any]]:
    """Return the objects of a text of JSON lines."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def complaints(stderr: str) -> list[str]:
    """Return the lines of what a command said, but that it came onto the bus: who did says so first."""
    return [line for line in stderr.splitlines() if "connected to the bus" not in line]


def assert_one_line(returncode: int, stderr: str, *words: str) -> None:
    """See that a command failed as it should."""
    assert returncode == 2, stderr
    (line,) = complaints(stderr)
    assert line.startswith("phase-bus: ")
    assert "Traceback" not in line
    for word in words:
        assert word in line, line
