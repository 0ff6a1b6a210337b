"""So many of something at once, and so many a second: log lines about what others send, large replies."""

from __future__ import annotations

import logging
import time

_BURST = 5
_EVERY_S = 1.0


class Allowance:
    """So many of something at once, of which there is one more each so many seconds."""

    def __init__(self, most: float, every_s: float) -> None:
        self._most = self._left = most
        self._every_s = every_s
        self._at_s = time.monotonic()

    def take(self, now_s: float | None = None) -> bool:
        """Take one; return False if there is none now. The time is that of :func:`time.monotonic`."""
        now_s = time.monotonic() if now_s is None else now_s
        self._left = min(self._most, self._left + max(now_s - self._at_s, 0.0) / self._every_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Throttle:
    """Logs lines, five at once and then one a second, and says how many were left out."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._allowance = Allowance(_BURST, _EVERY_S)
        self._left_out = 0

    def warn(self, text: str, *arguments: object) -> None:
        """Log a warning, unless there have been too many lines."""
        self.log(logging.WARNING, text, *arguments)

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Log a line, unless there have been too many."""
        if not self._allowance.take():
            self._left_out += 1
            return
        if self._left_out:
            text, arguments = f"{text} (and %d more such lines, left out)", (*arguments, self._left_out)
            self._left_out = 0
        self._logger.log(level, text, *arguments)
