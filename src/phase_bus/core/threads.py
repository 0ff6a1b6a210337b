"""Threads of the operating system, also where gevent has put its own in their place.

Locust and other load generators on gevent replace :mod:`threading`: what looks like a thread is a
greenlet there, and one that waits in ZeroMQ would hold up the whole program. What the publisher works
with comes from here: Python's own classes, or in such a program the same made of what they were made of.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol


class Event(Protocol):
    """What of :class:`threading.Event` is used."""

    def set(self) -> None:
        """Let it have happened."""

    def wait(self, timeout: float) -> bool:
        """Wait until it has happened, in seconds at most; return whether it has."""


class Thread(Protocol):
    """What of :class:`threading.Thread` is used."""

    def join(self, timeout: float) -> None:
        """Wait until it has ended, in seconds at most."""

    def is_alive(self) -> bool:
        """Return whether it has not ended yet."""


def make_lock() -> Any:
    """Return a reentrant lock: a signal handler may publish while the thread it interrupts does."""
    return _original("RLock")() if _replaced() else threading.RLock()


def make_event() -> Event:
    """Return something that happens once."""
    return _NativeEvent() if _replaced() else threading.Event()


def start_thread(target: Callable[[], None], name: str) -> Thread:
    """Start a daemon thread."""
    if _replaced():
        return _NativeThread(target)
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class _NativeEvent:
    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()  # held until it happens
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
    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._ended = _NativeEvent()
        _original("start_new_thread")(self._run, ())

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


def _original(name: str) -> Any:
    """Return a member of ``_thread`` as it was before gevent replaced it."""
    return sys.modules["gevent.monkey"].get_original("_thread", name)
