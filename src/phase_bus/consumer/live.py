"""A consumer's live queue: the SUB socket, what it subscribes to, and when that is in force."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import zmq

from phase_bus.core.handshakes import HandshakeWatch
from phase_bus.core.keys import Key
from phase_bus.core.readable import Readable
from phase_bus.core.wire import READY

logger = logging.getLogger("phase_bus.consumer")

_GREETING_S = 1.0  # how long the bus's greeting may take
_COMPLAIN_AFTER_S = 3.0


def ask_for_firewall(endpoint: str) -> str:
    """Return the end of a sentence about a socket of a bus from which nothing comes."""
    return "; does a firewall, or a forwarded port, let that one through?" if "tcp://" in endpoint else "."


class LiveQueue:
    """The events that a bus publishes now, as far as they are subscribed to.

    The bus answers a subscription to ``ready.<client id>$`` on that topic: what was subscribed to before
    it is in force then.

    Args:
        high_water_mark: messages queued at most.

    Attributes:
        endpoint: where it is connected to, empty for nowhere yet.
        greeted: whether all subscriptions are in force.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], client_id: str, high_water_mark: int
    ) -> None:
        self.socket = context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, high_water_mark)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._ready_topic = READY + client_id.encode() + b"$"
        self._asked_s: float | None = None
        self._connected_s = 0.0
        self._complained = False
        self.readable = Readable(self.socket)
        self.endpoint = ""
        self._watch: HandshakeWatch | None = None
        self.greeted = False

    def subscribe(self, prefixes: Iterable[bytes]) -> None:
        """Subscribe to topics that begin so; once more does no harm, but must be undone once more."""
        for prefix in prefixes:
            self.socket.subscribe(prefix)
        self.readable.look_again()

    def unsubscribe(self, prefixes: Iterable[bytes]) -> None:
        """Take subscriptions back."""
        for prefix in prefixes:
            self.socket.unsubscribe(prefix)
        self.readable.look_again()

    def connect(self, endpoint: str, key: Key | None = None) -> None:
        """Connect, instead of where it was connected to; again if that connection was given up."""
        if self._watch is not None:
            if endpoint == self.endpoint:
                self._watch.connect_again()
                return
            self._watch.close()
            self.socket.disconnect(self.endpoint)
        self._watch = HandshakeWatch(self.socket, endpoint, key)
        self.endpoint = endpoint
        self._connected_s, self._complained = time.monotonic(), False
        self.ask_for_greeting()

    def ask_for_greeting(self) -> None:
        """Ask the bus to say when all that is subscribed to up to now is in force."""
        # After the others on the same connection. (What was subscribed to before the connection is sent
        # in the order of the alphabet.)
        if self._asked_s is not None:
            self.socket.unsubscribe(self._ready_topic)
        self.socket.subscribe(self._ready_topic)
        self._asked_s = time.monotonic()
        self.greeted = False
        self.readable.look_again()

    def ask_again(self) -> None:
        """Ask again if no greeting has come for a while: it may have found the queue full."""
        asked_s, now_s = self._asked_s, time.monotonic()
        if self.greeted or asked_s is None or now_s < asked_s + _GREETING_S:
            return
        if self._watch is not None:
            self._watch.connect_again()
        self.ask_for_greeting()
        if not self._complained and now_s > self._connected_s + _COMPLAIN_AFTER_S:
            self._complained = True
            logger.warning(
                "the bus answers, but from its live stream at %s nothing comes%s Still trying",
                self.endpoint,
                ask_for_firewall(self.endpoint),
            )

    def is_greeting(self, topic: bytes) -> bool:
        """Say whether a message's topic makes it the bus's greeting, and note that it came."""
        if topic != self._ready_topic:
            return False
        self.greeted = True
        return True

    def close(self) -> None:
        """Close the socket."""
        self.readable.release()
        if self._watch is not None:
            self._watch.close()
        self.socket.close(linger=0)
