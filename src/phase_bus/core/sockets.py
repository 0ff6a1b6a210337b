"""ZeroMQ sockets: the quickest way to send and receive a frame, and a DEALER to the bus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import zmq

_Socket = zmq.Socket[bytes]
send: Callable[[_Socket, bytes | zmq.Frame, int], object]
recv: Callable[[_Socket, int, bool], zmq.Frame]
recv_bytes: Callable[[_Socket, int], bytes]
getsockopt: Callable[[_Socket, int], int]

try:
    # What the methods of zmq.Socket call after a look at options that nobody gives: half of their time.
    from zmq.backend import Socket as _Backend

    send, recv, recv_bytes = _Backend.send, cast("Any", _Backend.recv), cast("Any", _Backend.recv)
    getsockopt = cast("Any", _Backend.get)
except (ImportError, AttributeError):  # not part of pyzmq's public interface
    send, recv, recv_bytes = zmq.Socket.send, cast("Any", zmq.Socket.recv), cast("Any", zmq.Socket.recv)
    getsockopt = cast("Any", zmq.Socket.get)


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
        context: the ZeroMQ context.
        endpoint: the socket of the bus.
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
