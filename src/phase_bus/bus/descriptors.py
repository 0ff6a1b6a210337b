"""File descriptors: each connection takes one, and ZeroMQ copes badly when there are none left."""

from __future__ import annotations

import errno
import logging
import os
import resource
from contextlib import suppress

logger = logging.getLogger("phase_bus.bus")

_SILENT_S = 60.0
_MOST = 0.8  # of the limit, from which on it is told


def raise_limit() -> None:
    """Let this process have as many open files as it may: the usual limit is for other programs' sake."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system that has another limit besides
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class DescriptorWatch:
    """Tells, at most once a minute, that there are soon no file descriptors left, or none.

    It is told early: without any, ZeroMQ's listener for TCP tries as fast as it can to let in who waits,
    and that for Unix sockets ends the process. Only closing all connections would keep them from it.
    """

    def __init__(self) -> None:
        self._silent_until_s = 0.0

    def look(self, now_s: float) -> None:
        """See how many are left. Times are those of :func:`time.monotonic`."""
        if now_s < self._silent_until_s:
            return
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = _used(limit)
        if used < _MOST * limit:
            return
        self._silent_until_s = now_s + _SILENT_S
        logger.error(
            "phase-bus bus: %s %d file descriptors are in use, one for each connection; without any the "
            "bus is slow on tcp:// and ends on ipc://; raise its limit ('ulimit -n', LimitNOFILE= in "
            "systemd), or end clients ('phase-bus status' lists them)",
            "all" if used == limit else f"{used} of",
            limit,
        )


def _used(limit: int) -> int:
    """Return about how many descriptors are in use: a new one has the lowest number that is free."""
    try:
        lowest = os.dup(0)
    except OSError as error:
        return limit if error.errno == errno.EMFILE else 0
    os.close(lowest)
    return lowest
