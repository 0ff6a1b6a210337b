"""As many clients as the system lets a bus have, and a line in the log when there are more."""

from __future__ import annotations

import re
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest

from phase_bus.core.control import Welcome
from phase_bus.core.session import introduce
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import wait_until
from tests.support.clients import RawClient

pytestmark = pytest.mark.usefixtures("no_leaks")


def limited(tmp_path: Path, address: str, soft: int, hard: int) -> BusProcess:
    """A bus that has limits of its descriptors."""
    script = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    options = ("--no-journal", "--heartbeat-s", "0.1")
    return BusProcess(tmp_path / "bus.log", address, options=options, under=("bash", "-c", script, "bash"))


def greet(client: RawClient) -> None:
    """Have a client welcomed."""
    assert isinstance(client.ask(introduce(uuid.uuid4().hex, "client", "one of many")), Welcome)


def test_a_low_limit_is_raised(ipc_dir: Path, tmp_path: Path) -> None:
    """To the one that the system allows: that of a shell is often made for one file at a time."""
    with limited(tmp_path, f"ipc://{ipc_dir}", 64, 512) as bus, ExitStack() as stack:
        for _ in range(100):
            greet(stack.enter_context(RawClient(bus.address)))
        assert "file descriptors" not in bus.log.read_text()


def test_a_limit_that_is_near_is_told(ipc_dir: Path, tmp_path: Path) -> None:
    """Before it is reached, once, with the remedy; everybody who is in is served."""
    with limited(tmp_path, f"ipc://{ipc_dir}", 80, 80) as bus, ExitStack() as stack:
        clients = []
        for _ in range(66):
            clients.append(stack.enter_context(RawClient(bus.address)))
            greet(clients[-1])
            if len(list(Path(f"/proc/{bus.pid}/fd").iterdir())) >= 68:  # and some are left
                break
        wait_until(lambda: "file descriptors" in bus.log.read_text())
        assert re.search(r"(6[4-9]|7\d) of 80 file descriptors .*'ulimit -n'", bus.log.read_text())
        for client in clients:
            greet(client)
        assert bus.log.read_text().count("file descriptors") == 1


def test_more_clients_than_descriptors(tmp_path: Path) -> None:
    """Those who are in are served, and the others as soon as some have gone."""
    with limited(tmp_path, "tcp://127.0.0.1:0", 80, 80) as bus, RawClient(bus.address) as first:
        greet(first)
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(RawClient(bus.address))
            wait_until(lambda: re.search(r"(all|\d\d of) 80 file descriptors", bus.log.read_text()))
            greet(first)
        with RawClient(bus.address) as later:
            greet(later)
        assert bus.log.read_text().count("file descriptors") == 1
