"""The settings of a run: what one has to know to tell it from another, and to run it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from phase_bus.core.command_line import text_without_secrets
from phase_bus.core.printable import printable
from phase_bus.events import PhasePlan, RunStart, span_s
from phase_bus.reporting.source import PastRun

_SHOWN_OPTIONS = 40


def settings_document(run: PastRun) -> dict[str, Any]:
    """Return them for JSON: those that the run's start and plan say, and how long it took.

    ``phases`` is the plan: for each phase what ends it, its concurrency and request rate, None where
    that is not set. Times are Unix times in ns.
    """
    start, end = run.start, run.end
    told: dict[str, Any] = {} if start is None else msgspec.json.decode(msgspec.json.encode(start))
    for name in ("kind", "run_id", "ts_ns"):
        told.pop(name, None)
    if start is not None:
        told["phase_bus_version"] = told.pop("version")
    return {
        **told,
        "urls": _urls(start),
        "phases": [{**msgspec.structs.asdict(plan), "phase": str(plan.phase)} for plan in run.plans],
        "started_ns": None if start is None else start.ts_ns,
        "ended_ns": None if end is None else end.ts_ns,
        "duration_s": _duration_s(run),
        "status": run.summary.get("status", "running"),
        "reason": "" if end is None else end.reason,
    }


def run_settings(run: PastRun) -> list[tuple[str, str]]:
    """Return their titles and texts, without those that are not known; names in them are as they came."""
    return [(title, text) for title, text in _settings(run) if text]


def settings_table(settings: Iterable[tuple[str, str]]) -> Table:
    """Return them as lines for a text, long ones folded beneath their beginning."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in settings:
        table.add_row(title, Text(printable(text)))
    return table


def when(ts_ns: int) -> str:
    """Return a Unix time in ns as local time with its offset to UTC."""
    return datetime.fromtimestamp(ts_ns // 10**9).astimezone().isoformat(sep=" ")


def _settings(run: PastRun) -> Iterator[tuple[str, str]]:
    start, end = run.start, run.end
    if start is not None:
        yield "command", start.command
        yield "load by", start.producer
        yield "models", ", ".join(start.models)
        yield "endpoints", ", ".join(_urls(start))
    yield "concurrency", _of_plans(run.plans, "concurrency")
    yield "request rate", _of_plans(run.plans, "request_rate", "/s")
    yield "phases", "; ".join(map(_plan, run.plans))
    if start is not None:
        yield "label", start.label or ""
        yield "sweep", start.sweep_id or ""
        yield "trial", str(start.trial) if start.trial or (start.sweep_id and start.trial == 0) else ""
        yield "variation", _pairs(start.variation)
        yield "requests", _pairs(start.options)
        yield "host", start.host
        yield "phase-bus", start.version
        yield "started", when(start.ts_ns)
        yield "ended", when(end.ts_ns) if end else "not yet"
    lasted_s = _duration_s(run)
    yield "duration", "" if lasted_s is None else f"{lasted_s:,.1f} s"
    yield "status", _status(run)


def _urls(start: RunStart | None) -> list[str]:
    """Return the endpoints; a run of an earlier version may have passwords in them."""
    return [] if start is None else [text_without_secrets(url) for url in start.urls]


def _duration_s(run: PastRun) -> float | None:
    return None if run.start is None or run.end is None else span_s(run.start.ts_ns, run.end.ts_ns)


def _status(run: PastRun) -> str:
    status = str(run.summary.get("status", "running"))
    return f"{status}: {run.end.reason}" if run.end is not None and run.end.reason else status


def _of_plans(plans: Sequence[PhasePlan], name: str, unit: str = "") -> str:
    """Return what the phases that are measured have, once if it is the same for all."""
    found = {str(p.phase): getattr(p, name) for p in plans if p.phase.kind != "warmup"}
    known = {phase: f"{value:,g}{unit}" for phase, value in found.items() if value is not None}
    if len(known) == len(found) and len(set(known.values())) == 1:
        return next(iter(known.values()))
    return ", ".join(f"{phase}: {text}" for phase, text in known.items())


def _plan(plan: PhasePlan) -> str:
    """Return what is to end a phase, and for a warm-up how it is loaded."""
    parts = [
        f"{value:,g} {unit}"
        for value, unit in (
            (plan.expected_requests, "requests"),
            (plan.expected_sessions, "sessions"),
            (plan.expected_duration_s, "s"),
        )
        if value is not None
    ]
    if plan.phase.kind == "warmup" and plan.concurrency is not None:
        parts.append(f"concurrency {plan.concurrency:,}")
    if plan.phase.kind == "warmup" and plan.request_rate is not None:
        parts.append(f"{plan.request_rate:,g} requests/s")
    if plan.expected_duration_s is not None and plan.grace_period_s is not None:
        parts.append(f"{plan.grace_period_s:,g} s of grace")
    return f"{plan.phase} ({', '.join(parts)})" if parts else str(plan.phase)


def _pairs(values: Mapping[str, Any]) -> str:
    pairs = [f"{key}={_word(value)}" for key, value in values.items()]
    more = len(pairs) - _SHOWN_OPTIONS
    return ", ".join(pairs[:_SHOWN_OPTIONS]) + (f" and {more} more" if more > 0 else "")


def _word(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
