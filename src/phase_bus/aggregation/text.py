"""A summary as text, and the pieces that other forms of a report share with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import RenderableType

from phase_bus.aggregation.units import format_number, readable_unit
from phase_bus.core.console import PlainConsole
from phase_bus.core.table import FittingTable

# These come first; the other metrics follow by name.
_FIRST = (
    "request_latency",
    "time_to_first_token",
    "time_to_second_token",
    "inter_token_latency",
    "output_token_throughput_per_user",
    "output_sequence_length",
    "input_sequence_length",
)
# These are in the lines above the table already.
_SAID = ("request_count", "error_request_count")
_COLUMNS = ("mean", "std", "min", "p50", "p90", "p95", "p99", "max")
# What a narrow terminal has no room for, the first one first.
_SPARE = ("std", "min", "p90", "max", "p95", "n", "pooled")
WIDTH = 100
# Of each phase, and of each run, the most frequent and the first ones: a text is to be read.
_ERRORS, _METRICS, _PHASES = 10, 60, 20
_NAMED = 5  # metrics with values that are set aside
_BRIEF_METRICS = 15  # of those that we do not know, if a run has no others


def render_text(summary: Mapping[str, Any], *, brief: bool = False, width: int = WIDTH) -> str:
    """Return a summary as text without colour, the profiling phases first, latencies in ms.

    Args:
        summary: what :func:`~phase_bus.aggregation.summary.summarize` returned.
        brief: leave out warm-up phases, if there are others, and the metrics that few people look at.
        width: how many columns there are; where there are few, statistics that matter less are left out.
    """
    final = "final" if summary["final"] else "not final"
    parts: list[RenderableType] = [
        f"Run {summary['run_id']}: {summary['status']}, {summary['records']:,} records ({final})",
        *losses(summary),
    ]
    phases = profiling_first(summary["phases"])
    if brief:
        phases = [p for p in phases if p["kind"] != "warmup"] or phases
    shown = with_overall(phases[:_PHASES], summary)
    for phase in shown:
        parts += ["", *_phase_lines(phase)]
        names, more = _shown_metrics(phase, brief)
        if names:
            parts.append(metrics_table(_COLUMNS, (row(phase["metrics"][name], _COLUMNS) for name in names)))
        parts += _set_aside(phase)
        if more:
            parts.append(f"and {more:,} more metrics: --format json has them")
        if phase.get("other_values"):
            parts.append(
                f"{phase['other_values']:,} values of other metrics are left out: there are too many"
            )
    if len(phases) > _PHASES:
        parts += ["", f"and {len(phases) - _PHASES} more phases: --format json has them"]
    parts += inexact(summary, shown)
    return plain_text(parts, width)


def profiling_first(phases: Iterable[Any]) -> list[Any]:
    """Return phases of a summary, those that are measured before the warm-ups."""
    return sorted(phases, key=lambda phase: phase["kind"] == "warmup")


def plain_text(parts: Iterable[RenderableType], width: int = WIDTH) -> str:
    """Return lines and tables as text of so many columns, without colour."""
    out = StringIO()
    console = PlainConsole(file=out, width=width, color_system=None)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def metrics_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> FittingTable:
    """Return a table with one row per metric, its title first."""
    columns = list(columns)
    return FittingTable(
        ("metric", *columns), map(list, rows), spare=_SPARE, right=columns, ruled=True, folded=22
    )


def row(metric: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Return a metric's title, with its unit, and its values in some columns."""
    unit, _ = readable_unit(metric["unit"])
    title = f"{metric['title']} ({unit})" if unit else metric["title"]
    return [title, *(cell(metric, column) for column in columns)]


def cell(metric: Mapping[str, Any] | None, column: str) -> str:
    """Return a value of a metric in the unit that people read; ``~`` marks an inexact percentile."""
    value = None if metric is None else metric[column]
    if metric is None or value is None:
        return "-"
    if column == "count":
        return f"{value:,}"
    mark = "~" if column.startswith("p") and not metric["exact"] else ""
    return mark + format_number(value * readable_unit(metric["unit"])[1])


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Return metrics' names, those first that most people look at first, the others by name."""
    order = {name: place for place, name in enumerate(_FIRST)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def with_overall(phases: Sequence[Any], summary: Mapping[str, Any]) -> list[Any]:
    """Return phases of a summary and, if there are several, what it says of all of them together."""
    return [*phases, summary["overall"]] if len(phases) > 1 else list(phases)


def losses(summary: Mapping[str, Any]) -> list[str]:
    """Return a line for each way in which records or events are missing from a summary."""
    lines = []
    if summary["missing_records"]:
        missing, expected = summary["missing_records"], summary["expected_records"]
        lines.append(f"INCOMPLETE: {missing:,} of {expected:,} published records did not arrive")
    if summary["dropped_records"]:
        dropped, records = summary["dropped_records"], summary["expected_records"]
        lines.append(f"INCOMPLETE: the publisher had to drop {dropped:,} of {dropped + records:,} records")
    elif summary["dropped"]:
        dropped = sum(summary["dropped"].values())
        lines.append(f"INCOMPLETE: the publisher had to drop {dropped:,} events")
    if summary["status"] == "lost":
        lines.append("INCOMPLETE: a publisher vanished, and what it had not delivered is not known")
    return lines


def inexact(summary: Mapping[str, Any], phases: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the explanation of ``~`` if some percentiles of these phases are not exact."""
    if all(metric["exact"] for phase in phases for metric in phase["metrics"].values()):
        return []
    return [f"~ percentiles within {summary['relative_error']:.2%} (too many values to keep)"]


def _set_aside(phase: Mapping[str, Any]) -> list[str]:
    """Return a line about the values of a phase that are in no statistic, if there are any."""
    odd = [metric for metric in phase["metrics"].values() if metric["set_aside"]]
    if not odd:
        return []
    named = ", ".join(metric["title"] for metric in odd[:_NAMED])
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    count = sum(metric["set_aside"] for metric in odd)
    return [f"{count:,} values are set aside, as NaN, infinite or beyond 1e250: {named}{more}"]


def _shown_metrics(phase: Mapping[str, Any], brief: bool) -> tuple[list[str], int]:
    """Return the names of a phase's metrics that a text shows, and how many more there are."""
    names = [name for name in in_reading_order(phase["metrics"]) if name not in _SAID]
    known = [name for name in names if name in _FIRST]
    if brief and known:
        return known, 0
    limit = _BRIEF_METRICS if brief else _METRICS
    return names[:limit], len(names[limit:])


def _phase_lines(phase: Mapping[str, Any]) -> Iterable[str]:
    yield f"== {phase['name']} =="
    rate = phase["success_rate"]
    yield (
        f"Requests: {phase['requests']:,}, successful: {phase['successful']:,}"
        + ("" if rate is None else f" ({rate:.2%})")
        + f", failed: {phase['failed']:,}, of these cancelled: {phase['cancelled']:,}"
    )
    if phase["duration_s"] is not None:
        parts = [f"Duration: {phase['duration_s']:,.2f} s"]
        for key, unit in (("request", "requests/s"), ("output_token", "output tokens/s")):
            value = phase[f"{key}_throughput"]
            if value is not None:
                parts.append(f"{value:,.2f} {unit}")
        yield ", ".join(parts)
    for error in phase["errors"][:_ERRORS]:
        code = "" if error["code"] is None else f" ({error['code']})"
        yield f"  {error['count']:,} x {error['type']}{code}"
    others = sum(error["count"] for error in phase["errors"][_ERRORS:]) + phase.get("other_errors", 0)
    if others:
        yield f"  {others:,} x other types"
