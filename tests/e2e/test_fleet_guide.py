"""docs/guide/fleet.md: a reader types it in from top to bottom, with a real NATS server."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pages import Page, moved, words
from tests.support.servers.process import free_port
from tests.support.workplace import Workplace, wait_for

PAGE = Page("docs/guide/fleet.md")
# What stays until the reader ends it, and what shows that it is up.
STAYS = {"nats-server": "Server is ready", "bus": "bus ready", "consume": ""}
NATS_SERVER = str(Path(sys.executable).with_name("nats-server"))


class Reader:
    """Who types in a page's commands, each until it succeeds: what is forwarded arrives a moment later."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self.place = {"ipc:///tmp": f"ipc://{workplace.directory}", "4222": str(free_port())}
        self.environment: dict[str, str] = {}
        self.staying: list[subprocess.Popen[str]] = []

    def address(self, text: str) -> str:
        """Return the test's own address for one of the page."""
        return moved(text, self.place)

    def type_in(self, command: str) -> None:
        """Do what a line says."""
        if found := re.fullmatch(r"export (\w+)=(\S+)", command):
            self.environment[found[1]] = self.address(found[2])
            return
        line = [NATS_SERVER if word == "nats-server" else word for word in words(self.address(command))]
        stays = STAYS.get(command.split()[0], STAYS.get(command.split()[1]))
        if stays is None:
            self.until_it_succeeds(*line)
            return
        process = self._workplace.start(*line, **self.environment)
        self.staying.append(process)
        wait_for(lambda: stays in self._said(process), command)

    def until_it_succeeds(self, *line: str) -> str:
        """Run a command again and again; return what it said in the end."""
        done: list[Any] = []

        def succeeds() -> bool:
            done[:] = [self._workplace.finish(self._workplace.start(*line, **self.environment))]
            return bool(done[0].returncode == 0)

        try:
            wait_for(succeeds, " ".join(line))
        except AssertionError as error:
            raise AssertionError(done[0].stderr, *map(self._said, self.staying)) from error
        return str(done[0].stdout)

    def ask(self, command: str) -> Any:
        """Return what a command says in JSON."""
        return json.loads(self.until_it_succeeds(*words(self.address(command))))

    def _said(self, process: subprocess.Popen[str]) -> str:
        return self._workplace.stdout(process) + self._workplace.stderr(process)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_guide(workplace: Workplace) -> None:
    """Its commands succeed; then NATS is away for a run, which arrives complete afterwards."""
    reader = Reader(workplace)
    for name, content in PAGE.files().items():
        (workplace.directory / name).write_text(reader.address(content))
    pip, *commands = PAGE.commands()
    assert pip.startswith("pip install ")
    for command in commands:
        reader.type_in(command)

    server = reader.staying.pop(0)
    server.kill()
    server.wait()
    quiet = f"{reader.address('ipc:///tmp/host-a')}"
    away = workplace.run(
        "simulate", "--requests", "500", "--rate", "0", "--label", "away", "--address", quiet
    )
    assert away.returncode == 0, away.stderr
    reader.type_in(next(command for command in commands if command.startswith("nats-server")))
    reader.staying.insert(0, reader.staying.pop())  # it ends last
    for label, host in (("a", "host-a"), ("b", "host-b"), ("away", "host-a")):
        report = f"phase-bus report {label} --format json --address "
        here = reader.ask(report + f"ipc:///tmp/{host}")
        there = reader.ask(report + "nats://127.0.0.1:4222")
        assert without_place(there) == without_place(here)
    for process in reversed(reader.staying):
        process.send_signal(signal.SIGTERM)
        done = workplace.finish(process)
        assert done.returncode == 0 or process.args[0] == NATS_SERVER, done.stderr  # type: ignore[index]


def without_place(report: Any) -> Any:
    """Return a report without what names where it was read."""
    return {key: value for key, value in report.items() if key != "journal"}


def test_what_it_names_is_there() -> None:
    """Files of deploy/, and the program that its package carries."""
    root = PAGE.path.parents[2]
    for path in re.findall(r"`(deploy/[\w/.@-]+)`", PAGE.text):
        assert (root / path).exists(), path
    for name in re.findall(r"^\| `([\w-]+\.yaml)`", PAGE.text, re.MULTILINE):
        assert (root / "deploy" / "kubernetes" / name).exists(), name
    assert shutil.which(NATS_SERVER)
