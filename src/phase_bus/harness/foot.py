"""Rows at the foot of a terminal that stay where they are, while all else scrolls above them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.text import Text

from phase_bus.core.console import PlainConsole

_SAVE, _RESTORE = "\x1b7", "\x1b8"  # the cursor
_DOWN = "\x1bD"  # to the next row, scrolling at the last one, in the same column
_ALL_ROWS, _ERASE_BELOW, _ERASE_ROW = "\x1b[r", "\x1b[J", "\x1b[2K"
_LEAST_ABOVE = 8  # rows that are left to all else


class Foot:
    """Shows lines in the last rows of a terminal.

    Whoever else writes to the terminal need not know of it: the rows above scroll by themselves. Each time
    is one write, so that nothing comes between its parts. Who draws a screen of its own is in its way.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows = 0  # that are reserved
        self._size = (0, 0)
        self._before: object = None
        self._drawn: list[str] = []

    def show(self, lines: Sequence[Text]) -> None:
        """Show lines; none gives the rows back."""
        width, height = self._console.size
        room = max(height - _LEAST_ABOVE, 0)
        drawn = [self._encoded(line, width) for line in lines[:room]]
        if not drawn:
            self.clear()
            return
        out = ""
        if (width, height) != self._size or len(drawn) > self._rows:
            out += self._given_back() + self._reserved(len(drawn), height)
            self._size, self._rows, self._drawn = (width, height), len(drawn), []
            self._watch_suspension()
        drawn += [""] * (self._rows - len(drawn))
        if drawn != self._drawn:
            first = height - self._rows + 1
            rows = (f"\x1b[{first + n};1H{_ERASE_ROW}{line}" for n, line in enumerate(drawn))
            out += _SAVE + "".join(rows) + _RESTORE
        self._drawn = drawn
        self._write(out)

    def clear(self) -> None:
        """Give the rows back, empty; from any thread."""
        out, self._rows, self._drawn = self._given_back(), 0, []
        self._write(out)
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            self._before = None

    def _reserved(self, rows: int, height: int) -> str:
        return _DOWN * rows + f"\x1b[{rows}A" + _SAVE + f"\x1b[1;{height - rows}r" + _RESTORE

    def _given_back(self) -> str:
        return _SAVE + _ALL_ROWS + _RESTORE + _ERASE_BELOW if self._rows else ""

    def _write(self, out: str) -> None:
        if out:
            self._console.file.write(out)
            self._console.file.flush()

    def _encoded(self, line: Text, width: int) -> str:
        out = StringIO()
        console = PlainConsole(
            file=out,
            width=width,
            force_terminal=True,
            legacy_windows=False,
            no_color=self._console.no_color,
        )
        console.print(line, no_wrap=True, overflow="crop", crop=True, end="")
        return out.getvalue()

    def _watch_suspension(self) -> None:
        """Let Ctrl-Z leave the terminal to the shell as it was."""
        if self._before is None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTSTP, self._suspend)

    def _suspend(self, _signum: int, _frame: object) -> None:
        self._write(self._given_back())
        self._rows, self._drawn = 0, []
        os.kill(os.getpid(), signal.SIGSTOP)
