"""The page of what consumers write: the summary, tables, alerts."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec

from phase_bus.aggregation import RunResult, RunState
from phase_bus.testing import make_run
from phase_bus_consumers.alerting_conditions import Alert, AlertKind, AlertState
from phase_bus_consumers.sql_rows import Tables
from scripts.reference.api import page_from
from scripts.reference.markdown import code, table

_SHOWN = ("request_latency",)  # of the metrics


def outputs_page() -> str:
    """Return the page."""
    return page_from("outputs.md", example=example, sql=sql_tables, alert=alert)


def example() -> str:
    """Return the summary of a run that was made up, shortened, as a block of JSON."""
    run = make_run()
    result = RunResult(RunState(run[0].run_id))
    for event in run:
        result.take(event)
    found = result.summary()
    *_, phase = found["phases"]
    phase["metrics"] = {name: phase["metrics"][name] for name in _SHOWN}
    windows = phase["windows"]
    windows["metrics"] = {name: _two(windows["metrics"][name]) for name in _SHOWN}
    shown = {**found, "phases": [{**phase, "windows": _two(windows)}], "overall": {}}
    text = json.dumps(_rounded(shown), indent=2)
    return f"```json\n{text}\n```\n"


def _two(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[:2] if isinstance(entry, list) else entry for name, entry in columns.items()}


def _rounded(part: Any) -> Any:
    """Return numbers with few digits: an example is read."""
    if isinstance(part, dict):
        return {name: _rounded(entry) for name, entry in part.items()}
    if isinstance(part, list):
        return [_rounded(entry) for entry in part]
    return float(f"{part:.6g}") if isinstance(part, float) else part


def sql_tables() -> str:
    """Return a table of columns for each of the database's tables."""
    parts = []
    for each in Tables("").metadata.tables.values():
        rows = ((code(c.name), str(c.type).lower(), "yes" if c.primary_key else "") for c in each.columns)
        parts.append(f"### {each.name}\n\n" + table(("column", "type", "in the key"), rows))
    return "\n".join(parts)


def alert() -> str:
    """Return a table of an alert's keys."""
    choices = {"kind": get_args(AlertKind), "state": get_args(AlertState)}
    rows = [
        (code(f.name), ", ".join(map(code, choices.get(f.name, ()))) or _MEANS[f.name])
        for f in msgspec.structs.fields(Alert)
    ]
    return table(("key", "value"), rows)


_MEANS = {
    "message": "what happened, in a sentence",
    "run_id": "the run",
    "phase": "the phase; empty if it concerns the whole run",
    "ts_ns": "when it happened, Unix time in ns",
    "details": "the numbers behind it, with units in their names",
    "threshold": "the threshold, if it concerns one; else left out",
}
