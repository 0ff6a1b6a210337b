"""Stopping a process of ours: on a signal, or when the process that started it is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_to(handler: Callable[[int], object], signums: Iterable[int] = ENDING) -> Iterator[None]:
    """Call a function, in the event loop, for each signal that comes meanwhile."""
    loop = asyncio.get_running_loop()
    for signum in signums:
        loop.add_signal_handler(signum, handler, signum)
    try:
        yield
    finally:
        for signum in signums:
            loop.remove_signal_handler(signum)


def signal_group(group: int, signum: int) -> None:
    """Send a signal to a process group, if it is still there."""
    with suppress(ProcessLookupError):
        os.killpg(group, signum)


def stop_on_signals(stop: Callable[[], object]) -> None:
    """Call a function on the first SIGTERM or SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def on_signal(signum: int) -> None:
        if seen:
            os._exit(128 + signum)
        seen.append(signum)
        stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum)


def stop_on_eof(descriptor: int, stop: Callable[[], object]) -> None:
    """Call a function when a file descriptor ends: the process at its other end is gone."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop()

    loop.add_reader(descriptor, read)
