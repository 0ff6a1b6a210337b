"""The plots of a sweep: each metric against the variation, with the confidence interval as error bars."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from phase_bus.aggregation.units import readable_unit
from phase_bus.reporting.theme import COLORS, GOOD, HIGH, LOW, Figure, layout

# Statistics are told apart by colour; where there are several phases, by the kind of line.
_COLOR = {"value": LOW, "p50": LOW, "p99": HIGH, "mean": GOOD}
_DASH = {"value": "solid", "p50": "solid", "p99": "dash", "mean": "dot"}


def sweep_figures(sweep: Mapping[str, Any]) -> list[Figure]:
    """Return a plot for each metric that some complete trial has."""
    plots: dict[str, tuple[Mapping[str, Any], dict[tuple[str, str], dict[str, Any]]]] = {}
    phases = {phase["name"] for v in sweep["variations"] for phase in v["phases"]}
    for variation in sweep["variations"]:
        for phase in variation["phases"]:
            for name, metric in phase["metrics"].items():
                _, lines = plots.setdefault(name, (metric, {}))
                for statistic, trials in metric["statistics"].items():
                    line = lines.setdefault((phase["name"], statistic), _empty())
                    _add(line, variation["name"], trials, readable_unit(metric["unit"])[1])
    order = [escape(variation["name"]) for variation in sweep["variations"]]
    return [_figure(name, metric, lines, order, len(phases) > 1) for name, (metric, lines) in plots.items()]


def _empty() -> dict[str, Any]:
    return {"x": [], "y": [], "above": [], "text": []}


def _add(line: dict[str, Any], name: str, trials: Mapping[str, Any], factor: float) -> None:
    low, high = trials["ci95_low"], trials["ci95_high"]
    line["x"].append(escape(name))
    line["y"].append(trials["mean"] * factor)
    line["above"].append(None if high is None else (high - trials["mean"]) * factor)
    interval = (
        "n=1, no interval"
        if low is None
        else f"{low * factor:,.4g} to {high * factor:,.4g}, n={trials['n']}"
    )
    line["text"].append(interval)


def _figure(
    name: str,
    metric: Mapping[str, Any],
    lines: Mapping[tuple[str, str], dict[str, Any]],
    order: list[str],
    several_phases: bool,
) -> Figure:
    unit, _ = readable_unit(metric["unit"])
    phases = list(dict.fromkeys(phase for phase, _ in lines))
    traces = []
    for (phase, statistic), line in lines.items():
        color = COLORS[phases.index(phase) % len(COLORS)] if several_phases else _COLOR[statistic]
        dash = _DASH[statistic] if several_phases else "solid"
        words = [phase] if several_phases or statistic == "value" else []
        words += [] if statistic == "value" else [statistic]
        traces.append(
            {
                "type": "scatter",
                "name": escape(" ".join(words)),
                "mode": "lines+markers",
                "x": line["x"],
                "y": line["y"],
                "error_y": {"type": "data", "array": line["above"], "thickness": 1.4, "width": 6},
                "line": {"color": color, "width": 1.8, "dash": dash},
                "marker": {"color": color, "size": 7},
                "text": line["text"],
                "hovertemplate": "%{y:,.4~g} (%{text})<extra>" + escape(" ".join(words)) + "</extra>",
            }
        )
    x_axis = {"type": "category", "categoryorder": "array", "categoryarray": order}
    look = layout(x_axis, {"title": {"text": escape(unit)}, "rangemode": "tozero"})
    look |= {"showlegend": len(traces) > 1, "hovermode": "x unified"}
    caption = "Mean over the trials, with its 95% confidence interval where there are two or more."
    return Figure(key=name, title=metric["title"], caption=caption, data=traces, layout=look)
