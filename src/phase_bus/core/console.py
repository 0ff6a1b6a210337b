"""A rich console for text that comes from elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from phase_bus.core.printable import printable


class PlainConsole(Console):
    """A console that shows a string as it is, in lines and in the cells of tables.

    Nothing in it is markup, an emoji's name or a number to be highlighted, and what is no character is
    escaped. What is to have a style, or more than one line, is a :class:`~rich.text.Text`.
    """

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as a console does, but cut nothing off: a terminal wraps what is too long for it."""
        super().print(*objects, **{"crop": False, **how})

    def on_broken_pipe(self) -> None:
        """Leave it to the program what a reader who is gone means; the exception goes on."""
        raise BrokenPipeError

    def render_str(self, text: str, *, style: Any = "", **_how: Any) -> Text:
        """Return a string as a text."""
        return Text(printable(text), style)
