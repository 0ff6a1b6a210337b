"""Waking a thread that waits in a poll."""

from __future__ import annotations

import os
from contextlib import suppress

from phase_bus.core import threads


class Waker:
    """A pipe whose reading end is polled by one thread, and written to by any other.

    Attributes:
        fd: what to poll; readable once :meth:`wake` was called, until :meth:`drain`.
    """

    def __init__(self) -> None:
        self._lock = threads.make_lock()
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)

    def wake(self) -> None:
        """Wake the thread; from any thread, without waiting."""
        with self._lock:  # the descriptor must not be closed, and be another file's, meanwhile
            if self._write_fd >= 0:
                with suppress(BlockingIOError):  # the pipe is full: a wake-up is under way
                    os.write(self._write_fd, b"!")

    def drain(self) -> None:
        """Be ready to be woken again."""
        with suppress(BlockingIOError):
            while len(os.read(self.fd, 4096)) == 4096:
                pass

    def close(self) -> None:
        """Close the pipe; who wakes from now on wakes nobody."""
        with self._lock:
            os.close(self.fd)
            os.close(self._write_fd)
            self._write_fd = -1

    def forget(self) -> None:
        """After a fork, in the child: wake nobody. The lock may be held by a thread that is not here."""
        self._lock = threads.make_lock()
        self._write_fd = -1
