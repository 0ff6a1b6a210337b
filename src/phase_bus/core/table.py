"""A table that shows what there is room for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from phase_bus.core.printable import printable

_GAP = 2  # between columns
_NOTHING = frozenset(("", "0", "-"))

Cells: TypeAlias = Sequence[Text]


class FittingTable:
    """A table for a terminal of any width.

    Where there is no room for all of it, columns with nothing but zeros go first, then the ``spare`` ones
    in their order, which are there in full or not at all. Other long texts are folded, if not too narrowly;
    what is ``whole`` never is, as people copy it: the terminal wraps a table that is too wide even so.

    Args:
        columns: the headers.
        rows: the cells of each row; a text of its own may have a style. A line of one that begins with
            spaces keeps them where it is folded.
        whole: the columns that are never folded and never left out.
        spare: the columns that may be left out, the first one first.
        right: the columns that are aligned to the right.
        ruled: whether a line is to be below the headers.
        folded: the width that longer texts are folded to at least.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        whole: Collection[str] = (),
        spare: Sequence[str] = (),
        right: Collection[str] = (),
        ruled: bool = False,
        folded: int = 20,
    ) -> None:
        self.columns = columns
        self.rows: list[Cells] = [[_cell(value) for value in row] for row in rows]
        self._whole, self._right, self._ruled, self._folded = whole, right, ruled, folded
        self._spare = spare
        self._going = [*(name for name in reversed(columns) if self._is_empty(name)), *spare]

    def shown(self, width: int) -> list[str]:
        """Return the columns that there is room for, where there are so many characters."""
        left = list(self.columns)
        for name in self._going:
            if self._least(left) <= width:
                break
            if name in left:
                left.remove(name)
        return left

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table; wider than there is room for only where nothing can be folded."""
        shown = self.shown(options.max_width)
        width = max(options.max_width, self._least(shown))
        yield from console.render(self._made(shown), options.update(max_width=width))

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        """Return how narrow and how wide it may be."""
        most = sum(map(self._widest, self.columns)) + _gaps(self.columns)
        return Measurement(min(self._least(self.shown(0)), most), most).with_maximum(options.max_width)

    def _made(self, shown: Sequence[str]) -> Table:
        gap = _GAP - 1 if self._ruled else _GAP  # the line has a divider
        table = Table(
            box=box.SIMPLE_HEAD if self._ruled else None,
            show_edge=False,
            header_style="bold",
            padding=(0, gap, 0, 0),
            pad_edge=False,
        )
        for name in shown:
            unpadded = gap if name == shown[-1] else 0  # rich adds it to the least width even so
            table.add_column(
                name,
                justify="right" if name in self._right else "left",
                overflow="fold",
                no_wrap=name in self._whole,
                min_width=max(0, self._least_of(name) - unpadded),
            )
        places = [self.columns.index(name) for name in shown]
        for row in self.rows:
            table.add_row(*(_indented(row[place]) for place in places))
        return table

    def _least(self, shown: Sequence[str]) -> int:
        return sum(map(self._least_of, shown)) + _gaps(shown)

    def _least_of(self, name: str) -> int:
        widest = self._widest(name)
        if name in self._whole or name in self._spare:
            return widest
        return min(widest, max(self._folded, cell_len(name)))

    def _widest(self, name: str) -> int:
        lines = (line for cell in self._cells(name) for line in cell.plain.split("\n"))
        return max((cell_len(line) for line in (name, *lines)), default=0)

    def _is_empty(self, name: str) -> bool:
        cells = self._cells(name)
        return name not in self._whole and bool(cells) and all(cell.plain in _NOTHING for cell in cells)

    def _cells(self, name: str) -> list[Text]:
        place = self.columns.index(name)
        return [row[place] for row in self.rows]


def _gaps(columns: Sequence[str]) -> int:
    return _GAP * max(0, len(columns) - 1)


def _indented(cell: Text) -> RenderableType:
    """Return a cell of which a line that begins with spaces keeps them where it is folded."""
    if "\n " not in cell.plain:
        return cell
    parts: list[RenderableType] = []
    for line in cell.split("\n"):
        spaces = len(line.plain) - len(line.plain.lstrip(" "))
        parts.append(Padding(line[spaces:], (0, 0, 0, spaces)))
    return Group(*parts)


def _cell(value: object) -> Text:
    return value if isinstance(value, Text) else Text(printable(str(value)))
