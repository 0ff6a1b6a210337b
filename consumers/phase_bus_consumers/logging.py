"""The ``logging`` consumer: one line for each thing that happens in a run::

    [2026-01-31 12:00:10.250+00:00] PHASE_COMPLETE: WARMUP | Completed: 100, Cancelled: 0, Duration: 9.81s

:class:`ExampleLoggingHook` writes the same lines from inside a load generator, without a bus.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from phase_bus import (
    ConfigError,
    Consumer,
    Drop,
    EventBase,
    EventHook,
    OutputFile,
    PhaseEvent,
    PhaseProgress,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    RunComplete,
    RunStart,
    printable,
)

logger = logging.getLogger(__name__)


class PhaseLogger(Consumer):
    """Write a line for each event of a phase or run, to a file or to standard output.

    Args:
        log_file: the file to append to; standard output without one.
        verbose: write all counts and the run's id, and lines for progress and receipts too.
        json: write JSON lines: one object per event, with everything in it.
    """

    def __init__(self, log_file: Path | None = None, verbose: bool = False, json: bool = False) -> None:
        self.log_file = log_file
        self.verbose = verbose
        self.json = json
        self._file: OutputFile | None = None

    async def start(self) -> None:
        if self.log_file is not None:
            self._file = self.open_output(self.log_file, "log_file")

    async def _write(self, event: EventBase) -> None:
        if self.json:
            fields = {"timestamp": clock(event.ts_ns), **msgspec.to_builtins(event), "event": event.kind}
            line = json.dumps(fields)
        else:
            line = describe(event, self.verbose)
        if self._file is not None:
            self._file.append(line + "\n")
        else:
            print(line, flush=True)

    async def _write_if_verbose(self, event: EventBase) -> None:
        if self.verbose:
            await self._write(event)

    # One method under several names: the names decide what is subscribed to.
    on_run_start = on_run_complete = on_drop = _write
    on_phase_start = on_phase_sending_complete = on_phase_timeout = on_phase_complete = _write
    on_phase_progress = on_receipt = _write_if_verbose


class ExampleLoggingHook(EventHook):
    """Write a line for each event of a phase to a file.

    Args:
        log_file: the file to append to. If it cannot be written, that is logged, and raised only in a
            process of its own: a hook must not disturb the load generator that calls it.
        verbose: write all counts.
    """

    # The default is that of AIPerf's example plugin, whose users find their lines there.
    def __init__(self, log_file: str | Path = "/tmp/phases.log", verbose: bool = False) -> None:  # noqa: S108
        self.log_file = Path(log_file)
        self.verbose = verbose

    def take(self, event: PhaseEvent) -> None:
        try:
            file = OutputFile.of_process(self.log_file, "log_file")
            file.append(describe(event, self.verbose) + "\n")
        except (OSError, ConfigError) as error:
            if self.alone:
                raise
            logger.error("log_file %s cannot be written: %s", self.log_file, error)


def describe(event: EventBase, verbose: bool = False) -> str:
    """Return an event as one line: time, kind, subject and details."""
    subject, details = _parts(event)
    if verbose:
        details |= _more(event)
    text = ", ".join(f"{name}: {value}" for name, value in details.items() if value not in (None, ""))
    line = f"[{clock(event.ts_ns)}] {event.kind.upper()}: {subject}" + (f" | {text}" if text else "")
    return printable(" ".join(line.splitlines()))  # names and reasons come from outside


def clock(ts_ns: int) -> str:
    """Return a time in ns as local time, with milliseconds and the offset to UTC."""
    return datetime.fromtimestamp(ts_ns / 1e9).astimezone().isoformat(" ", "milliseconds")


def _parts(event: EventBase) -> tuple[str, dict[str, Any]]:
    match event:
        case PhaseEvent():
            return event.phase.name.upper(), _phase_details(event)
        case RunStart():
            return event.run_id, {"Producer": event.producer, "Models": " ".join(event.models)}
        case RunComplete():
            details = {"Status": event.status, "Reason": event.reason, "Records": event.records}
            return event.run_id, {**details, "Dropped": _dropped(event)}
        case Drop():
            lost = sum(event.events.values())
            return event.source, {"Events": lost, "Records": event.records, "Reason": event.reason}
        case Receipt():
            topics = event.topics.values()
            return event.consumer, {
                "Complete": "yes" if event.complete else "no",
                "Handled": sum(topic.handled for topic in topics),
                "Failed": sum(topic.failed for topic in topics),
                "Missed": sum(topic.missed for topic in topics),
            }
    return event.run_id, {}


def _dropped(end: RunComplete) -> str | None:
    if not end.dropped:
        return None
    return f"{end.dropped_records} records in {sum(end.dropped.values())} events"


def _phase_details(event: PhaseEvent) -> dict[str, Any]:
    stats = event.stats
    match event:
        case PhaseStart():
            return {"Expected": _expected(stats)}
        case PhaseProgress():
            part = stats.progress(event.ts_ns)
            return {
                "Progress": None if part is None else f"{part:.0%}",
                "Completed": stats.completed,
                "In flight": stats.in_flight,
                "Errors": stats.errors,
            }
        case PhaseSendingComplete():
            return {"Sent": stats.sent, "Sending": _seconds(stats.sending_duration_s)}
        case PhaseTimeout():
            return {"Completed": stats.completed, "Cut": event.requests_cut}
    return {
        "Completed": stats.completed,
        "Cancelled": stats.cancelled,
        "Duration": _seconds(stats.duration_s) or "unknown",
    }


def _more(event: EventBase) -> dict[str, Any]:
    if isinstance(event, RunStart):  # its subject is the run already
        return {"URLs": " ".join(event.urls), "Trial": event.trial, "Label": event.label}
    if not isinstance(event, PhaseEvent):
        return {} if isinstance(event, RunComplete) else {"Run": event.run_id}
    stats = event.stats
    sessions = (stats.sent_sessions, stats.completed_sessions, stats.cancelled_sessions)
    return {
        "Sent": stats.sent,
        "Completed": stats.completed,
        "Cancelled": stats.cancelled,
        "Errors": stats.errors,
        "In flight": stats.in_flight,
        "Sessions": "/".join(map(str, sessions)) if any(sessions) else None,
        "Expected": _expected(stats),
        "Sending": _seconds(stats.sending_duration_s),
        "Run": event.run_id,
    }


def _expected(stats: PhaseStats) -> str:
    bounds = {
        "requests": stats.expected_requests,
        "sessions": stats.expected_sessions,
        "s": stats.expected_duration_s,
    }
    return " or ".join(f"{bound:g} {unit}" for unit, bound in bounds.items() if bound is not None)


def _seconds(duration_s: float | None) -> str | None:
    return None if duration_s is None else f"{duration_s:.2f}s"
