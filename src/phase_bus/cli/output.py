"""What commands write: tables and JSON on standard output, remarks and logs on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

EXIT_NOT_WHOLE = 3  # a consumer has not handled everything that was published for it
_WIDE = 200
_WIDEST = 10_000

Table_: TypeAlias = Sequence[Sequence[Text]]


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for tables; into a file or pipe they get the width they need."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_WIDE)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    empty: str = "",
    *,
    whole: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print a table that looks like those of the other commands, or what to say if it is empty.

    Cells are shown as they are, whatever brackets are in them. Columns named ``whole`` are never folded,
    as people copy from them; in a terminal that is too narrow the ``spare`` ones go, the first one first.
    """
    cells = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in rows]
    console = make_console()
    if empty and not cells:
        console.print(Text(empty), soft_wrap=True)
        return
    left = list(spare)
    shown = list(columns)
    while (table := _table(columns, shown, cells, whole)) and left:
        if (
            console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
            <= console.width
        ):
            break
        shown.remove(left.pop(0))
    console.print(table)


def _table(columns: Sequence[str], shown: Sequence[str], cells: Table_, whole: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    places = [columns.index(column) for column in shown]
    for column, place in zip(shown, places, strict=True):
        kept = column in whole
        width = max((row[place].cell_len for row in cells), default=0) if kept else None
        table.add_column(column, overflow="fold", no_wrap=kept, min_width=width)
    for row in cells:
        table.add_row(*(row[place] for place in places))
    return table


def format_json(document: Any) -> str:
    """Return a document as JSON that people can read too."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def print_json(document: Any) -> None:
    """Print a document for scripts."""
    print(format_json(document))


def say(text: str) -> None:
    """Print a remark on standard error."""
    print(f"phase-bus: {text}", file=sys.stderr, flush=True)


def local_time(ts_ns: int) -> str:
    """Return a Unix time in ns as date and time of this time zone, to the second."""
    return f"{datetime.fromtimestamp(ts_ns / 1e9).astimezone():%Y-%m-%d %H:%M:%S}"


def duration(started_ns: int, ended_ns: int | None) -> str:
    """Return how long a run took, from Unix times in ns; nothing while it has no end."""
    return f"{(ended_ns - started_ns) / 1e9:.1f} s" if ended_ns else ""


def counted(number: int, word: str) -> str:
    """Return a number with its word: ``1 run``, ``2 runs``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def configure_logging() -> None:
    """Let what a process has to say go to standard error, a readable line each."""
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    ]
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        # The default one takes seconds over a large event, and prints all of it.
        exception_formatter=structlog.dev.plain_traceback,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
