"""An event in a line, for people, without its time: as log lines and documents have it."""

from __future__ import annotations

from typing import Any

from phase_bus import (
    Drop,
    EventBase,
    PhaseEvent,
    PhaseProgress,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    RunComplete,
    RunStart,
    Verdict,
    printable,
)
from phase_bus.aggregation import readable


def headline(event: EventBase, verbose: bool = False) -> str:
    """Return an event as one line: kind, subject and details; with ``verbose`` all counts, and the run."""
    subject, details = _parts(event)
    if verbose:
        details |= _more(event)
    text = ", ".join(
        f"{name}: {_shown(value)}" for name, value in details.items() if value not in (None, "")
    )
    line = f"{event.kind.upper()}: {subject}" + (f" | {text}" if text else "")
    return printable(" ".join(line.splitlines()))  # names and reasons come from outside


def _shown(value: object) -> object:
    return f"{value:,}" if isinstance(value, int) else value


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
        case Verdict():
            return event.threshold, {
                "State": event.state,
                "Final": "yes" if event.final else None,
                "Value": readable(event.value, event.unit),
                "Limit": readable(event.limit, event.unit),
                "Samples": event.samples,
                "Reason": event.reason,
            }
    return event.run_id, {}


def _dropped(end: RunComplete) -> str | None:
    if not end.dropped:
        return None
    return f"{end.dropped_records:,} records in {sum(end.dropped.values()):,} events"


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
    return " or ".join(f"{bound:,.15g} {unit}" for unit, bound in bounds.items() if bound is not None)


def _seconds(duration_s: float | None) -> str | None:
    return None if duration_s is None else f"{duration_s:.2f}s"
