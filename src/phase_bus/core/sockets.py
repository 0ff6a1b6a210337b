"""ZeroMQ sockets: the quickest way to send and receive a frame, a DEALER to the bus, binding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from phase_bus.core.address import Address
from phase_bus.errors import AddressError

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
    immediate: bool = True,
    reconnect_ms: int = 100,
    reconnect_max_ms: int = 1000,
) -> zmq.Socket[bytes]:
    """Return a DEALER that connects to a bus, now or when there is one.

    Args:
        immediate: queue nothing for a bus that is not there: sending raises :class:`zmq.Again` instead.
        reconnect_ms: how long to wait before connecting anew, in ms; doubled each time ...
        reconnect_max_ms: ... up to this; 0 for no doubling.

    Raises:
        zmq.ZMQError: if there can be no more sockets, or the endpoint is malformed.
    """
    sock = context.socket(zmq.DEALER)
    try:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IMMEDIATE, int(immediate))
        sock.setsockopt(zmq.RECONNECT_IVL, reconnect_ms)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, reconnect_max_ms)
        sock.connect(endpoint)
    except zmq.ZMQError:
        sock.close(linger=0)
        raise
    return sock


def bind(sock: zmq.Socket[bytes], address: Address, endpoint: str) -> int:
    """Bind a socket; return the TCP port it got, 0 for ipc.

    Raises:
        AddressError: if the endpoint is in use, or cannot be bound.
    """
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        in_use = error.errno == zmq.EADDRINUSE
        raise AddressError(
            str(address),
            "is in use" if in_use else f"cannot be bound: {error}",
            "choose another port, or end what uses it" if in_use else "give an address of this machine",
        ) from None
    bound = sock.getsockopt_string(zmq.LAST_ENDPOINT)
    return int(bound.rpartition(":")[2]) if address.scheme == "tcp" else 0
