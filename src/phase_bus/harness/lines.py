"""Lines shown beside a benchmark's command, and held back while that has the whole screen."""

from __future__ import annotations

import logging
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import TextIOBase

from rich.console import Console
from rich.text import Text

MOST_HELD = 2000
_MOST_ALERTS = 20
_ALERT = re.compile(r"\balert=\w+")  # as the alerting consumer logs it


class Lines:
    """Shows lines on a console, now or when it may."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._holding = False
        self._held: deque[Text] = deque(maxlen=MOST_HELD)
        self._left_out = 0
        self._alerts: deque[Text] = deque(maxlen=_MOST_ALERTS)
        self._alert_count = 0

    def show(self, line: Text) -> None:
        """Show a line, or keep it until it may be shown."""
        if _ALERT.search(line.plain):
            self._alerts.append(line)
            self._alert_count += 1
        if not self._holding:
            self._print(line)
            return
        self._left_out += len(self._held) == MOST_HELD
        self._held.append(line)

    def begin_line(self) -> None:
        """Leave the line that the benchmark's command has begun, such as a progress bar, if there is one.

        Where the cursor is, only the terminal knows: so many blanks take it to the next line, unless it is
        at the beginning of one, and nothing that stands there is lost.
        """
        console = self._console
        if console.is_terminal and not console.is_dumb_terminal:
            console.file.write(" " * (console.width - 1) + "\r\x1b[K")

    def _print(self, line: Text) -> None:
        self.begin_line()
        self._console.print(line, soft_wrap=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold all lines back, this process's own log among them, and show them in order at the end."""
        with ExitStack() as undo:
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                    undo.callback(handler.setStream, handler.setStream(_AsLines(self)))
            self._holding = True
            try:
                yield
            finally:
                self._holding = False
                self.begin_line()
                if self._left_out:
                    self._console.print(f"({self._left_out} earlier lines are left out)")
                for line in self._held:
                    self._console.print(line, soft_wrap=True)
                self._held.clear()

    def repeat_alerts(self) -> None:
        """Show the alerts again, which may have gone by unseen."""
        if not self._alerts:
            return
        more = f", the last {len(self._alerts)}" if self._alert_count > len(self._alerts) else ""
        self._console.print()
        self._console.print(f"Alerts ({self._alert_count}{more}):", style="bold")
        for line in self._alerts:
            self._console.print(line, soft_wrap=True)


class _AsLines(TextIOBase):
    """A text file whose lines are shown."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._lines.show(Text.from_ansi(line))
        return len(text)
