"""Why a bus does not let a client in, which ZeroMQ says on the side only; and connecting to it again.

ZeroMQ connects again by itself, for ever, except after a breach of its protocol. Such is a bus that takes
no keys for a client with one, and the other way round: that connection it gives up for good.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import zmq

from phase_bus.core.keys import Key
from phase_bus.core.monitor import Monitor
from phase_bus.core.sockets import connect, dealer

_WATCHED = int(
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)


def watched_dealer(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, key: Key | None, **options: Any
) -> tuple[zmq.Socket[bytes], HandshakeWatch]:
    """Return a DEALER that connects to a bus, and what watches it.

    Args:
        options: further ones of :func:`~phase_bus.core.sockets.dealer`.

    Raises:
        AddressError: as there.
    """
    sock = dealer(context, endpoint, connected=False, **options)
    try:
        return sock, HandshakeWatch(sock, endpoint, key)
    except BaseException:
        sock.close(linger=0)
        raise


class HandshakeWatch:
    """Connects a socket to a bus, and knows how the last handshake went.

    Over ipc there are no keys, and nothing is watched.

    Args:
        sock: a socket that nothing else connects or watches.
        key: the key that it shows, if any.

    Raises:
        AddressError: if the endpoint is malformed.
    """

    def __init__(self, sock: zmq.Socket[bytes], endpoint: str, key: Key | None) -> None:
        self._socket = sock
        self._endpoint = endpoint
        self._key = key
        self._reason = ""
        self._is_certain = False  # whether that is known, and not guessed
        self._given_up = False
        # Before it is connected: the handshake may be over before we look again.
        self._monitor = Monitor(sock, _WATCHED) if endpoint.startswith("tcp://") else None
        try:
            connect(sock, endpoint, key)
        except BaseException:
            self.close()
            raise

    @property
    def reason(self) -> str:
        """Why the bus does not let the client in, and what to do; empty if nothing is known of that."""
        self._read()
        return self._reason

    @property
    def given_up(self) -> bool:
        """Whether ZeroMQ has given the connection up: nothing comes from it any more."""
        self._read()
        return self._given_up

    def connect_again(self) -> None:
        """Connect again if ZeroMQ has given the connection up; call it as often as that may be tried."""
        if self.given_up:
            self._given_up = False
            with suppress(zmq.ZMQError):  # it may have forgotten the endpoint
                self._socket.disconnect(self._endpoint)
            connect(self._socket, self._endpoint, self._key)

    def close(self) -> None:
        """Stop watching; call it before the socket is closed."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _read(self) -> None:
        while self._monitor is not None and (what := self._monitor.read()) is not None:
            self._take(*what)

    def _take(self, event: int, value: int) -> None:
        """Take in how a handshake went; which of the two sides notices first what is wrong is chance."""
        self._given_up = event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
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
