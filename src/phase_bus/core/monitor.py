"""What ZeroMQ tells of a socket's connections: who came, whose handshake failed, who is gone."""

from __future__ import annotations

import struct
import uuid

import zmq

from phase_bus.core.sockets import getsockopt, recv_bytes

_EVENT = struct.Struct("=HI")  # number and value, as zmq_socket_monitor(3) has them
_EVENTS, _POLLIN, _NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)


class Monitor:
    """Reads the events of a socket. Close it before the socket; no other thread may use that meanwhile.

    Args:
        watched: the numbers of the events, as one.

    Attributes:
        descriptor: readable when something has happened since :meth:`read` returned None.
    """

    def __init__(self, sock: zmq.Socket[bytes], watched: int) -> None:
        at = f"inproc://monitor-{uuid.uuid4().hex}"
        self._socket = sock
        self._socket.monitor(at, watched)
        self._events: zmq.Socket[bytes] = sock.context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 0)  # else ZeroMQ would wait for us, and all clients with it
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.connect(at)
        self.descriptor: int = self._events.fileno()

    def read(self) -> tuple[int, int] | None:
        """Return the number and the value of the next event, None if there is none."""
        if not getsockopt(self._events, _EVENTS) & _POLLIN:
            return None
        event, value = _EVENT.unpack(recv_bytes(self._events, _NOBLOCK))
        recv_bytes(self._events, _NOBLOCK)  # the endpoint
        return event, value

    def close(self) -> None:
        """Stop reading."""
        self._socket.disable_monitor()  # first: it would wait for ever for somebody who listens
        self._events.close()
