"""What ``exec``, ``up`` and ``watch`` show while runs go on: a line for what happens.

And one every few seconds of how far a phase is, unless that is in a block of its own (:mod:`.live`): in a
log, in a pipe, and beside a command that has the terminal for itself.
"""

from __future__ import annotations

import asyncio
import re
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
from phase_bus.harness.course import Course
from phase_bus.harness.lines import Lines
from phase_bus.reporting.verdicts import STYLES, quoted, verdict_rows

_EVERY_S = 2.0
_STEP_S = 1.0
KEPT_RUNS = 100  # ``up`` sees run after run
_KEPT_PHASES = 1000  # that go on
LATENCIES = {"request_latency": "latency", "time_to_first_token": "TTFT"}
"""What is shown of latencies: metrics, and what they are called."""
_STYLES = {"completed": "green", "cancelled": "yellow", "failed": "red", "lost": "red"}


class Phase:
    """What is to be shown of one phase that goes on."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.course = Course(LATENCIES)
        self.stats = events.PhaseStats()
        self.records = 0
        self.errors = 0
        self.latencies_ns: dict[str, list[np.ndarray[Any, Any]]] = {n: [] for n in LATENCIES}
        self.shown_records = 0


class Progress(Consumer):
    """Shows how the runs on a bus go.

    Attributes:
        results: the last summaries of runs; these, ``ended`` and ``receipts`` are of the latest runs.
        ended: the ends of runs.
        left_out: how many runs ended before these.
        receipts: the last ones by run and consumer.
        phases: those that go on.
        is_live: whether these are shown in a block of their own, so that they need no lines.
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
        self._states: dict[tuple[str, str, str], events.VerdictState] = {}  # of thresholds, as last shown
        self.phases: dict[tuple[str, int], Phase] = {}
        self.is_live = False
        self._stepped_s = time.monotonic()
        self._runs = 0
        self._shown_s = time.monotonic()

    def say(self, who: str, line: str) -> None:
        """Show a line that one of the processes wrote."""
        # Colours may be meant; of any other sequence nothing must reach the terminal.
        coloured = Text.from_ansi("\x1b".join(map(printable, line.split("\x1b"))))
        coloured.plain = coloured.plain.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
        # Who says it stands before it already.
        own_name = re.search(
            rf" consumer={re.escape(who)}(?!\S)|(?<=\] )phase-bus {re.escape(who)}: ", coloured.plain
        )
        if own_name:
            coloured = coloured[: own_name.start()] + coloured[own_name.end() :]
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
        what = f"timed out: its grace period is over, {event.requests_cut:,} requests were cut"
        self.note((f"{self._title(event)} {what}", "yellow"))

    async def on_phase_complete(self, event: events.PhaseComplete) -> None:
        """Show what came of a phase."""
        stats = event.stats
        duration = f" in {stats.duration_s:.1f} s" if stats.duration_s is not None else ""
        self.note(
            f"{self._title(event)} complete: {counted(stats.completed, 'request')}, "
            f"{counted(stats.errors, 'error')}, "
            f"{stats.cancelled:,} cancelled{duration}"
        )
        self.phases.pop((event.run_id, event.phase.index), None)

    async def on_records(self, event: events.Records) -> None:
        """Count requests and keep their latencies until they are shown."""
        phase = self.phases.get((event.run_id, event.phase.index))
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
        what = f"{sum(event.events.values()):,} events with {event.records:,} records"
        self.note((f"{event.source} dropped {what}: {event.reason}", "red"))

    async def on_run_complete(self, event: events.RunComplete) -> None:
        """Show how a run ended."""
        self.ended[event.run_id] = event
        reason = f" ({event.reason})" if event.reason else ""
        self.note(
            f"run {event.run_id} ",
            (event.status, _STYLES[event.status]),
            f"{reason}: {event.records:,} records in {event.events:,} events",
        )
        for key in [key for key in self.phases if key[0] == event.run_id]:
            del self.phases[key]
        if len(self.ended) > KEPT_RUNS:
            old = next(iter(self.ended))
            del self.ended[old]
            self.left_out += 1
            self.results.pop(old, None)
            self.receipts = {key: said for key, said in self.receipts.items() if key[0] != old}
            self._states = {key: state for key, state in self._states.items() if key[0] != old}

    async def on_receipt(self, event: events.Receipt) -> None:
        """Keep the last receipt of each consumer."""
        self.receipts[event.run_id, event.consumer] = event

    async def on_verdict(self, event: events.Verdict) -> None:
        """Show that the state of a threshold has changed."""
        key = (event.run_id, event.threshold, event.producer)
        if self._states.get(key) == event.state:
            return
        self._states[key] = event.state
        (row,) = verdict_rows([event])
        run = f"{event.run_id} " if self._runs > 1 else ""
        self.note(f"{run}{quoted(row.threshold)} ", (event.state, STYLES[event.state]), f": {row.details}")

    async def on_summary(self, event: events.Summary) -> None:
        """Keep a final result for the end."""
        if "phases" in event.result:
            self.results[event.run_id] = event.result

    def _phase(self, event: events.PhaseEvent | events.Records) -> Phase:
        if len(self.phases) > _KEPT_PHASES:  # their ends were lost
            del self.phases[next(iter(self.phases))]
        key = (event.run_id, event.phase.index)
        if (phase := self.phases.get(key)) is None:
            phase = self.phases[key] = Phase(self._title(event))
        return phase

    def _title(self, event: events.PhaseEvent | events.Records) -> str:
        run = f"{event.run_id} " if self._runs > 1 else ""
        return f"{run}{event.phase.name}"

    def step(self) -> None:
        """Count what has come since the last step, if that was a second ago."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._stepped_s
        if elapsed_s < _STEP_S:
            return
        self._stepped_s = now_s
        for phase in self.phases.values():
            phase.course.add(phase.records - phase.shown_records, elapsed_s, phase.latencies_ns)
            phase.shown_records = phase.records
            for parts in phase.latencies_ns.values():
                parts.clear()

    def _show_from_time_to_time(self, event: events.PhaseEvent | events.Records) -> None:
        if self.is_live:
            return
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
        for name, label in LATENCIES.items():
            values = np.concatenate([np.empty(0), *phase.latencies_ns[name]])
            if len(values):
                p50, p99 = np.percentile(values, (50, 99)) / 1e6
                parts.append(f"{label} p50 {p50:.1f} p99 {p99:.1f} ms")
                phase.latencies_ns[name].clear()
        errors = max(phase.errors, phase.stats.errors)
        phase.shown_records = phase.records
        self.note("  ".join([*parts, ""]), (counted(errors, "error"), "red" if errors else ""))


def counted(number: int, word: str) -> str:
    """Return a number with its word: ``1 error``, ``2,000 errors``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
