"""What a terminal shows that was sent some text: as much of one as our own sequences need."""

from __future__ import annotations

import re

_PART = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b([78D])|(.)", re.DOTALL)


class Screen:
    """A terminal of so many columns and rows, with what has scrolled off its top.

    Attributes:
        rows: what stands in its rows.
        scrolled: the rows that have left it at the top, the first one first.
    """

    def __init__(self, width: int = 40, height: int = 12) -> None:
        self.width, self.height = width, height
        self.scrolled: list[str] = []
        self._cells = [[" "] * width for _ in range(height)]
        self._row = self._column = 0
        self._saved = (0, 0)
        self._last = height - 1  # the last row that scrolls

    @property
    def rows(self) -> list[str]:
        return ["".join(cells).rstrip() for cells in self._cells]

    @property
    def lines(self) -> list[str]:
        """All that was ever shown, without empty lines."""
        return [line for line in (*self.scrolled, *self.rows) if line]

    def feed(self, text: str) -> None:
        """Show a text as a terminal driver passes it on: a line feed also returns."""
        for numbers, command, short, character in _PART.findall(text):
            if command:
                self._command(command, [int(n) if n else 0 for n in numbers.split(";")])
            elif short == "7":
                self._saved = (self._row, self._column)
            elif short == "8":
                self._row, self._column = self._saved
            elif short == "D":
                self._down()
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._column = 0
                self._down()
            else:
                if self._column == self.width:
                    self._column = 0
                    self._down()
                self._cells[self._row][self._column] = character
                self._column += 1

    def _command(self, command: str, numbers: list[int]) -> None:
        match command:
            case "A":
                self._row = max(self._row - max(numbers[0], 1), 0)
            case "H":
                self._row, self._column = numbers[0] - 1, numbers[1] - 1
            case "r":
                self._last = (numbers[1] if len(numbers) > 1 else self.height) - 1
                self._row = self._column = 0
            case "K" | "J":
                begin = 0 if numbers[0] == 2 else self._column
                self._cells[self._row][begin:] = [" "] * (self.width - begin)
                for cells in self._cells[self._row + 1 :] if command == "J" else ():
                    cells[:] = [" "] * self.width
            case "m":
                pass
            case _:
                raise AssertionError(f"an unknown sequence: {command}")

    def _down(self) -> None:
        if self._row == self._last:
            self.scrolled.append("".join(self._cells.pop(0)).rstrip())
            self._cells.insert(self._last, [" "] * self.width)
        elif self._row < self.height - 1:
            self._row += 1
