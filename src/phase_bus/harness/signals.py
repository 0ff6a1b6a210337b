"""Signals in an event loop, and to other processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from phase_bus.harness.ending import ENDING


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
