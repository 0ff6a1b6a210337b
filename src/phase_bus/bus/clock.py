"""Whether the system's clock can be relied upon for ages of days."""

from __future__ import annotations

import time

_JUMP_NS = 10 * 10**9
STEADY_AFTER_S = 600.0
# It goes on while a machine sleeps: that is time that has passed, and no jump of the clock.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ClockWatch:
    """Compares the system's clock with one that cannot be set.

    A clock that was wrong at the machine's start, or that somebody sets, jumps. What is deleted because it
    is old must not be so by such a jump, so nothing is old for a while after one, and after the start.
    """

    def __init__(self) -> None:
        self._ahead_ns, self._since_ns = self._look()

    def is_steady(self) -> bool:
        """Return whether the clock has not jumped for ten minutes."""
        ahead_ns, now_ns = self._look()
        if abs(ahead_ns - self._ahead_ns) > _JUMP_NS:
            self._since_ns = now_ns
        self._ahead_ns = ahead_ns
        return now_ns - self._since_ns >= STEADY_AFTER_S * 1e9

    def _look(self) -> tuple[int, int]:
        """Return by how much the system's clock is ahead of the other one, and what that says."""
        now_ns = time.clock_gettime_ns(_SINCE_BOOT)
        return time.time_ns() - now_ns, now_ns
