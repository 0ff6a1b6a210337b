"""Who is let in, and what each may do: by the key of its connection, or its user on this machine.

A connection over tcp shows a key if the bus has one (CURVE), and ZeroMQ asks the bus whether it may come
in (ZAP, RFC 27 of the ZeroMQ project). One over ipc shows which user of this machine is at its other end.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeAlias

import zmq
from zmq.utils import z85

from phase_bus.bus.connections import cut, is_at
from phase_bus.bus.rejections import Rejections
from phase_bus.core.authorized import OWN_NAME, authorized_file, read_authorized
from phase_bus.core.keys import Key
from phase_bus.core.peer import peer_of, property_of
from phase_bus.core.throttle import Throttle
from phase_bus.errors import KeyFileError, WireError

logger = logging.getLogger("phase_bus.bus")

_ZAP = "inproc://zeromq.zap.01"  # as its specification has it
_ZAP_VERSION = b"1.0"
_z85: Callable[[bytes], bytes] = z85.encode
_AT_ONCE = 100  # who asks to be let in, before others get their turn
REQUESTS, EVENTS, REPLAY = b"requests", b"events", b"replay"
"""The names of the bus's sockets in questions of who is let in."""


class Party(NamedTuple):
    """Somebody with a name of its own, to whom belongs what it names first; and what it may do."""

    name: str
    roles: frozenset[str]

    def may(self, role: str) -> bool:
        """Return whether it has a role; an admin has all."""
        return role in self.roles or "admin" in self.roles

    def speaks_for(self, owner: str) -> bool:
        """Return whether what belongs to an owner is its own; an admin speaks for everybody."""
        return owner == self.name or self.may("admin")

    def expect(self, role: str, what: str = "") -> None:
        """Check that it has a role; ``what`` says for what, in words, if the role's name does not.

        Raises:
            WireError: if it has not.
        """
        if not self.may(role):
            raise WireError(f"{self.name!r} may not {what or role}", counted_as="role")


OWN = Party(OWN_NAME, frozenset({"admin"}))
"""Who runs the bus."""

_Stamp: TypeAlias = tuple[int, int, int] | None


class Access:
    """Tells who a connection's messages are from, and cuts off who may not come in any more.

    Args:
        key: the bus's; None to let in everybody who can connect.
        shared: whether other users of this machine can connect by ipc.

    Attributes:
        is_open: whether whoever can connect may do everything.
        zap: the socket to poll, and to call :meth:`answer` for; None without a key.
        inode_before: tells the inode of a descriptor's connection if that came before a time, else 0.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        key: Key | None,
        rejections: Rejections,
        *,
        shared: bool = False,
    ) -> None:
        self.is_open = key is None and not shared
        self.zap: zmq.Socket[bytes] | None = None
        self.inode_before: Callable[[int, float], int] = lambda _descriptor, _time_s: 0
        self._key = key
        self._rejections = rejections
        self._complaints = Throttle(logger)
        self._parties: dict[str, Party] = {}  # by public key; replaced as a whole, since threads read it
        self._stamp: _Stamp = None  # of the file, as it was read
        self._seen: _Stamp = None  # as it was at the last look
        self._told = ""  # what was wrong with the file, the last time
        self._changed_s = 0.0  # when who is authorized had changed, the last time
        self._subscribers: dict[int, tuple[str, int]] = {}  # keys and inodes, by descriptor
        if key is not None:
            self._parties = {key.public: OWN}
            self.zap = context.socket(zmq.REP)
            self.zap.setsockopt(zmq.LINGER, 0)
            self.zap.bind(_ZAP)
            self.refresh()

    def guard(self, sock: zmq.Socket[bytes], name: bytes) -> None:
        """Let what a socket is bound to from now on ask for keys, if the bus has one."""
        if self._key is not None:
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt(zmq.CURVE_SECRETKEY, self._key.secret.encode())
            # No ZAP domain: with one, connections by ipc would ask too, and it cannot be taken back. This
            # is our own name, whatever a client calls itself.
            sock.setsockopt(zmq.ROUTING_ID, name)

    def unguard(self, sock: zmq.Socket[bytes]) -> None:
        """Let what a socket is bound to from now on ask for no keys: it is guarded by the file system."""
        if self._key is not None:
            sock.setsockopt(zmq.CURVE_SERVER, 0)

    def close(self) -> None:
        """Close the socket; who is not in by now stays out."""
        if self.zap is not None:
            self.zap.close()

    # ---- who is let in ----

    def answer(self) -> None:
        """Answer those who ask to be let in, some at a time."""
        assert self.zap is not None
        with suppress(zmq.Again):
            for _ in range(_AT_ONCE):
                _, request, _, address, name, mechanism, *keys = self.zap.recv_multipart(zmq.NOBLOCK)
                public = _z85(keys[0]).decode() if mechanism == b"CURVE" else ""
                may = self._lets_in(public, name, address.decode(errors="replace"))
                # After a 400 a client would not try again, though it may be authorized by then.
                status = (b"200", b"", public.encode()) if may else (b"300", b"not authorized", b"")
                self.zap.send_multipart((_ZAP_VERSION, request, *status, b""))

    def _lets_in(self, public: str, name: bytes, where: str) -> bool:
        """Return whether a key is let in at one of the sockets; it is counted and told if not."""
        party = self._parties.get(public)
        if party is None:
            self._rejections.count("unknown_key", where)
            why = f"nobody has authorized its key, {public}"
        elif name == REQUESTS or party.may("consume"):
            return True
        else:
            self._rejections.count("role", f"{where} ({party.name})")
            why = f"{party.name!r} may not consume"
        self._complaints.warn("phase-bus bus: a client at %s is not let in: %s", where, why)
        return False

    # ---- who it is ----

    def party(self, frame: zmq.Frame) -> Party | None:
        """Return who a message is from, from any thread; None if that is nobody who may be here.

        Its key was revoked since, or there is nothing that tells who it is.
        """
        if self.is_open:
            return OWN
        if public := property_of(frame, "User-Id"):
            return self._parties.get(public)
        peer = peer_of(frame)  # no key was asked for
        if peer.uid is None:  # no Unix socket
            return OWN if self._key is None and peer.host else None
        if peer.uid in (0, os.geteuid()):
            return OWN
        return Party(f"uid {peer.uid}", frozenset({"publish", "consume"}))

    def expect(self, frame: zmq.Frame, role: str = "") -> Party:
        """Return who a message is from.

        Raises:
            WireError: if its key was revoked, and the connection is cut now; or if it lacks a role.
        """
        party = self.party(frame)
        if party is None:
            self._cut(frame)
            raise WireError("it is from a client whose key was revoked", counted_as="revoked")
        if role:
            party.expect(role)
        return party

    def where(self, frame: zmq.Frame) -> str:
        """Return where a message came from, and from whom."""
        party = None if self.is_open else self.party(frame)
        return str(peer_of(frame)) + (f" ({party.name})" if party is not None else "")

    # ---- who is not let in any more ----

    def note_subscriber(self, frame: zmq.Frame) -> None:
        """Remember the connection of a subscription: nothing else would tell where its events go.

        It may come, or be read, when its key has been revoked.
        """
        if self._key is None:
            return
        user = property_of(frame, "User-Id")
        if user and self._may_listen(user):
            descriptor, inode = _connection(frame)
            self._subscribers[descriptor] = user, inode  # instead of who had the descriptor before
        elif user:
            self._cut(frame)

    def refresh(self) -> None:
        """Read again who is authorized, if that has changed, and cut off who is not any more."""
        if self._key is None:
            return
        path = authorized_file(self._key)
        try:
            there = path.stat() if path.exists() else None
            stamp = None if there is None else (there.st_ino, there.st_mtime_ns, there.st_size)
            seen, self._seen = self._seen, stamp
            if stamp == self._stamp:
                return
            if stamp and seen and stamp != seen and stamp[0] == seen[0]:
                return  # it is being written to, and is not whole yet
            authorized = read_authorized(path)
        except (KeyFileError, OSError) as error:
            if str(error) != self._told:
                logger.error("phase-bus bus: %s; who was authorized before still is", error)
            self._told = str(error)
            return
        self._stamp, self._told = stamp, ""  # what could not be read is tried again
        parties = {public: Party(each.name, frozenset(each.roles)) for public, each in authorized.items()}
        self._parties = {**parties, self._key.public: OWN}
        self._changed_s = time.monotonic()
        for descriptor, (user, inode) in list(self._subscribers.items()):
            if not self._may_listen(user):
                cut(descriptor, inode)
                del self._subscribers[descriptor]
            elif not is_at(descriptor, inode):
                del self._subscribers[descriptor]

    def _cut(self, frame: zmq.Frame) -> None:
        """Cut off the connection that a message came by, unless its descriptor is another's by now.

        Who is not let in any more came before that was known, and who came since was let in.
        """
        descriptor, _ = _connection(frame)
        cut(descriptor, self.inode_before(descriptor, self._changed_s))

    def _may_listen(self, public: str) -> bool:
        party = self._parties.get(public)
        return party is not None and party.may("consume")


def _connection(frame: zmq.Frame) -> tuple[int, int]:
    """Return the descriptor of a message's connection, and the number of the socket behind it."""
    try:
        descriptor = int(property_of(frame, "__fd"))
        return descriptor, os.fstat(descriptor).st_ino
    except (ValueError, OSError):
        return -1, 0
