"""The bus's sockets: where they are bound, and how clients are answered on them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

import zmq
from msgspec.structs import replace

from phase_bus.bus.access import EVENTS, REPLAY, REQUESTS, Access
from phase_bus.bus.limits import largest_frame, queued_messages
from phase_bus.bus.options import BusOptions
from phase_bus.bus.rejections import Rejections
from phase_bus.core.address import Address
from phase_bus.core.control import Endpoint, Reply
from phase_bus.core.ipc_directory import DirectoryLock, lock_directory
from phase_bus.core.keys import Key
from phase_bus.core.sockets import bind
from phase_bus.core.wire import READY, Header, encode_control, receive_frames, send_frames
from phase_bus.errors import AddressError

logger = logging.getLogger("phase_bus.bus")

# Messages of the bus that wait for one connection: so that one that never reads costs little.
_REPLIES, _PIECES = 64, 2
_ASKED = 16  # requests for replay that wait
_REQUEST_BYTES = 256 << 10  # of such a request at most
_SUBSCRIPTION_BYTES = 64  # beyond the topic, of a message that subscribes to it
_HANDSHAKE_BYTES = 4096
_SUBSCRIPTIONS_A_TURN = 1000
_NO_HEADER = Header(source=bytes(16), source_seq=0, topic_seq=0).pack()


class BusSockets:
    """A ROUTER for requests and events, an XPUB for the live stream, a ROUTER for replay.

    Attributes:
        all: these three.
        access: who is let in.
        events_endpoint: where clients find the live stream, once bound.
        replay_endpoint: where they find past events; None unless the replay socket is bound.
    """

    def __init__(
        self, options: BusOptions, key: Key | None, rejections: Rejections, *, shared: bool
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.access = Access(self._context, key, rejections, shared=shared)
        self._ipc: Address | None = None  # where it has Unix sockets
        self._lock: DirectoryLock | None = None
        self._ports = options.events_port, options.replay_port
        self._handshake_ms = math.ceil(1000 * options.handshake_s)
        self.router = self._socket(zmq.ROUTER, largest_frame(options))
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # so that a reply that cannot go is noticed
        self.router.setsockopt(zmq.RCVHWM, queued_messages(options))
        self.router.setsockopt(zmq.SNDHWM, _REPLIES)
        subscription_bytes = max(options.max_topic_bytes + _SUBSCRIPTION_BYTES, _HANDSHAKE_BYTES)
        self.xpub = self._socket(zmq.XPUB, subscription_bytes)
        self.xpub.setsockopt(zmq.SNDHWM, options.high_water_mark)
        # Every subscription shows, not the first of its topic alone.
        self.xpub.setsockopt(zmq.XPUB_VERBOSE, 1)
        self.replay = self._socket(zmq.ROUTER, _REQUEST_BYTES)
        self.replay.setsockopt(zmq.RCVHWM, _ASKED)
        self.replay.setsockopt(zmq.SNDHWM, _PIECES)
        self.all = (self.router, self.xpub, self.replay)
        self.events_endpoint = Endpoint(ipc_name="events.ipc")
        self.replay_endpoint: Endpoint | None = None

    def bind(self, addresses: Sequence[Address], *, replay: bool) -> tuple[Address, ...]:
        """Bind all addresses, and the replay socket if it is wanted; return them with their final ports.

        Raises:
            AddressError: if one is in use, cannot be bound, or is the second of its scheme.
        """
        schemes = [address.scheme for address in addresses]
        for address in addresses:
            if schemes.count(address.scheme) > 1:
                raise AddressError(
                    str(address),
                    f"is not the only {address.scheme} address",
                    "give one ipc address, one tcp address, or one of each",
                )
            if address.direct:
                raise AddressError(
                    str(address), "is that of a publisher in direct mode", "leave 'direct+' out"
                )
        if replay:
            self.replay_endpoint = Endpoint(ipc_name="replay.ipc")
        return tuple(
            self._bind_ipc(address) if address.scheme == "ipc" else self._bind_tcp(address)
            for address in addresses
        )

    def reply(self, identity: bytes, reply: Reply) -> bool:
        """Send a message to one connection of the ROUTER for requests; return False if that did not go.

        It is gone, or has not read what it was sent before. It asks again.
        """
        return self.send(identity, encode_control(reply))

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Send an encoded message in the same way."""
        try:
            send_frames(self.router, (identity, frame), int(zmq.NOBLOCK))
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True

    def greet_subscribers(self) -> None:
        """Answer each consumer's last subscription on that very topic.

        A consumer subscribes to ``ready.<its id>$`` after everything else. That the answer reaches it
        shows that all its subscriptions are in force.
        """
        for _ in range(_SUBSCRIPTIONS_A_TURN):
            try:
                frames = receive_frames(self.xpub, 2)
            except zmq.Again:
                return
            self.access.note_subscriber(frames[0])
            if len(frames) > 1:  # no SUB sends such, though there may be a subscription in it
                continue
            message = frames[0].bytes
            if message[:1] == b"\x01" and message[1:].startswith(READY):
                send_frames(self.xpub, (message[1:], _NO_HEADER, b""))

    def close(self) -> None:
        """Close all sockets, remove the ipc files, and let others have the directory."""
        self.replay.close(linger=0)
        self.router.close(linger=500)
        self.xpub.close(linger=500)
        self.access.close()
        self._context.term()
        self.release()

    def release(self) -> None:
        """Remove the ipc files, and let others have the directory."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _socket(self, kind: int, largest_frame_bytes: int) -> zmq.Socket[bytes]:
        sock = self._context.socket(kind)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.MAXMSGSIZE, largest_frame_bytes)
        sock.setsockopt(zmq.HANDSHAKE_IVL, self._handshake_ms)
        return sock

    def _bind_tcp(self, address: Address) -> Address:
        for sock, name in ((self.router, REQUESTS), (self.xpub, EVENTS), (self.replay, REPLAY)):
            self.access.guard(sock, name)
        bound = bind(self.router, address, address.control)
        events_port, replay_port = self._ports
        events = self._bind_beside(self.xpub, address, events_port, bound.port + 1, "live events")
        self.events_endpoint = Endpoint(ipc_name="events.ipc", tcp_port=events)
        if self.replay_endpoint is not None:
            replay = self._bind_beside(self.replay, address, replay_port, bound.port + 2, "past events")
            self.replay_endpoint = Endpoint(ipc_name="replay.ipc", tcp_port=replay)
        return bound

    def _bind_beside(
        self, sock: zmq.Socket[bytes], address: Address, given: int | None, following: int, what: str
    ) -> int:
        """Bind to the port given; without one to that which firewalls can know beforehand, else to any.

        Return it: clients are told which one it is.

        Raises:
            AddressError: if the one that is given is in use, or cannot be bound.
        """
        if given is not None:
            return bind(sock, replace(address, port=given), f"tcp://{address.host}:{given}").port
        with suppress(AddressError):
            return bind(sock, address, f"tcp://{address.host}:{following}").port
        other = bind(sock, address, f"tcp://{address.host}:0").port
        if address.port:
            logger.warning(
                "phase-bus bus: port %d cannot be had; %s are at port %d instead, which a firewall or a "
                "forwarded port has to let through",
                following,
                what,
                other,
            )
        return other

    def _bind_ipc(self, address: Address) -> Address:
        self._ipc = address
        self._lock = lock_directory(address)
        for sock, endpoint in self._unix_sockets(address):
            self.access.unguard(sock)
            bind(sock, address, endpoint)
        self._lock.remember_sockets()
        return address

    def _unix_sockets(self, address: Address) -> Iterator[tuple[zmq.Socket[bytes], str]]:
        yield self.router, address.control
        yield self.xpub, address.direct_events
        if self.replay_endpoint is not None:
            yield self.replay, address.endpoint(self.replay_endpoint)

    # ---- a directory that somebody removes ----

    @property
    def removed(self) -> bool:
        """Whether somebody has removed the directory of its Unix sockets, or one of them."""
        return self._lock is not None and not self._lock.is_whole

    def lock_again(self) -> None:
        """Take the directory again, if it was removed.

        Raises:
            AddressError: if another bus has it by now, or it cannot be made.
        """
        assert self._ipc is not None
        assert self._lock is not None
        if not self._lock.is_ours:
            taken = lock_directory(self._ipc)
            self._lock.release()
            self._lock = taken

    def bind_again(self) -> None:
        """Bind the Unix sockets again; no other thread may use them meanwhile.

        Raises:
            AddressError: if one cannot be bound.
        """
        assert self._ipc is not None
        assert self._lock is not None
        for sock, endpoint in self._unix_sockets(self._ipc):
            with suppress(zmq.ZMQError):  # it was not bound at the last try
                sock.unbind(endpoint)
            self.access.unguard(sock)
            bind(sock, self._ipc, endpoint)
        self._lock.remember_sockets()
