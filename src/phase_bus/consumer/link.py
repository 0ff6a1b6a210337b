"""A consumer's link to the bus beside the events: hello, beats, and what the bus answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

import zmq
from msgspec.structs import replace

from phase_bus.core.address import Address
from phase_bus.core.control import Beat, Goodbye, Hello, Refused, Reply, Request
from phase_bus.core.handshakes import watched_dealer
from phase_bus.core.ipc_directory import check_directory
from phase_bus.core.keys import Key
from phase_bus.core.readable import Readable
from phase_bus.core.session import Session
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import encode_control, receive_reply
from phase_bus.errors import AddressError, WireError

logger = logging.getLogger("phase_bus.consumer")

_COMPLAIN_AFTER_S = 3.0


class ControlLink:
    """Keeps the bus informed of one client, and finds it again when it was restarted.

    ``hello`` and ``beat`` make these anew each time; ``on_connect`` is called when the bus has been found,
    ``on_reply`` is told what it answers, and ``on_fault`` that somebody else may be in the bus's place:
    then this is over.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        key: Key | None,
        *,
        hello: Callable[[], Hello],
        beat: Callable[[], Beat],
        on_connect: Callable[[], None],
        on_reply: Callable[[Reply], None],
        on_fault: Callable[[AddressError], None],
    ) -> None:
        self.session = Session(hello, beat, time.monotonic())
        self._context = context
        self._address = address
        self._key = key
        self._beat = beat
        self._on_connect = on_connect
        self._on_reply = on_reply
        self._on_fault = on_fault
        self._readable: Readable | None = None
        self._complaints = Throttle(logger)
        self._told_size = False  # whether it was told that beats are too large
        self._refusal = ""  # why the bus refuses this client, if it does

    def tell_news(self) -> None:
        """Beat at once."""
        self.session.beat_now(time.monotonic())
        if self._readable is not None:
            self._readable.look_again()

    def ask_anew(self) -> None:
        """Say hello at once: another bus seems to be at the address."""
        if self.session.connected:
            self.session.lose(time.monotonic())
            self.tell_news()

    async def run(self) -> None:
        """Keep the link until cancelled; then say where the client stands, and goodbye."""
        sock, watch = watched_dealer(self._context, self._address.control, self._key)
        readable = self._readable = Readable(sock)
        started_s = time.monotonic()
        complained: str | None = None
        try:
            while True:
                now_s = time.monotonic()
                was_connected = self.session.connected
                request = self.session.due(now_s)
                if was_connected and not self.session.connected:
                    logger.warning("the bus at %s is silent; waiting for it", self._address)
                if request is not None:
                    check_directory(self._address)
                    if not self.session.connected:
                        watch.connect_again()
                    with suppress(zmq.Again):  # not connected: the session repeats it
                        sock.send(self._encode(request), zmq.NOBLOCK)
                waited_s = now_s - started_s
                if not (self.session.connected or self._refusal) and waited_s > _COMPLAIN_AFTER_S:
                    why = watch.reason
                    if complained is None or why not in ("", complained):
                        complained = why
                        self._tell_silence(why)
                self._read_replies(sock)
                await readable.wait(timeout_s=self.session.wait_s(time.monotonic()))
        except AddressError as error:
            self.session.lose(time.monotonic())
            self._on_fault(error)
        finally:
            if self.session.connected:
                beat = self._beat()
                with suppress(zmq.Again, AddressError):
                    check_directory(self._address)
                    sock.send(self._encode(beat), zmq.NOBLOCK)
                    sock.send(encode_control(Goodbye(client_id=beat.client_id)), zmq.NOBLOCK)
            watch.close()
            sock.close(linger=200)

    def _tell_silence(self, why: str) -> None:
        if why:
            logger.error("the bus at %s does not answer: %s; trying again", self._address, why)
        else:
            logger.warning("no bus answers at %s yet; waiting for one", self._address)

    def _encode(self, request: Request) -> bytes:
        """Return a request's frame; one too large for the bus goes without what is to be kept."""
        frame = encode_control(request)
        welcome = self.session.welcome
        largest = 0 if welcome is None else welcome.max_message_bytes
        if not isinstance(request, Beat) or not 0 < largest < len(frame):
            self._told_size = self._told_size and not isinstance(request, Beat)
            return frame
        if not self._told_size:
            self._told_size = True
            logger.error(
                "what is to be kept at the bus at %s, state and dead letters, takes %d bytes, of %d "
                "at most; nothing of it is kept, and a restart begins where it was before; start the bus "
                "with a larger --max-message-bytes",
                self._address,
                len(frame),
                largest,
            )
        return encode_control(replace(request, position=None, saved=None, dead_letters=(), commits=()))

    def _read_replies(self, sock: zmq.Socket[bytes]) -> None:
        while True:
            try:
                reply = receive_reply(sock, self._address)
            except WireError as error:
                self._complaints.warn("the bus at %s: %s; skipped", self._address, error)
                continue
            if reply is None:
                return
            was_connected = self.session.connected
            self.session.heard(reply, time.monotonic())
            if self.session.connected and not was_connected:
                self._on_connect()
            if isinstance(reply, Refused):
                self._complain(reply.reason)
            else:
                self._refusal = ""
                self._on_reply(reply)

    def _complain(self, reason: str) -> None:
        if reason != self._refusal:
            self._refusal = reason
            logger.error("the bus at %s refuses this consumer: %s", self._address, reason)
