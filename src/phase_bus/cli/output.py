"""What commands write: tables and JSON on standard output, remarks and logs on standard error."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from io import StringIO
from pathlib import Path
from textwrap import indent
from typing import Any, TextIO, cast

import msgspec
from rich.console import Console

from phase_bus.core.console import PlainConsole
from phase_bus.core.files import replacing_output
from phase_bus.core.printable import printable, printable_json, printable_lines
from phase_bus.core.table import FittingTable
from phase_bus.events import span_s

EXIT_NOT_WHOLE = 3  # a consumer has not handled everything that was published for it
EXIT_THRESHOLD = 4  # a threshold failed, or is unknown in the end
_WIDE = 200
_WIDEST_TEXT = 120


def make_console(*, stderr: bool = False) -> PlainConsole:
    """Return a console for tables; into a file or pipe they get the width they need."""
    file = _remarks() if stderr else None
    console = PlainConsole(file=file)
    return console if console.is_terminal else PlainConsole(file=file, width=_WIDE)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    empty: str = "",
    *,
    whole: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print a table that looks like those of the other commands, or what to say if it is empty.

    Columns named ``whole`` are never folded, as people copy from them; in a terminal that is too narrow,
    columns with nothing but zeros go, then the ``spare`` ones, the first one first.
    """
    table = FittingTable(columns, rows, whole=whole, spare=spare)
    console = make_console()
    if empty and not table.rows:
        console.print(empty, soft_wrap=True)
    else:
        console.print(table)


def text_width(console: Console | None = None) -> int:
    """Return how wide a text with tables is to be: as the terminal is, or 120 columns."""
    return min((console or make_console()).width, _WIDEST_TEXT)


def format_json(document: Any) -> str:
    """Return a document as JSON that people can read too."""
    return printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def print_json(document: Any) -> None:
    """Print a document for scripts."""
    print(format_json(document))


def put_result(result: Any, output: Path | None) -> None:
    """Print a result, a text or a document for JSON, or write it to a file."""
    if output is None:
        if isinstance(result, str):
            sys.stdout.buffer.write(result.encode())  # a page is in UTF-8 wherever it was made
        else:
            print_json(result)
        return
    text = result if isinstance(result, str) else format_json(result) + "\n"
    with replacing_output(output) as aside:
        aside.write_text(text, encoding="utf-8")
    say(f"written to {output}")


def default_output(name: str, form: str) -> Path | None:
    """Return where a result goes that the user named no file for: pages are not for terminals."""
    if form != "html" or not sys.stdout.isatty():
        return None
    in_a_file_name = re.sub(r"[^\w.-]+", "-", name)
    return Path(f"phase-bus-{in_a_file_name}.html")


class _Guarded:
    """A text file; a function is told when it cannot be written, as its reader is gone or the disk full.

    If that returns, what could not be written counts as written.
    """

    def __init__(self, file: TextIO, on_error: Callable[[TextIO, OSError], None]) -> None:
        self._file = file
        self._on_error = on_error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        try:
            return self._file.write(text)
        except OSError as error:
            self._on_error(self._file, error)
            return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._on_error(self._file, error)


def end_with_reader() -> None:
    """Let this process end quietly when the reader of its output is gone, as with ``| head``.

    By a SystemExit, which no handler of a consumer is blamed for: an event that was not written is not
    handled, and comes again if the consumer keeps a checkpoint.
    """

    def end(file: TextIO, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            raise error
        discard_output(file)
        raise SystemExit(0) from None

    sys.stdout = cast("TextIO", _Guarded(sys.stdout, end))


def _remarks() -> TextIO:
    """Return standard error, for what no benchmark may be disturbed by if it cannot be written."""
    return cast("TextIO", _Guarded(sys.stderr, lambda file, _: discard_output(file)))


def discard_output(file: TextIO | None = None) -> None:
    """Let standard output, or another file, go nowhere from now on, with what is still in the buffer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (file or sys.stdout).fileno())
    os.close(nowhere)


def print_line(text: str) -> None:
    """Print a line of a result."""
    print(printable(text), flush=True)


def print_lines(text: str) -> None:
    """Print the lines of a text."""
    print(printable_lines(text), flush=True)


def say(text: str) -> None:
    """Print a remark on standard error."""
    print(f"phase-bus: {printable(text)}", file=_remarks(), flush=True)


def local_time(ts_ns: int) -> str:
    """Return a Unix time in ns as date and time of this time zone, to the second."""
    return f"{datetime.fromtimestamp(ts_ns / 1e9).astimezone():%Y-%m-%d %H:%M:%S}"


def duration(started_ns: int, ended_ns: int | None) -> str:
    """Return how long a run took, from Unix times in ns; nothing while it has no end."""
    seconds = span_s(started_ns, ended_ns)
    return "" if seconds is None else f"{seconds:,.1f} s"


def counted(number: int, word: str) -> str:
    """Return a number with its word: ``1 run``, ``2 runs``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def configure_logging(*, news: bool = True) -> None:
    """Let what a process has to say go to standard error, a readable line each.

    Without ``news`` neither who comes and goes, nor when runs begin and end: somebody else shows that.
    """
    import structlog

    def escape(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}

    def write_traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
        lines = StringIO()
        structlog.dev.plain_traceback(lines, exc_info)
        # Indented, so that no line of an exception's text looks like one of the log.
        out.write(indent(printable_lines(lines.getvalue()), "  "))

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        escape,
    ]
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        # The default one takes seconds over a large event, and prints all of it.
        exception_formatter=write_traceback,
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
    for name in () if news else ("phase_bus.bus.news", "phase_bus.consumer.news"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
