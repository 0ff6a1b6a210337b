"""Addresses: what users write, and the endpoints they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from phase_bus.core.address import Address, default_address
from phase_bus.core.control import Endpoint
from phase_bus.errors import AddressError


@pytest.mark.parametrize(
    "text",
    [
        "ipc:///tmp/x",
        "tcp://127.0.0.1:5555",
        "tcp://*:0",
        "tcp://[::1]:80",
        "tcp://my-host.example:65535",
        "direct+tcp://127.0.0.1:0",
        "direct+ipc:///tmp/x",
    ],
)
def test_round_trip(text: str) -> None:
    """An address is written as it was read."""
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:5555",
        "http://x:1",
        "ipc://",
        "tcp://",
        "tcp://host",
        "tcp://host:",
        "tcp://:5",
        "tcp://host:65536",
        "tcp://host:-1",
        "tcp://host:²",
        "tcp://ho st:1",
        "direct+",
        "tcp://h:" + "9" * 5000,
        "ipc://~no-such-user-at-all/x",
    ],
)
def test_malformed(text: str) -> None:
    """A malformed address is an AddressError that quotes it."""
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert caught.value.address == text


def test_path_too_long() -> None:
    """A directory too long for a Unix socket is refused, with the number of bytes."""
    with pytest.raises(AddressError, match="too long"):
        Address.parse("ipc:///" + "x" * 100)
    Address.parse("ipc:///" + "x" * 94)


def test_relative_and_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative directory is that of now; ~ is the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert Address.parse("ipc://bus").directory == str(tmp_path / "bus")
    assert Address.parse("ipc://~/bus").directory == "/home/me/bus"


def test_endpoints() -> None:
    """The sockets of an address are files in a directory, or ports of a host."""
    ipc, tcp = Address.parse("ipc:///d"), Address.parse("tcp://h:5")
    assert (ipc.control, ipc.direct_events) == ("ipc:///d/control.ipc", "ipc:///d/events.ipc")
    assert (tcp.control, tcp.direct_events) == ("tcp://h:5", "tcp://h:5")
    endpoint = Endpoint(ipc_name="e.ipc", tcp_port=6)
    assert (ipc.endpoint(endpoint), tcp.endpoint(endpoint)) == ("ipc:///d/e.ipc", "tcp://h:6")


def test_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's address, else the runtime directory, else one of the user's own in /tmp."""
    monkeypatch.setenv("PHASE_BUS_ADDRESS", "tcp://h:1")
    assert default_address() == "tcp://h:1"
    monkeypatch.delenv("PHASE_BUS_ADDRESS")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_address() == "ipc:///run/user/7/phase-bus"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert "phase-bus-" in default_address()
