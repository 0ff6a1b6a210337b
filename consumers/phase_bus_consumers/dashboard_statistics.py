"""The statistics of a run as the page shows them, and what of them is new to a viewer.

They are made of the summary, be it of the live records or of ``phase-bus report``. Times are in ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phase_bus.aggregation import readable_unit
from phase_bus_consumers.dashboard_runs import METRICS, shown

_PERCENTILES = ("p50", "p90", "p99")
_OVER_TIME = ("p50", "p99")
_MAX_PHASES = 101  # those of a summary, and all of them
_MAX_ERRORS = 50

Columns = dict[str, list[float | None]]


class Statistics:
    """The statistics of a run at one moment.

    Args:
        summary: the run's, by :func:`phase_bus.aggregation.summarize`.
    """

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self._run_id: str = summary["run_id"]
        self._tables = _tables(summary)
        windows = summary["overall"]["windows"]
        self._columns = {} if windows is None else _columns(windows, summary["status"] == "running")
        self._axis = None if windows is None else (windows["start_ns"], windows["width_s"])

    def whole(self) -> dict[str, Any]:
        """Return all of them."""
        return self._from(0)

    def since(self, earlier: Statistics) -> dict[str, Any]:
        """Return them without the windows that an earlier moment's had already."""
        same = self._axis == earlier._axis and self._columns.keys() == earlier._columns.keys()
        return self._from(_first_new(earlier._columns, self._columns) if same else 0)

    def _from(self, first: int) -> dict[str, Any]:
        start_ns, width_s = self._axis or (0, 1.0)
        columns = {name: [_short(v) for v in values[first:]] for name, values in self._columns.items()}
        windows = {"from": first, "start_ns": start_ns, "width_s": width_s, "columns": columns}
        return {"id": self._run_id, **self._tables, "windows": windows}


def _first_new(before: Columns, now: Columns) -> int:
    """Return from which window on columns differ."""
    return min((_first_difference(before[name], values) for name, values in now.items()), default=0)


def _first_difference(before: Sequence[float | None], now: Sequence[float | None]) -> int:
    shared = min(len(before), len(now))
    if before[:shared] == now[:shared]:
        return shared
    return next(n for n in range(shared) if before[n] != now[n])


def _columns(windows: Mapping[str, Any], goes_on: bool) -> Columns:
    count = len(windows["requests"])
    if goes_on and count > 1:
        count -= 1  # the last window is not over: it would look like a fall of the throughput
    columns: Columns = {
        "throughput": windows["throughput"][:count],
        "failed": [failed / windows["width_s"] for failed in windows["failed"][:count]],
    }
    for name in METRICS:
        for statistic in _OVER_TIME:
            if name in windows["metrics"]:
                _, factor = readable_unit(windows["metrics"][name]["unit"])
                values = windows["metrics"][name][statistic][:count]
                columns[f"{name}.{statistic}"] = [v if v is None else v * factor for v in values]
    return columns


def _tables(summary: Mapping[str, Any]) -> dict[str, Any]:
    overall = summary["overall"]
    windows = overall["windows"]
    phases = [*summary["phases"], *([overall] if len(summary["phases"]) > 1 else [])][:_MAX_PHASES]
    errors = [
        {"type": shown(error["type"]), "code": error["code"], "count": error["count"]}
        for error in overall["errors"][:_MAX_ERRORS]
    ]
    listed = sum(error["count"] for error in errors)
    return {
        "records": summary["records"],
        "missing": summary["missing_records"],
        "numbers": [_phase(phase) for phase in phases],
        "errors": errors,
        "other_errors": overall["failed"] - listed,
        "relative_error": max(summary["relative_error"], windows["relative_error"] if windows else 0.0),
    }


def _phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: phase[name] for name in ("kind", "index", "requests", "failed", "duration_s")}
    row |= {name: phase[name] for name in ("request_throughput", "output_token_throughput")}
    row["name"] = shown(phase["name"])
    for name in METRICS:
        metric = phase["metrics"].get(name)
        if metric is not None:
            _, factor = readable_unit(metric["unit"])
            known = {each: metric[each] for each in _PERCENTILES if metric[each] is not None}
            row[name] = {each: _short(value * factor) for each, value in known.items()}
    return row


def _short(value: float | None) -> float | None:
    """Return a number with as many digits as a plot shows."""
    return None if value is None else float(f"{value:.4g}")
