"""Texts of the code as Markdown that reads alike on GitHub and on the site."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

MADE = "<!-- Made from the code by `make reference`; do not edit. -->\n\n"

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


def prose(text: str) -> str:
    """Return a docstring's text: nothing in it is taken for HTML, and Sphinx's roles are plain code."""
    parts = re.split(r"(`[^`]*`)", _ROLE.sub(r"`\1`", text.replace("``", "`")))
    parts[::2] = (html.escape(part, quote=False) for part in parts[::2])
    return "".join(parts)


def code(text: str) -> str:
    """Return code for a table's cell, where the two read a ``|`` between backticks differently."""
    if not text or "|" not in text:
        return text and f"`{text}`"
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"


def cell(text: str) -> str:
    """Return prose for a table's cell, on one line."""
    parts = re.split(r"`([^`]*)`", prose(" ".join(text.split())))
    parts[::2] = (part.replace("|", "&#124;") for part in parts[::2])
    parts[1::2] = (code(part) for part in parts[1::2])
    return "".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, and the blank line after it; without rows nothing."""
    lines = [f"|{'|'.join(f' {entry} ' if entry else ' ' for entry in row)}|\n" for row in rows]
    top = f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n"
    return top + "".join(lines) + "\n" if lines else ""
