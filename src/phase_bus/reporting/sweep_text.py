"""A sweep as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import RenderableType

from phase_bus.aggregation.text import WIDTH, metrics_table, plain_text
from phase_bus.aggregation.units import format_number, readable_unit

# What an overview of the variations has of each phase: metric, statistic, title.
_OVERVIEW = (
    ("request_throughput", "value", "requests/s"),
    ("output_token_throughput", "value", "output tokens/s"),
    ("error_rate", "value", "errors, %"),
    ("request_latency", "p50", "latency p50, ms"),
    ("request_latency", "p99", "latency p99, ms"),
    ("time_to_first_token", "p50", "TTFT p50, ms"),
    ("time_to_first_token", "p99", "TTFT p99, ms"),
)
OVERVIEW_COLUMNS = ("variation", "trials", *(title for _, _, title in _OVERVIEW))
COLUMNS = ("mean of trials", "95% interval", "n", "pooled")


def sweep_text(sweep: Mapping[str, Any], width: int = WIDTH) -> str:
    """Return a sweep as text of so many columns without colour, latencies in ms."""
    parts: list[RenderableType] = [*_headline(sweep)]
    for variation in sweep["variations"]:
        parts += ["", f"== {heading(variation)} =="]
        for phase in variation["phases"]:
            parts += [phase["name"], metrics_table(COLUMNS, rows(phase["metrics"]))]
    return plain_text([*parts, *notes(sweep)], width)


def heading(variation: Mapping[str, Any]) -> str:
    """Return a variation's name and the number of its complete trials."""
    trials = variation["trials"]
    counting = f"{trials} complete trial{'' if trials == 1 else 's'}"
    left_out = f", {variation['left_out']} left out" if variation["left_out"] else ""
    return f"{variation['name']}: {counting}{left_out}"


def rows(metrics: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str, str, str, str]]:
    """Yield the cells of a phase's table: metric, mean of the trials, interval, n, pooled."""
    for metric in metrics.values():
        unit, factor = readable_unit(metric["unit"])
        for statistic, trials in metric["statistics"].items():
            what = metric["title"] if statistic == "value" else f"{metric['title']}, {statistic}"
            low, high = trials["ci95_low"], trials["ci95_high"]
            interval = "-"
            if low is not None:
                interval = f"{format_number(low * factor)} to {format_number(high * factor)}"
            pooled = (metric["pooled"] or {}).get(statistic)
            mark = "~" if statistic != "mean" and not (metric["pooled"] or {}).get("exact") else ""
            yield (
                f"{what} ({unit})",
                format_number(trials["mean"] * factor),
                interval,
                str(trials["n"]),
                "" if pooled is None else mark + format_number(pooled * factor),
            )


def overview(sweep: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Yield for each phase of each variation its name, the number of trials, and the other columns."""
    for variation in sweep["variations"]:
        several = len(variation["phases"]) > 1
        for phase in variation["phases"]:
            name = f"{variation['name']}, {phase['name']}" if several else variation["name"]
            cells = [_in_overview(phase["metrics"].get(key), statistic) for key, statistic, _ in _OVERVIEW]
            yield name, str(variation["trials"]), *cells


def _in_overview(metric: Mapping[str, Any] | None, statistic: str) -> str:
    if metric is None or statistic not in metric["statistics"]:
        return "-"
    trials, (_, factor) = metric["statistics"][statistic], readable_unit(metric["unit"])
    mean = format_number(trials["mean"] * factor)
    low, high = trials["ci95_low"], trials["ci95_high"]
    if high is None:
        return mean
    above, below = high - trials["mean"], trials["mean"] - low
    if not math.isclose(above, below, rel_tol=0.01):  # it ends where the quantity does, as a share at 0
        return f"{mean} ({format_number(low * factor)} to {format_number(high * factor)})"
    return f"{mean} \u00b1 {format_number(above * factor)}"


def notes(sweep: Mapping[str, Any]) -> Iterable[str]:
    """Yield explanations of the numbers, as far as they are needed."""
    phases = [phase for variation in sweep["variations"] for phase in variation["phases"]]
    metrics = [metric for phase in phases for metric in phase["metrics"].values()]
    if not metrics:
        return
    yield (
        f"interval: {sweep['confidence']:.0%} confidence interval of the mean over n trials, by Student's "
        "t; pooled: over the requests of all trials"
    )
    if any(trials["n"] == 1 for metric in metrics for trials in metric["statistics"].values()):
        yield "n=1: one trial says nothing about the spread between trials, so there is no interval"
    if any(metric["pooled"] and not metric["pooled"]["exact"] for metric in metrics):
        yield "~ from a sketch (too many values to keep)"


def _headline(sweep: Mapping[str, Any]) -> Iterable[str]:
    runs = sweep["runs"]
    left_out = [run for run in runs if run["left_out"]]
    yield (
        f"Sweep {sweep['sweep_id']}: {len(runs)} run{'' if len(runs) == 1 else 's'}, "
        f"{len(sweep['variations'])} variation{'' if len(sweep['variations']) == 1 else 's'}"
    )
    for run in left_out:
        trial = "" if run["trial"] is None else f", trial {run['trial']}"
        yield f"LEFT OUT: run {run['run_id']} ({run['variation']}{trial}): {run['left_out']}"
