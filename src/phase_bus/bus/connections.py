"""Connections: how many there are, who is turned away, and whose handshake failed.

Each takes a file descriptor, of which a process has so many. Without any left ZeroMQ's listener for TCP
tries as fast as it can to let in who waits, and that for Unix sockets ends the process. To stop listening
would end all connections there are; so what is too much is let in and shut down at once, while there are
descriptors to spare.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import zmq

from phase_bus.bus.options import BusOptions
from phase_bus.bus.rejections import Rejections
from phase_bus.core.monitor import Monitor
from phase_bus.core.peer import Peer

logger = logging.getLogger("phase_bus.bus")

TOO_MANY = "connections"
NO_HANDSHAKE = "handshake"

_SILENT_S = 60.0
_SPARE = 256  # descriptors kept for files, and for those who come before they are looked at; ...
_LEAST_SPARE, _MOST_SPARE = 0.2, 0.5  # ... a fifth if that is more, but never more than half of them
_AT_ONCE = 1000  # events looked at before the bus goes on with its work
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
# Plain numbers: they are compared for each event, and pyzmq's take their time.
_ACCEPTED, _DISCONNECTED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_NO_KEY = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)  # counted by who refused it
_FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
# Not EVENT_ACCEPT_FAILED: without descriptors there is no end of them.
_WATCHED = _ACCEPTED | _DISCONNECTED | _SUCCEEDED | _NO_KEY | _FAILED


def raise_limit() -> None:
    """Let this process have as many open files as it may: the usual limit is for other programs' sake."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system that has another limit besides
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def is_at(descriptor: int, inode: int) -> bool:
    """Return whether a descriptor still is of the connection that has this inode."""
    try:
        return os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


def cut(descriptor: int, inode: int) -> None:
    """Shut a connection down, if the descriptor still is of that one.

    ZeroMQ finds it closed by its peer, and closes the descriptor.
    """
    if is_at(descriptor, inode):
        with suppress(OSError), _socket_of(descriptor) as sock:  # its peer has closed it
            sock.shutdown(socket.SHUT_RDWR)


class Connections:
    """Follows what comes and goes on the bus's sockets, by ZeroMQ's monitors.

    Attributes:
        descriptors: to be polled: when one is readable, or as long as there is :attr:`more`, :meth:`look`
            is to be called. To poll ZeroMQ's sockets would cost system calls for each, each time.
        more: whether not all was looked at.
    """

    def __init__(
        self, sockets: Iterable[zmq.Socket[bytes]], options: BusOptions, rejections: Rejections
    ) -> None:
        self._monitored = [_Monitored(sock) for sock in sockets]
        self.descriptors = frozenset(each.monitor.descriptor for each in self._monitored)
        self.more = True  # nothing shows at a descriptor until it was looked at
        self._most = options.max_connections
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_descriptors = self._limit - _spare(self._limit)
        self._rejections = rejections
        self._silent_until_s = 0.0
        self._looked_for_gone_s = 0.0

    @property
    def number(self) -> int:
        """How many there are now, with those whose handshake is not over."""
        return sum(len(each.peers) for each in self._monitored)

    def inode_before(self, descriptor: int, time_s: float) -> int:
        """Return the inode of a descriptor's connection if that came before a time, else 0."""
        peers = (monitored.peers.get(descriptor) for monitored in self._monitored)
        return max((peer.inode for peer in peers if peer is not None and peer.came_s < time_s), default=0)

    def look(self) -> None:
        """Follow what has happened, and turn away who is too many."""
        self.more = False
        for monitored in self._monitored:
            for _ in range(_AT_ONCE):
                if (what := monitored.monitor.read()) is None:
                    break
                self._take(monitored, *what)
            else:
                self.more = True

    def forget_gone(self) -> None:
        """Forget connections that ZeroMQ ended without a word, as it does when a socket is bound anew."""
        for monitored in self._monitored:
            gone = [fd for fd, peer in monitored.peers.items() if not is_at(fd, peer.inode)]
            for descriptor in gone:
                del monitored.peers[descriptor]

    def close(self) -> None:
        """Stop following; no other thread may use the sockets meanwhile."""
        for monitored in self._monitored:
            monitored.monitor.close()

    def _take(self, monitored: _Monitored, what: int, value: int) -> None:
        if what == _ACCEPTED:
            monitored.peers[value] = peer = _Peer(value, monitored.succeeded)
            self._turn_away(value, peer)
        elif what == _DISCONNECTED:
            gone = monitored.peers.pop(value, None)
            if gone is not None and not gone.turned_away:
                failed = monitored.failed or gone.succeeded_before == monitored.succeeded
                if failed and not monitored.refused:
                    self._rejections.count(NO_HANDSHAKE, gone.where)
            monitored.failed = monitored.refused = False
        elif what == _SUCCEEDED:
            monitored.succeeded += 1
        elif what == _NO_KEY:
            monitored.refused = True
        else:
            monitored.failed = True

    def _turn_away(self, descriptor: int, peer: _Peer) -> None:
        """Shut a new connection down if there are too many."""
        too_few = descriptor >= self._most_descriptors
        if not too_few and self.number > self._most:
            self._forget_gone_at_times()
        if too_few or self.number > self._most:
            peer.turned_away = True
            cut(descriptor, peer.inode)
            self._rejections.count(TOO_MANY, peer.where)
            self._tell(descriptor, too_few=too_few)

    def _forget_gone_at_times(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._looked_for_gone_s + 1.0:
            self._looked_for_gone_s = now_s
            self.forget_gone()

    def _tell(self, descriptor: int, *, too_few: bool) -> None:
        now_s = time.monotonic()
        if now_s < self._silent_until_s:
            return
        self._silent_until_s = now_s + _SILENT_S
        if too_few:
            logger.error(
                "phase-bus bus: %d of %d file descriptors are in use, one for each connection, and no more "
                "are let in; raise its limit ('ulimit -n', LimitNOFILE= in systemd), or end clients "
                "('phase-bus status' lists them)",
                descriptor,
                self._limit,
            )
        else:
            logger.error(
                "phase-bus bus: there are %d connections, and no more are let in; allow more "
                "(max_connections), or end clients ('phase-bus status' lists them)",
                self._most,
            )


class _Peer:
    """Who is at the other end of a connection.

    Attributes:
        inode: that of its descriptor, whose number will be another's one day.
        where: a host, or ``pid N of uid N`` on this one.
        succeeded_before: how many handshakes had succeeded when it came.
        came_s: when that was, by :func:`time.monotonic`.
    """

    __slots__ = ("came_s", "inode", "succeeded_before", "turned_away", "where")

    def __init__(self, descriptor: int, succeeded_before: int) -> None:
        self.succeeded_before = succeeded_before
        self.came_s = time.monotonic()
        self.turned_away = False
        self.inode, self.where = 0, ""
        with suppress(OSError), _socket_of(descriptor) as sock:  # it is gone by now
            self.inode = os.fstat(descriptor).st_ino
            self.where = str(_where(sock))


class _Monitored:
    """One of the bus's sockets, and who is connected to it.

    Attributes:
        monitor: tells what happens.
        succeeded: how many handshakes have succeeded. ZeroMQ does not tell whose.
        failed: whether the handshake failed of the connection that ends next.
        refused: whether its key was refused.
    """

    def __init__(self, sock: zmq.Socket[bytes]) -> None:
        self.monitor = Monitor(sock, _WATCHED)
        self.peers: dict[int, _Peer] = {}
        self.succeeded = 0
        self.failed = self.refused = False


@contextmanager
def _socket_of(descriptor: int) -> Iterator[socket.socket]:
    """Give a descriptor of ZeroMQ's as a socket, and leave it open."""
    sock = socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()


def _where(sock: socket.socket) -> Peer:
    if sock.family != socket.AF_UNIX:
        return Peer(str(sock.getpeername()[0]))
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return Peer(uid=uid, pid=pid)


def _spare(limit: int) -> int:
    """Return how many descriptors are kept of those that are not in use yet."""
    with open(os.devnull) as file:  # noqa: PTH123 - a new one has the lowest number that is free
        free = limit - file.fileno()
    return int(max(_LEAST_SPARE * free, min(_SPARE, _MOST_SPARE * free)))
