"""The block that shows, where a terminal is free for it, how runs go just now."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterator

from rich.console import Console
from rich.text import Text

from phase_bus.core.control import Status
from phase_bus.core.printable import printable
from phase_bus.harness.course import curve
from phase_bus.harness.foot import Foot
from phase_bus.harness.progress import LATENCIES, Phase, Progress, counted

EVERY_S = 0.5
_STATUS_S = 2.0
_MOST_PHASES = 3
_LEAST_ROWS = 16
_NAMES = 20  # columns of the name of a phase or a quantity
_NUMBERS = 28  # columns of the numbers before a curve

AskStatus = Callable[[], Awaitable[Status | None]]


def is_free(console: Console) -> bool:
    """Return whether what a console writes to is a terminal that a block can be drawn on."""
    return (
        console.is_terminal
        and not console.is_dumb_terminal
        and console.encoding.startswith("utf")
        and console.height >= _LEAST_ROWS
        and "CI" not in os.environ
    )


class Live:
    """Draws a block at the foot of a terminal, twice a second, while a run goes on.

    It counts nothing itself: what it shows is what :class:`Progress` has seen anyway, and who is behind is
    in the bus's status.

    Args:
        progress: what sees the events of the runs.
        status: asks the bus for its status.
        consumers: the names of those whose lag is to be shown; all, if None.
    """

    def __init__(
        self,
        progress: Progress,
        console: Console,
        status: AskStatus,
        consumers: Collection[str] | None = None,
    ) -> None:
        self._progress = progress
        self._console = console
        self._foot = Foot(console)
        self._status = status
        self._consumers = consumers
        self._lags: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to draw."""
        self._progress.is_live = True
        self._tasks = [
            asyncio.create_task(self._guarded(work)) for work in (self._draw, self._follow_status)
        ]

    async def stop(self) -> None:
        """Draw no more, and give the rows back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._progress.is_live = False
        self.clear()

    def clear(self) -> None:
        """Give the rows back at once; from any thread."""
        self._foot.clear()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do a part of this; if it fails, lines show how runs go, as they do without a block."""
        try:
            await work()
        except Exception as error:
            self._progress.is_live = False
            self.clear()
            self._progress.note((f"the live block has failed: {error!r}", "red"))

    async def _draw(self) -> None:
        while True:
            self._progress.step()
            self._foot.show(self.lines(self._console.width))
            await asyncio.sleep(EVERY_S)

    async def _follow_status(self) -> None:
        while True:
            if self._progress.phases and (status := await self._status()) is not None:
                self._lags = _lags(status)
            await asyncio.sleep(_STATUS_S)

    def lines(self, width: int) -> list[Text]:
        """Return what there is to show in so many columns; nothing while no phase goes on."""
        phases = list(self._progress.phases.values())
        if not phases:
            return []
        shown = phases[-_MOST_PHASES:]
        lines = [Text("─" * width, "dim")]
        for phase in shown:
            lines += _phase_lines(phase, width)
        if len(phases) > len(shown):
            lines.append(Text(f"and {len(phases) - len(shown)} more phases", "dim"))
        lags = {n: lag for n, lag in self._lags.items() if self._consumers is None or n in self._consumers}
        if lags:
            told = ", ".join(f"{printable(name)} {lag:,}" for name, lag in lags.items())
            lines.append(Text.assemble(("  events behind".ljust(_NAMES), "dim"), told))
        return lines


def _lags(status: Status) -> dict[str, int]:
    """Return how many events each consumer, or group, has not yet finished with."""
    lags: dict[str, int] = {}
    for client in status.clients:
        if client.role == "consumer" and client.position is not None and client.state == "ready":
            name = client.group or client.name
            lags[name] = max(status.offset - client.position.offset, lags.get(name, 0))
    return lags


def _phase_lines(phase: Phase, width: int) -> Iterator[Text]:
    stats = phase.stats
    requests = max(phase.records, stats.completed)
    errors = max(phase.errors, stats.errors)
    told = Text.assemble(
        f"  {requests:,} requests  ",
        (counted(errors, "error"), "red" if errors else ""),
    )
    title = (_fitted(printable(phase.title)), "bold")
    progress = stats.progress(time.time_ns())
    if progress is None:
        elapsed_s = 0.0 if stats.start_ns is None else max(time.time_ns() - stats.start_ns, 0) / 1e9
        yield Text.assemble(title, f"{elapsed_s:,.0f} s", told)
    else:
        share = f" {progress:4.0%}"
        length = max(width - _NAMES - len(share) - told.cell_len, 8)
        done = round(progress * length)
        bar = (("━" * done, "cyan"), ("━" * (length - done), "dim"))
        yield Text.assemble(title, *bar, share, told)
    course = phase.course
    rate = course.rate()
    yield _quantity("requests/s", "-" if rate is None else f"{rate:,.1f}", course.rates, width)
    for name, label in LATENCIES.items():
        if (found := course.percentiles(name)) is not None:
            p50, p99 = (value / 1e6 for value in found)
            yield _quantity(label, f"p50 {p50:,.1f}  p99 {p99:,.1f} ms", course.medians[name], width)


def _quantity(label: str, numbers: str, values: Collection[float], width: int) -> Text:
    bars = curve(values, width - _NAMES - _NUMBERS - 1)
    return Text.assemble((f"  {label}".ljust(_NAMES), "dim"), numbers.ljust(_NUMBERS), (bars, "cyan"))


def _fitted(name: str) -> str:
    return (name if len(name) < _NAMES else f"{name[: _NAMES - 2]}…").ljust(_NAMES)
