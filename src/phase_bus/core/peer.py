"""Who is at the other end of a connection, as ZeroMQ says it with each message, or the system."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import zmq

_OF_UNIX_SOCKET = "localhost"  # as ZeroMQ calls the host: it is never a TCP peer's, which has an address


class Peer(NamedTuple):
    """Where somebody is: at the address of a host, or a process of a user of this machine."""

    host: str = ""
    uid: int | None = None
    pid: int | None = None

    def __str__(self) -> str:
        """Return it in words, empty if it is not known."""
        return self.host if self.uid is None else f"pid {self.pid} of uid {self.uid}"


def peer_of(frame: zmq.Frame) -> Peer:
    """Return where a message came from; nowhere if that is not known."""
    return _parsed(property_of(frame, "Peer-Address"))


@lru_cache(maxsize=256)  # each message of a connection has the same
def _parsed(address: str) -> Peer:
    host, *ids = address.split(":")
    if host == _OF_UNIX_SOCKET and len(ids) == 3:
        uid, _, pid = map(int, ids)
        return Peer(uid=uid, pid=pid)
    return Peer(":".join((host, *ids)))


def property_of(frame: zmq.Frame, name: str) -> str:
    """Return what ZeroMQ knows of a message by a name, empty if it knows nothing."""
    try:
        return str(cast("Any", frame).get(name))  # its annotation knows of numbers only
    except zmq.ZMQError:
        return ""
