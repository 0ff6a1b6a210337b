"""What all benchmarks share: rounds that alternate, medians with their spread, tables, JSON, processes.

A benchmark is a module with a ``main()`` that prints tables and returns a :class:`Report`. Its sides
take turns within the same minute (A B A B ...), so that whatever else the machine does strikes all of
them; ratios are taken within a round, between neighbours in time.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table as RichTable

ROOT = Path(__file__).resolve().parents[1]
READY_S = 30.0


class Spread(Struct, frozen=True):
    """The median of several rounds, and the least and largest of them."""

    median: float
    low: float
    high: float

    def show(self, scale: float = 1.0) -> str:
        """Return ``median (low..high)``, each divided by ``scale``."""
        return f"{_short(self.median / scale)} ({_short(self.low / scale)}..{_short(self.high / scale)})"


class Table(Struct):
    """One table of results; all cells are text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


class Report(Struct):
    """What one benchmark found.

    Attributes:
        name: the benchmark's module.
        question: what it answers.
        tables: for people.
        figures: for programs, and to be held against the budgets.
        notes: what must be known to read it.
        took_s: how long it took.
        form: how much was done: full, short or quick.
    """

    name: str
    question: str
    tables: list[Table] = []
    figures: dict[str, Spread] = {}
    notes: list[str] = []
    took_s: float = 0.0
    form: str = ""


class Plan(Struct, frozen=True):
    """How much to do.

    Attributes:
        rounds: how often each side has its turn, besides a first turn that is not counted.
        scale: what counts and durations are multiplied with.
        limit_s: no new round begins after this time, for one comparison,
        least_rounds: unless there were fewer than these.
    """

    rounds: int = 7
    scale: float = 1.0
    limit_s: float = 60.0
    least_rounds: int = 3

    def count(self, full: int) -> int:
        """Return a count of the full form, scaled."""
        return max(int(full * self.scale), 1)


FORMS = {
    "full": Plan(),
    "short": Plan(rounds=5, scale=0.2, limit_s=5.0),
    "quick": Plan(rounds=3, scale=0.1, limit_s=2.0, least_rounds=1),
}


def spread(values: Iterable[float]) -> Spread:
    """Return the median, least and largest of some values, of which there is at least one."""
    some = list(values)
    return Spread(statistics.median(some), min(some), max(some))


def alternate(sides: Mapping[str, Callable[[], float]], plan: Plan) -> dict[str, list[float]]:
    """Let all sides take turns, round after round; return each side's values, one a round.

    The first turn of each is to warm up and not counted.
    """
    deadline_s = time.monotonic() + plan.limit_s
    values: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for done in range(plan.rounds):
        if done >= plan.least_rounds and time.monotonic() > deadline_s:
            break
        for name, side in sides.items():
            values[name].append(side())
    return values


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the ratio of two sides, round by round."""
    return spread(a / b for a, b in zip(above, below, strict=True))


def run(name: str, question: str, measure: Callable[[Plan, Report], None]) -> Report:
    """Do what every benchmark's ``main()`` does: read the command line, measure, print, write JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=question)
    parser.add_argument("--form", choices=FORMS, default="full", help="how much to do")
    parser.add_argument("--json", type=Path, help="write the JSON to this file instead of printing it")
    options = parser.parse_args()
    report = Report(name, question, form=options.form)
    started_s = time.monotonic()
    measure(FORMS[options.form], report)
    report.took_s = round(time.monotonic() - started_s, 1)
    show(report)
    encoded = msgspec.json.encode(report)
    if options.json is not None:
        options.json.write_bytes(encoded)
    else:
        sys.stdout.write(encoded.decode() + "\n")
    return report


def show(report: Report) -> None:
    """Print a report's tables and notes."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    console.print(f"[bold]{report.name}[/]: {report.question} ({report.took_s:g} s)")
    for table in report.tables:
        rich = RichTable(title=table.title, title_justify="left", caption=table.note or None)
        for column, heading in enumerate(table.header):
            rich.add_column(heading, justify="left" if column == 0 else "right")
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
    for note in report.notes:
        console.print(f"- {note}", markup=False)


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines = [f"**{table.title}**", ""]
    lines.append("| " + " | ".join(table.header) + " |")
    lines.append("|---|" + "---:|" * (len(table.header) - 1))
    lines.extend("| " + " | ".join(row) + " |" for row in table.rows)
    if table.note:
        lines.extend(["", table.note])
    return "\n".join(lines) + "\n"


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads of a process so far, in seconds (Linux; 0 elsewhere)."""
    try:  # clock_getcpuclockid(3): how the kernel numbers other processes' clocks
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


class Child:
    """A process of its own that plays one part; ended by its pid when the ``with`` block ends.

    Args:
        part: a function of a module; its first argument is a connection on which it says when it is
            ready, by sending something (an address, for instance).
        arguments, named: its other arguments.

    Attributes:
        context: how processes are started.
    """

    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")

    def __init__(self, part: Callable[..., None], *arguments: Any, **named: Any) -> None:
        self._ours, theirs = self.context.Pipe()
        start = self.context.Process
        self._process = start(target=part, args=(theirs, *arguments), kwargs=named, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def connection(self) -> Connection:
        """The connection to it."""
        return self._ours

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def ready(self) -> Any:
        """Wait until it is ready; return what it said.

        Raises:
            RuntimeError: if it was not ready in time, or died.
        """
        try:
            if self._ours.poll(READY_S):
                return self._ours.recv()
        except EOFError:
            pass
        raise RuntimeError(f"{self._process.name} (pid {self._process.pid}) did not become ready")

    def cpu_s(self) -> float:
        """Return the CPU time of all its threads so far, in seconds (Linux; 0 elsewhere)."""
        return cpu_s(self.pid)

    def close(self) -> None:
        """End it: politely, then not."""
        self._process.terminate()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._ours.close()


def share_imports(*modules: str) -> None:
    """Start children from a process that has imported these modules, instead of from nothing."""
    Child.context = multiprocessing.get_context("forkserver")
    Child.context.set_forkserver_preload(list(modules))


def shared_counts(count: int) -> Any:
    """Return integers in memory that children share: each writes its own, the parent reads them all."""
    return RawArray("q", count)


@contextmanager
def directory() -> Iterator[str]:
    """Yield a short-named directory for sockets, removed afterwards."""
    path = tempfile.mkdtemp(prefix="pbb-", dir="/tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def installed(module: str) -> Any:
    """Return a module that need not be installed, None if it is not."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def wait_for(condition: Callable[[], bool], timeout_s: float, step_s: float = 0.0003) -> bool:
    """Wait until a condition holds; return whether it does in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(step_s)
    return True


def _short(number: float) -> str:
    if number and abs(number) < 1e-3:
        return f"{number:.1e}"
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3
    return f"{number:,.{digits}f}"
