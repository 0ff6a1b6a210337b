"""The plots of a sweep: each metric against the variation, with the confidence interval as error bars."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from phase_bus.aggregation.units import readable_unit
from phase_bus.reporting.theme import COLORS, GOOD, HIGH, LOW, Figure, layout

# Statistics differ by colour or, if there are several phases, by the kind of line.
_COLOR = {"value": LOW, "p50": LOW, "p99": HIGH, "mean": GOOD}
_DASH = {"value": "solid", "p50": "solid", "p99": "dash", "mean": "dot"}
_CAPTION = "Mean over the trials with its 95% confidence interval; an open circle is a single trial."


def sweep_figures(sweep: Mapping[str, Any]) -> list[Figure]:
    """Return a plot for each metric that some complete trial has."""
    plots: dict[str, _Plot] = {}
    phases = list(dict.fromkeys(phase["name"] for v in sweep["variations"] for phase in v["phases"]))
    for variation in sweep["variations"]:
        for phase in variation["phases"]:
            for name, metric in phase["metrics"].items():
                plot = plots.setdefault(name, _Plot(name, metric, phases))
                for statistic, trials in metric["statistics"].items():
                    plot.add(variation["name"], phase["name"], statistic, trials)
    order = [escape(variation["name"]) for variation in sweep["variations"]]
    return [plot.figure(order) for plot in plots.values()]


class _Plot:
    """The plot of one metric: a line for each phase and statistic."""

    def __init__(self, name: str, metric: Mapping[str, Any], phases: list[str]) -> None:
        self._name = name
        self._title = metric["title"]
        self._unit, self._factor = readable_unit(metric["unit"])
        self._phases = phases
        self._points: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}

    def add(self, variation: str, phase: str, statistic: str, trials: Mapping[str, Any]) -> None:
        """Add a statistic over the trials of a variation."""
        self._points.setdefault((phase, statistic), []).append((variation, trials))

    def figure(self, order: list[str]) -> Figure:
        """Return the plot, with the variations in the given order."""
        traces = [trace for phase, statistic in self._points for trace in self._traces(phase, statistic)]
        x_axis = {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": order,
            "range": [-0.5, len(order) - 0.5],
        }
        look = layout(x_axis, escape(self._unit), showlegend=len(self._points) > 1, hovermode="x unified")
        if not look["showlegend"]:
            look["margin"]["t"] = 12
        return Figure(key=self._name, title=self._title, caption=_CAPTION, data=traces, layout=look)

    def _traces(self, phase: str, statistic: str) -> list[dict[str, Any]]:
        """Return a line, and the error bars of its points that have one."""
        points = self._points[phase, statistic]
        several = len(self._phases) > 1
        words = [phase] if several or statistic == "value" else []
        name = escape(" ".join(words + ([] if statistic == "value" else [statistic])))
        number = self._phases.index(phase)
        color = COLORS[number % len(COLORS)] if several else _COLOR[statistic]
        dash = _DASH[statistic] if several else "solid"
        line = {
            **self._places(points),
            "name": name,
            "legendgroup": name,
            "mode": "lines+markers",
            "line": {"color": color, "width": 1.8, "dash": dash},
            "marker": {
                "color": color,
                "size": 8,
                "symbol": ["circle-open" if trials["n"] == 1 else "circle" for _, trials in points],
            },
            "text": [self._interval(trials) for _, trials in points],
            "hovertemplate": "%{y:,.4~g} (%{text})<extra>" + name + "</extra>",
        }
        # A separate trace: plotly draws a missing error as one of zero.
        known = [(variation, trials) for variation, trials in points if trials["ci95_high"] is not None]
        above = [(trials["ci95_high"] - trials["mean"]) * self._factor for _, trials in known]
        below = [(trials["mean"] - trials["ci95_low"]) * self._factor for _, trials in known]
        bars = {
            **self._places(known),
            "legendgroup": name,
            "showlegend": False,
            "hoverinfo": "skip",
            "mode": "lines",
            "line": {"width": 0},
            "error_y": {
                "type": "data",
                "array": above,
                "arrayminus": below,
                "color": color,
                "thickness": 1.4,
                "width": 6,
            },
        }
        return [line, bars]

    def _places(self, points: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        return {
            "type": "scatter",
            "x": [escape(variation) for variation, _ in points],
            "y": [trials["mean"] * self._factor for _, trials in points],
        }

    def _interval(self, trials: Mapping[str, Any]) -> str:
        if trials["ci95_low"] is None:
            return "n=1, no interval"
        low, high = trials["ci95_low"] * self._factor, trials["ci95_high"] * self._factor
        return f"{low:,.4g} to {high:,.4g}, n={trials['n']}"
