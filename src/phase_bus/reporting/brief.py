"""What of a run is told first, in pages and in Markdown: what is wrong with it, and a line a phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phase_bus.aggregation.text import cell, losses
from phase_bus.aggregation.units import format_number
from phase_bus.reporting.source import PastRun

_IN_PHASES = (
    ("request_latency", "p50"),
    ("request_latency", "p99"),
    ("time_to_first_token", "p50"),
    ("time_to_first_token", "p99"),
    ("inter_token_latency", "p50"),
)


def warnings_of(run: PastRun) -> list[str]:
    """Return what a reader must know before reading any number."""
    summary = run.summary
    warnings = []
    if run.end is None:
        warnings.append("The run has not ended: these are the numbers so far.")
    elif summary["status"] != "completed" or run.end.reason:
        reason = f": {run.end.reason.rstrip('.')}" if run.end.reason else ""
        warnings.append(f"The run ended as {summary['status']}{reason}.")
        if run.ended_because:
            warnings.append(f"It {run.ended_because}.")
    warnings += [f"{loss}." for loss in losses(summary)]
    if run.end is not None and not summary["final"] and not summary["missing_records"]:
        announced = f"the run's end announced {summary['expected_records']:,}"
        warnings.append(f"The records are {summary['records']:,}, but {announced}.")
    if not summary["records"]:
        warnings.append("The run has no request records: there is nothing to plot.")
    elif not summary["overall"]["successful"]:
        warnings.append("No request succeeded: there are no latencies.")
    return warnings


def brief_cells(phase: Mapping[str, Any]) -> list[str]:
    """Return a phase's cells in the table of phases, except its name."""
    cells = [f"{phase[name]:,}" for name in ("requests", "successful", "failed")]
    if phase["failed"]:
        cells[-1] += f" ({phase['error_rate']:.2%})"
    for value in (phase["duration_s"], phase["request_throughput"], phase["output_token_throughput"]):
        cells.append("-" if value is None else format_number(value))
    return cells + [cell(phase["metrics"].get(name), statistic) for name, statistic in _IN_PHASES]
