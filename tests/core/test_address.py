"""Addresses: what users write, and the endpoints they mean."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from phase_bus.core import sockets
from phase_bus.core.address import Address, StreamAddress, default_address, parse_any
from phase_bus.core.control import Endpoint
from phase_bus.errors import AddressError


@pytest.mark.parametrize(
    "text",
    [
        "ipc:///tmp/x",
        "tcp://127.0.0.1:5555",
        "tcp://*:0",
        "tcp://[::1]:80",
        "tcp://[fe80::1%eth0]:80",
        "tcp://0.0.0.0:80",
        "ipc:///tmp/a directory: ü",
        "tcp://my-host.example:65535",
        "direct+tcp://127.0.0.1:0",
        "direct+ipc:///tmp/x",
        "group+ipc:///tmp/x",
        "direct+group+ipc:///tmp/x",
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
        "group+ipc://",
        "group+direct+ipc:///tmp/x",
        "group+group+ipc:///tmp/x",
        "group+tcp://127.0.0.1:1",
        "tcp://",
        "tcp://host",
        "tcp://host:",
        "tcp://:5",
        "tcp://host:65536",
        "tcp://host:-1",
        "tcp://host:²",
        "tcp://ho st:1",
        "tcp://999.1.1.1:5",
        "tcp://0:5",
        "tcp://...:5",
        "tcp://::1:5",
        "tcp://[::1]",
        "tcp://[::1:5",
        "tcp://[1.2.3.4]:5",
        "tcp://[:::]:5",
        "tcp://[fe80::1%e\x1b]:5",
        "tcp://h\u00f6st:5",
        "tcp://h:5 ",
        "ipc:///a\x00b",
        "ipc:///a\x1b[31m",
        "ipc:///a\udcff",
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


@pytest.mark.parametrize(
    ("bound", "connected"),
    [
        ("tcp://*:5", "tcp://127.0.0.1:5"),
        ("tcp://0.0.0.0:5", "tcp://127.0.0.1:5"),
        ("tcp://[::]:5", "tcp://[::1]:5"),
        ("tcp://[0:0::0]:5", "tcp://[::1]:5"),
        ("tcp://[fd00::7]:5", "tcp://[fd00::7]:5"),
        ("direct+tcp://*:5", "direct+tcp://127.0.0.1:5"),
        ("ipc:///tmp/x", "ipc:///tmp/x"),
    ],
)
def test_where_clients_connect_to(bound: str, connected: str) -> None:
    """An address that stands for all of a machine is reached at the one that always means this machine."""
    address = Address.parse(bound)
    assert str(address.connectable()) == connected
    assert address.is_wildcard == (bound != connected)


def test_any_port_is_nowhere_to_connect_to() -> None:
    """A client must know which port it became."""
    with pytest.raises(AddressError, match="port of the bus"):
        Address.parse("tcp://127.0.0.1:0").connectable()


ODD = st.text(st.sampled_from("abc019.:%[]/*~@ -_\\\x00\x1b\u00fc\udcff\n"), max_size=24)


@given(st.sampled_from(["tcp://", "ipc://", "direct+tcp://", "direct+ipc://", "group+ipc://", ""]), ODD)
@example("tcp://", "*:0")
@example("tcp://", "[::1%lo]:0")
@example("tcp://", "[fe80::1%nothing]:0")
@example("tcp://", "-:0")
@example("tcp://", "lo:0")
@settings(deadline=None)
def test_no_address_raises_anything_else(scheme: str, rest: str) -> None:
    """Whatever is written: it works, or an AddressError says why not."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    sock.linger = 0
    try:
        address = Address.parse(f"{scheme}{rest}")
        if address.scheme == "tcp":
            address = sockets.bind(sock, replace(address, port=0), address.endpoint(Endpoint()))
        sockets.dealer(context, address.connectable().control).close(linger=0)
    except AddressError:
        pass
    finally:
        context.destroy(linger=0)


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


@pytest.mark.parametrize(
    ("address", "only_here"),
    [
        ("ipc:///tmp/x", True),
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("tcp://LocalHost:1", True),
        ("tcp://lo:1", True),
        ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://128.0.0.1:1", False),
        ("tcp://[fe80::1%lo]:1", False),
        ("tcp://eth0:1", False),
        ("tcp://localhost.example:1", False),
        ("tcp://127.0.0.1.example:1", False),
    ],
)
def test_what_only_this_machine_can_connect_to(address: str, only_here: bool) -> None:
    """When in doubt, others can."""
    assert Address.parse(address).is_loopback is only_here


@pytest.mark.parametrize(
    ("text", "servers", "stream", "shown"),
    [
        ("nats://a", ("a:4222",), "phase-bus", "nats://a:4222"),
        ("nats://a:1,b,[::1]:7/x_1", ("a:1", "b:4222", "[::1]:7"), "x_1", "nats://a:1,b:4222,[::1]:7/x_1"),
        ("tls://10.0.0.1:4222/phase-bus", ("10.0.0.1:4222",), "phase-bus", "tls://10.0.0.1:4222"),
    ],
)
def test_addresses_of_nats(text: str, servers: tuple[str, ...], stream: str, shown: str) -> None:
    """Servers with commas between them, and the stream's name; it is shown as it can be typed."""
    address = parse_any(text)
    assert isinstance(address, StreamAddress)
    assert (address.servers, address.stream, str(address)) == (servers, stream, shown)
    assert parse_any(shown) == address


@pytest.mark.parametrize(
    "text",
    ["nats://", "nats://a:0", "nats://a:x", "nats://*:4222", "nats://a,,b", "nats://a/x.y"],
)
def test_what_is_no_address_of_nats(text: str) -> None:
    """It is told what is wrong, in one line."""
    with pytest.raises(AddressError) as raised:
        parse_any(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["nats://me:s3cret@host", "tls://s3cret@host:4222", "nats://a:s3@cret@b/x"]
)
def test_no_user_in_an_address_of_nats(text: str) -> None:
    """Addresses show up in process lists and errors; the error does not repeat what is a secret."""
    with pytest.raises(AddressError, match="NATS_USER and NATS_PASSWORD") as raised:
        parse_any(text)
    assert not re.search("s3|cret", str(raised.value))
