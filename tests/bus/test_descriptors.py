"""As many clients as the system lets a bus have, or as it wants; more are turned away, and that is told."""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from phase_bus.bus.connections import cut
from phase_bus.bus.options import BusOptions
from phase_bus.core.address import Address
from phase_bus.core.control import RejectionInfo, Status, Welcome
from phase_bus.core.session import introduce
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread
from tests.support.clients import RawClient

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"

pytestmark = pytest.mark.usefixtures("no_leaks")


def limited(tmp_path: Path, address: str, soft: int, hard: int) -> BusProcess:
    """A bus that has limits of its descriptors."""
    script = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    options = ("--no-journal", "--heartbeat-s", "0.1")
    return BusProcess(tmp_path / "bus.log", address, options=options, under=("bash", "-c", script, "bash"))


def greet(client: RawClient) -> None:
    """Have a client welcomed."""
    assert isinstance(client.ask(introduce(uuid.uuid4().hex, "client", "one of many")), Welcome)


def rejected(status: Status, reason: str) -> RejectionInfo:
    """Return what was refused for a reason."""
    found = [each for each in status.rejected if each.reason == reason]
    return found[0] if found else RejectionInfo(reason=reason)


def test_a_low_limit_is_raised(ipc_dir: Path, tmp_path: Path) -> None:
    """To the one that the system allows: that of a shell is often made for one file at a time."""
    with limited(tmp_path, f"ipc://{ipc_dir}", 64, 512) as bus, ExitStack() as stack:
        for _ in range(100):
            greet(stack.enter_context(RawClient(bus.address)))
        assert "file descriptors" not in bus.log.read_text()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_more_clients_than_descriptors(scheme: str, ipc_dir: Path, tmp_path: Path) -> None:
    """Those who are in are served, the others as soon as some have gone; nothing spins."""
    address = f"ipc://{ipc_dir}" if scheme == "ipc" else "tcp://127.0.0.1:0"
    with limited(tmp_path, address, 200, 200) as bus, RawClient(bus.address) as first:
        greet(first)
        process = psutil.Process(bus.pid)
        with ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(RawClient(bus.address))
                time.sleep(0.005)
            told = r"1\d\d of 200 file descriptors .*'ulimit -n'"
            wait_until(lambda: re.search(told, bus.log.read_text()))
            before_s, began_s = sum(process.cpu_times()[:2]), time.monotonic()
            while time.monotonic() < began_s + 1.0:
                greet(first)
                assert process.num_fds() < 200
                time.sleep(0.05)
            assert sum(process.cpu_times()[:2]) - before_s < 0.5
            assert rejected(first.status(), "connections").count
        with RawClient(bus.address) as later:
            greet(later)
        assert bus.log.read_text().count("file descriptors") == 1


def test_more_clients_than_the_bus_wants(caplog: pytest.LogCaptureFixture) -> None:
    """The newest are turned away; when one leaves there is room for another."""
    options = BusOptions(heartbeat_s=0.1, max_connections=3)
    with ExitStack() as stack, BusThread("tcp://127.0.0.1:0", options=options) as small:
        first, *others = [stack.enter_context(RawClient(small.address)) for _ in range(3)]
        for client in (first, *others):
            greet(client)
        assert first.status().connections == 3
        with RawClient(small.address) as fourth:
            wait_until(lambda: rejected(first.status(), "connections").count)
            assert first.status().connections <= 4
            fourth.socket.send(b"waits")
            others[0].socket.close()
            wait_until(lambda: rejected(first.status(), "malformed").count)  # it came in
        told = rejected(first.status(), "connections")
        assert told.last_from == "127.0.0.1"
    assert caplog.text.count("there are 3 connections") == 1


@pytest.mark.parametrize(
    "words", [b"", _SIGNATURE, _SIGNATURE + b"\x03\x00SSH" + bytes(49)], ids=["nothing", "half", "nonsense"]
)
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_who_does_not_introduce_itself(scheme: str, words: bytes, ipc_dir: Path) -> None:
    """Nothing, half a greeting, and one that makes no sense: each is a failed handshake, and ended."""
    address = f"ipc://{ipc_dir}" if scheme == "ipc" else "tcp://127.0.0.1:0"
    options = BusOptions(heartbeat_s=0.1, handshake_s=1.0)
    with BusThread(address, options=options) as bus, RawClient(bus.address) as client:
        greet(client)
        parsed = Address.parse(bus.address)
        family = socket.AF_UNIX if scheme == "ipc" else socket.AF_INET
        where = f"{ipc_dir}/control.ipc" if scheme == "ipc" else (parsed.host, parsed.port)
        with socket.socket(family) as stranger:
            stranger.connect(where)
            stranger.send(words)
            stranger.settimeout(10.0)
            while stranger.recv(100):
                pass
        wait_until(lambda: rejected(client.status(), "handshake").count)
        told = rejected(client.status(), "handshake")
        assert told.count == 1
        known = r"127\.0\.0\.1" if scheme == "tcp" else r"pid \d+ of uid \d+"
        gone_at_once = words.endswith(b"\0")  # before it is seen where from
        assert re.fullmatch(known, told.last_from) or gone_at_once
        assert client.status().connections == 1


def test_who_leaves_is_no_stranger(bus: BusThread) -> None:
    with RawClient(bus.address) as first:
        for _ in range(5):
            with RawClient(bus.address) as client:
                greet(client)
        wait_until(lambda: first.status().connections == 1)
        assert not first.status().rejected


def test_a_connection_is_cut() -> None:
    """If it still is the same one."""
    mine, other = socket.socketpair()
    with mine, other:
        other.setblocking(False)
        inode = os.fstat(mine.fileno()).st_ino
        cut(mine.fileno(), inode + 1)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        cut(mine.fileno(), inode)
        assert other.recv(1) == b""
        cut(mine.fileno(), inode)  # once more does no harm
        descriptor = mine.fileno()
    cut(descriptor, inode)
    cut(-1, 0)
