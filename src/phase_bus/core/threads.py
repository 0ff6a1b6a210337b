"""Threads and how to wake them: compatibility with gevent.

Locust and other load generators on gevent replace :mod:`threading`: what looks like a thread is a
greenlet there, and one that waits in ZeroMQ would hold up the whole program. What the publisher works
with comes from here: Python's own classes, or in a patched program the same, made of the originals.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Any

_AT_ONCE = 256  # bytes, each of a wake-up: few come at once, and a small buffer is a quicker one


def make_lock() -> Any:
    """Return a reentrant lock: a signal handler may publish while the thread it interrupts does."""
    return _original("_thread", "RLock")() if _replaced() else threading.RLock()


def make_event() -> threading.Event | _NativeEvent:
    """Return something that happens once."""
    return _NativeEvent() if _replaced() else threading.Event()


def start_thread(target: Callable[[], None], name: str) -> threading.Thread | _NativeThread:
    """Start a daemon thread."""
    if _replaced():
        return _NativeThread(target)
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Waker:
    """A pipe whose reading end is polled by one thread, and written to by any other.

    Attributes:
        fd: what to poll; readable once :meth:`wake` was called, until :meth:`drain`.
    """

    def __init__(self) -> None:
        self._lock = make_lock()
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)
        self._poll = (_original("select", "poll") if _replaced() else select.poll)()
        self._poll.register(self.fd, select.POLLIN)

    def wake(self) -> None:
        """Wake the thread; from any thread, without waiting."""
        with self._lock:  # the descriptor must not be closed, and be another file's, meanwhile
            if self._write_fd >= 0:
                try:  # noqa: SIM105 - in the benchmark's thread: the other takes twice as long
                    os.write(self._write_fd, b"!")
                except BlockingIOError:
                    pass  # the pipe is full: a wake-up is under way

    def wait(self, timeout_ms: int) -> None:
        """Wait until woken, at most so long, and be ready to be woken again.

        One system call; :func:`zmq.poll` makes two, and looks at what it is given each time.
        """
        if self._poll.poll(timeout_ms):
            self.drain()

    def drain(self) -> None:
        """Be ready to be woken again."""
        try:
            while len(os.read(self.fd, _AT_ONCE)) == _AT_ONCE:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the pipe; :meth:`wake` does nothing from now on."""
        with self._lock:
            os.close(self.fd)
            os.close(self._write_fd)
            self._write_fd = -1

    def forget(self) -> None:
        """Wake nobody: in the child of a fork, where the lock may be held by a thread that is not there."""
        self._lock = make_lock()
        self._write_fd = -1


class _NativeEvent:
    """What of :class:`threading.Event` is used."""

    def __init__(self) -> None:
        self._lock = _original("_thread", "allocate_lock")()  # held until it happens
        self._lock.acquire()

    def set(self) -> None:
        if self._lock.locked():
            self._lock.release()

    def is_set(self) -> bool:
        return not self._lock.locked()

    def wait(self, timeout: float) -> bool:
        if self._lock.acquire(timeout=max(timeout, 0.0)):
            self._lock.release()
            return True
        return False


class _NativeThread:
    """What of :class:`threading.Thread` is used."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._ended = _NativeEvent()
        _original("_thread", "start_new_thread")(self._run, ())

    def join(self, timeout: float) -> None:
        self._ended.wait(timeout)

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._ended.set()


def _replaced() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _original(module: str, name: str) -> Any:
    """Return a member of a module as it was before gevent replaced it."""
    return sys.modules["gevent.monkey"].get_original(module, name)
