"""ZeroMQ sockets: the quickest way to send and receive a frame, a DEALER to the bus, binding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import if_nameindex
from typing import Any

import zmq
from msgspec.structs import replace

from phase_bus.core.address import FORMS, Address
from phase_bus.core.files import set_mode
from phase_bus.core.keys import Key
from phase_bus.errors import AddressError

_HANDSHAKE_MS = 2000

_Socket: Any = zmq.Socket
with suppress(ImportError):  # it is not part of pyzmq's public interface
    # What the methods of zmq.Socket call after a look at options that nobody gives: half of their time.
    from zmq.backend import Socket as _Backend

    _Socket = _Backend

send: Callable[[zmq.Socket[bytes], bytes | zmq.Frame, int], object] = _Socket.send
recv: Callable[[zmq.Socket[bytes], int, bool], zmq.Frame] = _Socket.recv
recv_bytes: Callable[[zmq.Socket[bytes], int], bytes] = _Socket.recv
getsockopt: Callable[[zmq.Socket[bytes], int], int] = _Socket.get


def dealer(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: str,
    *,
    key: Key | None = None,
    immediate: bool = True,
    reconnect_ms: int = 100,
    reconnect_max_ms: int = 1000,
    connected: bool = True,
) -> zmq.Socket[bytes]:
    """Return a DEALER that connects to a bus, now or when there is one.

    Args:
        key: what to show to a bus that asks for it.
        immediate: queue nothing for a bus that is not there: sending raises :class:`zmq.Again` instead.
        reconnect_ms: how long to wait before connecting anew, in ms; doubled each time ...
        reconnect_max_ms: ... up to this; 0 for no doubling.
        connected: whether to connect it; else the caller does.

    Raises:
        AddressError: if there can be no more sockets, or the endpoint is malformed.
    """
    try:
        sock = context.socket(zmq.DEALER)
    except zmq.ZMQError as error:
        raise AddressError(endpoint, f"no socket: {error}", "close other files") from None
    try:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IMMEDIATE, int(immediate))
        sock.setsockopt(zmq.RECONNECT_IVL, reconnect_ms)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, reconnect_max_ms)
        if connected:
            connect(sock, endpoint, key)
    except BaseException:
        sock.close(linger=0)
        raise
    return sock


def queue(sock: zmq.Socket[bytes], message: bytes) -> bool:
    """Queue a message for a bus; return whether there is a connection to take it, now or later.

    ZeroMQ may have given up the connection for good, after a handshake that failed: to wait until the
    message can be sent would never end. Another socket may have better luck.
    """
    try:
        sock.send(message, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


def connect(sock: zmq.Socket[bytes], endpoint: str, key: Key | None = None) -> None:
    """Connect a socket, now or when there is something to connect to; over tcp with a key, if there is one.

    Raises:
        AddressError: if the endpoint is malformed.
    """
    _allow_ipv6(sock, endpoint)
    if key is not None and endpoint.startswith("tcp://"):
        # A bus that does not let us in says nothing; we may be authorized by the next try.
        sock.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        sock.setsockopt(zmq.CURVE_SERVERKEY, key.bus.encode())
        sock.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode())
        sock.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode())
    try:
        sock.connect(endpoint)
    except zmq.ZMQError as error:
        raise AddressError(endpoint, f"cannot be connected to: {error}", FORMS) from None


def bind(sock: zmq.Socket[bytes], address: Address, endpoint: str) -> Address:
    """Bind a socket; return the address with the TCP port it got, and with an interface's own address.

    Raises:
        AddressError: if the endpoint is in use, or cannot be bound.
    """
    _allow_ipv6(sock, endpoint)
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        in_use = error.errno == zmq.EADDRINUSE
        raise AddressError(
            str(address),
            "is in use" if in_use else f"cannot be bound: {error}",
            "choose another port, or end what uses it" if in_use else "give an address of this machine",
        ) from None
    if address.scheme == "ipc":
        _let_in(address, endpoint)
        return address
    host, _, port = sock.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://").rpartition(":")
    # To ZeroMQ the name of an interface is where to bind; to a client it would be that of a host.
    interfaces = [name for _, name in if_nameindex()]
    return replace(address, host=host if address.host in interfaces else address.host, port=int(port))


def _let_in(address: Address, endpoint: str) -> None:
    """Let the owner connect to a Unix socket, or its group if the address says so, whatever the umask."""
    path = Path(endpoint.removeprefix("ipc://"))
    try:
        set_mode(path, 0o660 if address.shared else 0o600)
    except FileNotFoundError:
        pass  # a cleaner has just removed it, which the bus will notice
    except OSError as error:
        raise AddressError(
            str(address), f"cannot be bound: {error}", "choose a directory of its own for the bus"
        ) from None


def _allow_ipv6(sock: zmq.Socket[bytes], endpoint: str) -> None:
    # Only for such an address: with it a name would mean its IPv6 address, where a bus need not listen.
    if endpoint.startswith("tcp://["):
        sock.setsockopt(zmq.IPV6, 1)
