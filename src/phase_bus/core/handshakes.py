"""Why a bus does not let a client in: ZeroMQ tries again for ever, and says so on the side only."""

from __future__ import annotations

import zmq

from phase_bus.core.keys import Key
from phase_bus.core.monitor import Monitor

_WATCHED = int(
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

    def __init__(self, sock: zmq.Socket[bytes], endpoint: str, key: Key | None) -> None:
        self._key = key
        self._reason = ""
        self._is_certain = False  # whether that is known, and not guessed
        self._monitor = Monitor(sock, _WATCHED) if endpoint.startswith("tcp://") else None

    @property
    def reason(self) -> str:
        """Why the bus does not let the client in, and what to do; empty if nothing is known of that."""
        while self._monitor is not None and (what := self._monitor.read()) is not None:
            self._take(*what)
        return self._reason

    def close(self) -> None:
        """Stop watching; call it before the socket is closed."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

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
