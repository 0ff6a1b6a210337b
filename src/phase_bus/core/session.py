"""A client's side of the conversation with the bus, without any socket in it.

Publishers and consumers own a DEALER and a loop of their own kind; both let a :class:`Session` decide
what to say when. It says hello until welcomed, then beats; if the bus falls silent, or does not know the
client because it was restarted, it goes back to hello.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from phase_bus.core.control import Beat, Heard, Hello, Reply, Request, Role, Welcome

FIRST_HELLO_S, LAST_HELLO_S = 0.02, 0.5  # how long to wait for an answer: doubled each time
SILENT_AFTER_S = 5.0  # or three heartbeats, if that is longer


def introduce(client_id: str, role: Role, name: str, **more: Any) -> Hello:
    """Return the hello of a client in this process."""
    pid, host = os.getpid(), socket.gethostname()
    return Hello(
        client_id=client_id, role=role, name=name, pid=pid, host=host, pid_space=pid_space(), **more
    )


@cache
def pid_space() -> str:
    """Return where this process's pid counts: a boot of the machine, and there the PID namespace.

    A host's name does not tell: containers may share it and see other processes. Empty where it is unknown.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def is_here(space: str) -> bool:
    """Return whether what has a pid space is on this machine, in whatever container; not if unknown."""
    boot = space.partition(" ")[0]
    return bool(boot) and boot == pid_space().partition(" ")[0]


def is_gone(pid: int, space: str) -> bool:
    """Return whether a process is known to have ended: never of one that cannot be seen from here."""
    if not space or space != pid_space() or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


class Session:
    """What to say to the bus, and what its replies mean.

    ``hello`` and ``beat`` make these anew each time. Times are those of :func:`time.monotonic`.
    """

    def __init__(self, hello: Callable[[], Hello], beat: Callable[[], Beat], now_s: float) -> None:
        self.welcome: Welcome | None = None
        self._hello = hello
        self._beat = beat
        self._next_s = now_s
        self._heard_s = now_s
        self._hello_s = FIRST_HELLO_S

    @property
    def connected(self) -> bool:
        """Whether the bus has welcomed this client and answers."""
        return self.welcome is not None

    def is_known(self, now_s: float) -> bool:
        """Return whether the bus answered so recently that it cannot have taken this client for gone."""
        welcome = self.welcome
        return welcome is not None and now_s - self._heard_s < welcome.silent_after_s - welcome.heartbeat_s

    def due(self, now_s: float) -> Request | None:
        """Return what to say now, if anything; call again after :meth:`wait_s`."""
        if self.welcome is not None:
            patience_s = max(SILENT_AFTER_S, 3 * self.welcome.heartbeat_s)
            if now_s - self._heard_s > patience_s:
                self.lose(now_s)
        if now_s < self._next_s:
            return None
        if self.welcome is None:
            self._next_s = now_s + self._hello_s
            self._hello_s = min(2 * self._hello_s, LAST_HELLO_S)
            return self._hello()
        self._next_s = now_s + self.welcome.heartbeat_s
        return self._beat()

    def wait_s(self, now_s: float) -> float:
        """Return for how long nothing is due."""
        return max(0.0, self._next_s - now_s)

    def beat_now(self, now_s: float) -> None:
        """Make the next beat due at once: there is news in it."""
        self._next_s = now_s

    def heard(self, reply: Reply, now_s: float) -> bool:
        """Take in a reply; return True if it welcomes the client anew."""
        self._heard_s = now_s
        if isinstance(reply, Welcome):
            self.welcome = reply
            self._next_s = now_s  # let the bus know this client's state at once
            return True
        if isinstance(reply, Heard):
            moved = self.welcome is not None and reply.bus_id != self.welcome.bus_id
            if moved or not reply.known:
                self.lose(now_s)
        return False

    def lose(self, now_s: float) -> None:
        """Forget the bus, and say hello at once."""
        self.welcome = None
        self._next_s = now_s
        self._heard_s = now_s
        self._hello_s = FIRST_HELLO_S
