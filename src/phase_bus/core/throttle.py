"""Log lines about what others send: a few a second, however much comes."""

from __future__ import annotations

import logging
import time

_BURST = 5
_EVERY_S = 1.0


class Throttle:
    """Logs lines, five at once and then one a second, and says how many were left out."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._left = float(_BURST)
        self._at_s = time.monotonic()
        self._left_out = 0

    def warn(self, text: str, *arguments: object) -> None:
        """Log a warning, unless there have been too many lines."""
        self.log(logging.WARNING, text, *arguments)

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Log a line, unless there have been too many."""
        now_s = time.monotonic()
        self._left = min(_BURST, self._left + (now_s - self._at_s) / _EVERY_S)
        self._at_s = now_s
        if self._left < 1:
            self._left_out += 1
            return
        self._left -= 1
        if self._left_out:
            text, arguments = f"{text} (and %d more such lines, left out)", (*arguments, self._left_out)
            self._left_out = 0
        self._logger.log(level, text, *arguments)
