"""Why a bus does not let a client in: ZeroMQ tries again for ever, and says so on the side only."""

from __future__ import annotations

import struct
import uuid

import zmq

from phase_bus.core.keys import Key

_EVENT = struct.Struct("=HI")  # number and value, as zmq_socket_monitor(3) has them
_WATCHED = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)


class HandshakeWatch:
    """Knows how the last handshake of a socket with a bus went.

    The socket is one that connects, over tcp: over ipc there are no keys, and nothing is watched.

    Args:
        key: the key that the socket shows, if any.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        sock: zmq.Socket[bytes],
        endpoint: str,
        key: Key | None,
    ) -> None:
        self._key = key
        self._reason = ""
        self._is_certain = False  # whether that is known, and not guessed
        self._watched: zmq.Socket[bytes] | None = None
        if endpoint.startswith("tcp://"):
            at = f"inproc://handshakes-{uuid.uuid4().hex}"
            sock.monitor(at, int(_WATCHED))
            self._watched = sock
            self._monitor = context.socket(zmq.PAIR)
            self._monitor.setsockopt(zmq.LINGER, 0)
            self._monitor.setsockopt(zmq.RCVHWM, 0)  # beyond a limit ZeroMQ would wait for us to read
            self._monitor.connect(at)

    @property
    def reason(self) -> str:
        """Why the bus does not let the client in, and what to do; empty if nothing is known of that."""
        while self._watched is not None and self._monitor.poll(0):
            event, value = _EVENT.unpack_from(self._monitor.recv_multipart()[0])
            self._take(event, value)
        return self._reason

    def close(self) -> None:
        """Stop watching; call it before the socket is closed."""
        if self._watched is not None:
            self._watched.disable_monitor()
            self._monitor.close()
            self._watched = None

    def _take(self, event: int, value: int) -> None:
        """Take in how a handshake went; which of the two sides notices first what is wrong is chance."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._reason, self._is_certain = "", False
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self._reason, self._is_certain = self._mismatch(), True
        elif not self._is_certain:
            self._reason = self._broken_off()

    def _mismatch(self) -> str:
        if self._key is None:
            return (
                "it wants a key, and there is none; name its file in $PHASE_BUS_KEY_FILE, or make one with "
                "'phase-bus keys new'"
            )
        return f"it takes no keys; leave that of {str(self._key.path)!r} out with PHASE_BUS_KEY_FILE=''"

    def _broken_off(self) -> str:
        if self._key is None:
            return (
                "it ends the connection before a word is said; if it wants a key, name its file in "
                "$PHASE_BUS_KEY_FILE, or make one with 'phase-bus keys new'"
            )
        return (
            f"it does not let in the key of {str(self._key.path)!r}; its owner can: phase-bus keys "
            f"authorize '{self._key.public}' --name NAME --role ROLE; or the bus named there is another "
            "one, or takes no keys; then leave that key out with PHASE_BUS_KEY_FILE=''"
        )
