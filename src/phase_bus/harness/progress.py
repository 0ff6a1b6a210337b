"""What ``exec`` and ``up`` show while runs go on: a line every few seconds, on standard error.

Lines rather than a redrawn display, because the benchmark's own output goes to the same terminal, and
because a log of them is worth keeping.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from phase_bus import events
from phase_bus.aggregation.windows import find_column
from phase_bus.consumer.consumer import Consumer
from phase_bus.core.printable import printable
from phase_bus.core.records import RecordBatch
from phase_bus.harness.lines import Lines

_EVERY_S = 2.0
KEPT_RUNS = 100  # ``up`` sees run after run
_KEPT_PHASES = 1000  # that go on
_LATENCIES = ("request_latency", "time_to_first_token")
_STYLES = {"completed": "green", "cancelled": "yellow", "failed": "red", "lost": "red"}


class _Phase:
    """What is to be shown of one phase."""

    def __init__(self) -> None:
        self.stats = events.PhaseStats()
        self.records = 0
        self.errors = 0
        self.latencies_ns: dict[str, list[np.ndarray[Any, Any]]] = {n: [] for n in _LATENCIES}
        self.shown_records = 0


class Progress(Consumer):
    """Shows how the runs on a bus go.

    Attributes:
        results: the last summaries of runs; these, ``ended`` and ``receipts`` are of the latest runs.
        ended: the ends of runs.
        left_out: how many runs ended before these.
        receipts: the last ones by run and consumer.
        profiling: set as soon as a profiling phase has begun.
        lines: where it shows them.
    """

    def __init__(self, console: Console) -> None:
        self.lines = Lines(console)
        self.results: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, events.RunComplete] = {}
        self.left_out = 0
        self.receipts: dict[tuple[str, str], events.Receipt] = {}
        self.profiling = asyncio.Event()
        self._phases: dict[tuple[str, int], _Phase] = {}
        self._runs = 0
        self._shown_s = time.monotonic()

    def say(self, who: str, line: str) -> None:
        """Show a line that one of the processes wrote."""
        # Colours may be meant; of any other sequence nothing must reach the terminal.
        coloured = Text.from_ansi("\x1b".join(map(printable, line.split("\x1b"))))
        coloured.plain = coloured.plain.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
        self.lines.show(Text(f"{printable(who)} | ", style="dim") + coloured)

    def note(self, *parts: str | tuple[str, str]) -> None:
        """Show a line of our own, made of texts, some with a style."""
        line = Text.assemble(("phase-bus", "bold cyan"), " | ")
        for part in parts:
            text, style = (part, "") if isinstance(part, str) else part
            line.append(printable(text), style)
        self.lines.show(line)

    async def on_run_start(self, event: events.RunStart) -> None:
        """Show that a run began."""
        self._runs += 1
        what = ", ".join(filter(None, (event.producer, *event.models)))
        self.note(f"run {event.run_id} started{f': {what}' if what else ''}")

    async def on_phase_start(self, event: events.PhaseStart) -> None:
        """Show that a phase began."""
        self._phase(event).stats = event.stats
        self.note(f"{self._title(event)} started")
        if event.phase.kind == "profiling":
            self.profiling.set()
        self._shown_s = time.monotonic()

    async def on_phase_progress(self, event: events.PhaseProgress) -> None:
        """Show how far a phase is, from time to time."""
        self._phase(event).stats = event.stats
        self._show_from_time_to_time(event)

    async def on_phase_sending_complete(self, event: events.PhaseSendingComplete) -> None:
        """Remember the counts."""
        self._phase(event).stats = event.stats

    async def on_phase_timeout(self, event: events.PhaseTimeout) -> None:
        """Show that requests were cut."""
        what = f"timed out: its grace period is over, {event.requests_cut} requests were cut"
        self.note((f"{self._title(event)} {what}", "yellow"))

    async def on_phase_complete(self, event: events.PhaseComplete) -> None:
        """Show what came of a phase."""
        stats = event.stats
        duration = f" in {stats.duration_s:.1f} s" if stats.duration_s is not None else ""
        self.note(
            f"{self._title(event)} complete: {stats.completed} requests, {stats.errors} errors, "
            f"{stats.cancelled} cancelled{duration}"
        )
        self._phases.pop((event.run_id, event.phase.index), None)

    async def on_records(self, event: events.Records) -> None:
        """Count requests and keep their latencies until they are shown."""
        phase = self._phases.get((event.run_id, event.phase.index))
        if phase is None:
            return  # records that trail their phase's end
        batch = RecordBatch(event)
        phase.records += event.count
        phase.errors += len(event.errors)
        for name, parts in phase.latencies_ns.items():
            column = find_column(batch, name)
            if column is not None and column.type in "if":
                parts.append(column.values[np.isfinite(column.values)])
        self._show_from_time_to_time(event)

    async def on_drop(self, event: events.Drop) -> None:
        """Show a loss at once."""
        what = f"{sum(event.events.values())} events with {event.records} records"
        self.note((f"{event.source} dropped {what}: {event.reason}", "red"))

    async def on_run_complete(self, event: events.RunComplete) -> None:
        """Show how a run ended."""
        self.ended[event.run_id] = event
        reason = f" ({event.reason})" if event.reason else ""
        self.note(
            f"run {event.run_id} ",
            (event.status, _STYLES[event.status]),
            f"{reason}: {event.records} records in {event.events} events",
        )
        for key in [key for key in self._phases if key[0] == event.run_id]:
            del self._phases[key]
        if len(self.ended) > KEPT_RUNS:
            old = next(iter(self.ended))
            del self.ended[old]
            self.left_out += 1
            self.results.pop(old, None)
            self.receipts = {key: said for key, said in self.receipts.items() if key[0] != old}

    async def on_receipt(self, event: events.Receipt) -> None:
        """Keep the last receipt of each consumer."""
        self.receipts[event.run_id, event.consumer] = event

    async def on_summary(self, event: events.Summary) -> None:
        """Keep a final result for the end."""
        if "phases" in event.result:
            self.results[event.run_id] = event.result

    def _phase(self, event: events.PhaseEvent | events.Records) -> _Phase:
        if len(self._phases) > _KEPT_PHASES:  # their ends were lost
            del self._phases[next(iter(self._phases))]
        return self._phases.setdefault((event.run_id, event.phase.index), _Phase())

    def _title(self, event: events.PhaseEvent | events.Records) -> str:
        run = f"{event.run_id} " if self._runs > 1 else ""
        return f"{run}{event.phase.name}"

    def _show_from_time_to_time(self, event: events.PhaseEvent | events.Records) -> None:
        now_s = time.monotonic()
        elapsed_s = now_s - self._shown_s
        if elapsed_s < _EVERY_S:
            return
        self._shown_s = now_s
        phase = self._phase(event)
        parts = [self._title(event)]
        if (progress := phase.stats.progress(time.time_ns())) is not None:
            parts.append(f"{progress:.0%}")
        parts.append(f"{max(phase.records, phase.stats.completed):,} requests")
        if phase.records:
            parts.append(f"{(phase.records - phase.shown_records) / elapsed_s:,.0f} req/s")
        for name, label in zip(_LATENCIES, ("latency", "TTFT"), strict=True):
            values = np.concatenate([np.empty(0), *phase.latencies_ns[name]])
            if len(values):
                p50, p99 = np.percentile(values, (50, 99)) / 1e6
                parts.append(f"{label} p50 {p50:.1f} p99 {p99:.1f} ms")
                phase.latencies_ns[name].clear()
        errors = max(phase.errors, phase.stats.errors)
        phase.shown_records = phase.records
        self.note("  ".join([*parts, ""]), (f"{errors} errors", "red" if errors else ""))
