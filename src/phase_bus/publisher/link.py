"""How a publisher's messages leave the process: acknowledged to a bus, or as a plain PUB."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress

import zmq
from msgspec.structs import replace

from phase_bus.core.address import Address
from phase_bus.core.bundle import LARGEST_BUNDLED_BYTES
from phase_bus.core.control import (
    DEFAULT_MAX_MESSAGE_BYTES,
    Ack,
    Beat,
    Goodbye,
    Hello,
    Refused,
    Rejected,
    Reply,
    Welcome,
)
from phase_bus.core.handshakes import HandshakeWatch, watched_dealer
from phase_bus.core.ipc_directory import CHECKED_FOR_S, check_directory, lock_directory
from phase_bus.core.keys import Key
from phase_bus.core.outbox import Message, Outbox, frames_of
from phase_bus.core.printable import printable
from phase_bus.core.session import Session, introduce
from phase_bus.core.sockets import bind
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import encode_control, receive_reply, send_frames
from phase_bus.errors import AddressError, WireError

logger = logging.getLogger("phase_bus.publisher")

_NOBLOCK = int(zmq.NOBLOCK)
_REFUSED_WAIT_S = 1.0
_HIGH_WATER_MARK = 10_000  # messages queued for each subscriber in direct mode
_BEHIND = 64  # events that are not acknowledged: so many show that the bus is behind
_FEW = 8  # events that are better sent with others then
WINDOW_BYTES = 8 << 20  # sent and not yet acknowledged: bounds what a lost connection sends again


class BusLink:
    """Acknowledged delivery to a bus: go-back-N over a DEALER, resumed after a reconnection.

    ZeroMQ may keep trying to send for ``linger_ms`` after :meth:`close`. Who has no loop of its own calls
    :meth:`turn` instead of :meth:`send`, :meth:`receive` and :meth:`tick`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        outbox: Outbox,
        name: str,
        linger_ms: int,
        key: Key | None = None,
    ) -> None:
        self._context = context
        self._key = key
        self._address = address.connectable()
        check_directory(self._address)
        self._outbox = outbox
        self._name = name
        self._linger_ms = linger_ms
        self._client_id = outbox.source.hex()
        self.events_dropped = 0  # as the caller says, for the bus's list of clients
        self._refused = ""
        self._checked_s = -math.inf  # when the place was seen to be nobody else's
        self._fault = ""  # why whoever is at the address may not be our bus
        self._complaints = Throttle(logger)
        self._resume_s = 0.0  # the bus cannot keep anything until then
        self.rejected = 0  # events that the bus refused, and that are lost
        self._rejected_seq = 0  # the last of them
        self._told = ""  # why the bus did not let us in, the last time
        self.socket, self._watch = self._connect()
        self._session = Session(self._hello, self._beat, time.monotonic())
        self._was_connected = False
        self._stale = False  # whether the socket's connection is given up
        self._largest = 0  # a message that the bus takes, 0 while that is unknown
        outbox.largest_bytes = DEFAULT_MAX_MESSAGE_BYTES
        self._next_seq = 0
        self._moved_s = time.monotonic()

    @property
    def connected(self) -> bool:
        """Whether messages can leave now."""
        return self._session.welcome is not None

    def send(self) -> bool:
        """Send what the outbox has; return True if the socket must become writable for the rest."""
        now_s, outbox = time.monotonic(), self._outbox
        if not outbox.unsent or self._session.welcome is None or now_s < self._resume_s:
            return False
        if now_s > self._checked_s + CHECKED_FOR_S:
            if not self._is_safe(there=True):
                return False
            self._checked_s = now_s
        heard = False
        try:
            while outbox.unsent:
                messages = outbox.together(self._largest)
                if outbox.in_flight_bytes > WINDOW_BYTES:
                    return False  # an acknowledgement will wake us
                if self._better_wait(messages):
                    if heard:
                        return False  # likewise
                    heard = True
                    self.receive()  # it may be there, and not have been read
                    if self._session.welcome is None or now_s < self._resume_s:
                        return False
                    continue
                if 0 < self._largest < messages[0].size_bytes:
                    self._send_without_payload(messages[0])
                else:
                    send_frames(self.socket, frames_of(messages), _NOBLOCK)
                outbox.sent(len(messages))
        except zmq.Again:
            return True
        return False

    def _better_wait(self, messages: Sequence[Message]) -> bool:
        """Return whether events should wait for an acknowledgement, or until more can go with them.

        If the bus is behind, they would wait there, one by one, and cost it far more than in bundles.
        """
        outbox, first = self._outbox, messages[0]
        if outbox.in_flight < _BEHIND or len(messages) >= _FEW or len(messages) < len(outbox.unsent):
            return False
        return not first.records and len(first.payload) <= LARGEST_BUNDLED_BYTES

    def _send_without_payload(self, message: Message) -> None:
        """Send an event that is too large such that the bus refuses it, and takes those after it.

        Raises:
            zmq.Again: if it cannot be queued now.
        """
        topic, header, _ = message.frames
        send_frames(self.socket, (topic, header, b""), _NOBLOCK)
        self._complaints.warn(
            "phase-bus publisher %r: an event of %d bytes on topic %s is lost: the bus takes %d at most; "
            "give it a larger --max-message-bytes",
            self._name,
            message.size_bytes,
            printable(topic.decode(errors="replace")),
            self._largest,
        )

    def receive(self) -> None:
        """Take in all replies that have arrived."""
        reply: Reply | None = None
        while True:
            try:
                reply = receive_reply(self.socket, self._address, another=reply is not None)
            except WireError as error:  # of a newer bus, or no bus at all
                self._complaints.warn("phase-bus publisher %r: %s; skipped", self._name, error)
                reply = None
                continue
            except AddressError as error:  # somebody else
                self._distrust(error)
                reply = None
                continue
            if reply is None:
                return
            welcomed = self._session.heard(reply, time.monotonic())
            if welcomed and isinstance(reply, Welcome):
                self._fault = ""
                self._largest = reply.max_message_bytes
                self._outbox.largest_bytes = reply.max_message_bytes or DEFAULT_MAX_MESSAGE_BYTES
                self._outbox.acknowledge(reply.last_seq)
                self._outbox.rewind()
            elif isinstance(reply, Refused):
                self._outbox.acknowledge(reply.seq)
                self._outbox.rewind()
                self._resume_s = time.monotonic() + _REFUSED_WAIT_S
                if reply.reason != self._refused:
                    self._refused = reply.reason
                    logger.error(
                        "phase-bus publisher %r: the bus cannot keep events: %s; they wait here",
                        self._name,
                        printable(reply.reason),
                    )
            elif isinstance(reply, Rejected):
                if reply.seq > self._rejected_seq:  # what is sent again is refused again
                    self._rejected_seq = reply.seq
                    self.rejected += reply.count
                self._complaints.warn(
                    "phase-bus publisher %r: the bus refused an event, which is lost: %s",
                    self._name,
                    printable(reply.reason),
                )
            elif isinstance(reply, Ack):
                self._outbox.acknowledge(reply.seq)
                if reply.resend:
                    self._outbox.rewind()

    def tick(self, now_s: float) -> float:
        """Do what is due; return in how many seconds to call again."""
        request = self._session.due(now_s)
        if request is not None and not self._session.connected:
            self._tell_why()
            self._watch.connect_again()
        self._stale |= self._was_connected and not self._session.connected
        self._was_connected = self._session.connected
        if (request is not None or self._stale) and not self._is_safe():
            return self._session.wait_s(now_s)
        if self._stale:
            # The bus fell silent: what is stuck in this socket must not be sent later.
            try:
                fresh = self._connect()
            except AddressError:  # too many open files: the benchmark has them; again at the next hello
                return self._session.wait_s(now_s)
            self._watch.close()
            self.socket.close(linger=0)
            (self.socket, self._watch), self._stale = fresh, False
        if request is not None:
            with suppress(zmq.Again):  # not connected; the session repeats it
                self.socket.send(encode_control(request), zmq.NOBLOCK)
        return self._session.wait_s(now_s)

    def turn(self, longest_s: float) -> float:
        """Send, and wait a while for acknowledgements; return for how long none that is due has come."""
        wait_s = min(longest_s, self.tick(time.monotonic()))
        events = zmq.POLLIN | zmq.POLLOUT if self.send() else zmq.POLLIN
        self.socket.poll(math.ceil(wait_s * 1000), events)
        self.receive()
        now_s, next_seq = time.monotonic(), self._outbox.next_seq
        if not len(self._outbox) or next_seq != self._next_seq:
            self._next_seq, self._moved_s = next_seq, now_s
        return now_s - self._moved_s

    def close(self, lacking: int = 0) -> None:
        """Say goodbye and close the socket; ``lacking`` is how much there was to send beyond the outbox."""
        if self._session.connected and self._is_safe():
            goodbye = Goodbye(client_id=self._client_id, last_seq=self._outbox.last_seq + lacking)
            with suppress(zmq.Again):
                self.socket.send(encode_control(goodbye), zmq.NOBLOCK)
        self._watch.close()
        self.socket.close(linger=self._linger_ms)

    def _tell_why(self) -> None:
        """Log, once for each reason, why the bus does not let this publisher in."""
        why = self._watch.reason
        if why not in ("", self._told):
            self._told = why
            logger.error(
                "phase-bus publisher %r: the bus at %s does not answer: %s", self._name, self._address, why
            )

    def _is_safe(self, *, there: bool = False) -> bool:
        """Whether nobody else can be in the bus's place.

        Args:
            there: whether a place that is not there, and where somebody may have been, is not safe either.
        """
        try:
            return check_directory(self._address) or not there
        except AddressError as error:
            self._distrust(error)
            return False

    def _distrust(self, error: AddressError) -> None:
        """Take it that there is no bus: somebody else may be in its place."""
        self._stale = True
        self._checked_s = -math.inf
        if self._session.connected:
            self._session.lose(time.monotonic())
        with suppress(zmq.ZMQError):
            self.socket.disconnect(self._address.control)
        if not self._fault:
            logger.error("phase-bus publisher %r: %s; what is published waits here", self._name, error)
        self._fault = str(error)

    def _connect(self) -> tuple[zmq.Socket[bytes], HandshakeWatch]:
        return watched_dealer(self._context, self._address.control, self._key)

    def _hello(self) -> Hello:
        return introduce(self._client_id, "publisher", self._name, next_seq=self._outbox.next_seq)

    def _beat(self) -> Beat:
        return Beat(
            client_id=self._client_id,
            state="ready",
            received=self._outbox.last_seq,
            failed=self.events_dropped,
            sent_seq=self._outbox.sent_seq,
        )


class DirectLink:
    """A plain PUB that consumers connect to: no bus, no acknowledgement, best effort.

    A subscriber that falls behind the publisher by more than the high-water mark loses messages; it sees
    the gap in the topic's sequence and reports it. Port 0 is any free port.

    Raises:
        AddressError: if the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        outbox: Outbox,
        linger_ms: int,
    ) -> None:
        self._outbox = outbox
        self._lock = lock_directory(address) if address.scheme == "ipc" else None
        self.socket = context.socket(zmq.PUB)
        self.socket.setsockopt(zmq.LINGER, linger_ms)
        self.socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        try:
            self.address = replace(bind(self.socket, address, address.direct_events), direct=True)
        except AddressError:
            self.close()
            raise
        if self._lock is not None:
            self._lock.remember_sockets()

    @property
    def connected(self) -> bool:
        """Whether messages can leave now."""
        return True

    def send(self) -> bool:
        """Send what the outbox has; return True if the socket must become writable for the rest."""
        while messages := self._outbox.together():
            send_frames(self.socket, frames_of(messages))
            self._outbox.sent(len(messages))
            self._outbox.acknowledge(messages[-1].seq)
        return False

    def receive(self) -> None:
        """Do nothing: nobody answers."""

    def tick(self, now_s: float) -> float:  # noqa: ARG002 - as the other has it
        """Return in how many seconds to call again."""
        return 1.0

    def close(self, lacking: int = 0) -> None:  # noqa: ARG002 - as the other has it
        """Close the socket, and unlock the directory it was in."""
        self.socket.close()
        if self._lock is not None:
            self._lock.release()
