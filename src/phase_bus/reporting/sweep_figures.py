"""The plots of a sweep: each metric against the variation, with its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phase_bus.aggregation.units import readable_unit
from phase_bus.core.printable import printable
from phase_bus.reporting.theme import COLORS, GOOD, HIGH, LOW, Axis, Figure, Series, short

# Statistics differ by colour or, if there are several phases, by the kind of line.
_COLOR = {"value": LOW, "p50": LOW, "p99": HIGH, "mean": GOOD}
_LINE = {"value": "solid", "p50": "solid", "p99": "dashed", "mean": "dotted"}
_CAPTION = "Mean over the trials with its 95% confidence interval; an open circle is a single trial."


def sweep_figures(sweep: Mapping[str, Any]) -> list[Figure]:
    """Return a plot for each metric that some complete trial has."""
    plots: dict[str, _Plot] = {}
    phases = list(dict.fromkeys(phase["name"] for v in sweep["variations"] for phase in v["phases"]))
    for place, variation in enumerate(sweep["variations"]):
        for phase in variation["phases"]:
            for name, metric in phase["metrics"].items():
                plot = plots.setdefault(name, _Plot(name, metric, phases))
                for statistic, trials in metric["statistics"].items():
                    plot.add(place, phase["name"], statistic, trials)
    labels = [printable(variation["name"]) for variation in sweep["variations"]]
    return [plot.figure(labels) for plot in plots.values()]


class _Plot:
    """The plot of one metric: a line for each phase and statistic."""

    def __init__(self, name: str, metric: Mapping[str, Any], phases: list[str]) -> None:
        self._name = name
        self._title = metric["title"]
        self._is_share = metric["unit"] == "fraction"
        self._unit, self._factor = readable_unit(metric["unit"])
        self._phases = phases
        self._points: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}

    def add(self, place: int, phase: str, statistic: str, trials: Mapping[str, Any]) -> None:
        """Add a statistic over the trials of a variation."""
        self._points.setdefault((phase, statistic), {})[place] = trials

    def figure(self, labels: list[str]) -> Figure:
        """Return the plot over variations of these names."""
        places = range(len(labels))
        return Figure(
            key=self._name,
            title=self._title,
            caption=_CAPTION,
            unit=self._unit,
            x=Axis(
                title="", values=list(map(float, places)), range=[-0.5, len(labels) - 0.5], labels=labels
            ),
            y=Axis(title=self._unit, from_zero=True, most=100.0 if self._is_share else None),
            series=[self._series(phase, statistic, places) for phase, statistic in self._points],
        )

    def _series(self, phase: str, statistic: str, places: range) -> Series:
        found = self._points[phase, statistic]
        several = len(self._phases) > 1
        words = [phase] if several or statistic == "value" else []
        number = self._phases.index(phase)
        trials = [found.get(place) for place in places]
        return Series(
            name=printable(" ".join(words + ([] if statistic == "value" else [statistic]))),
            color=COLORS[number % len(COLORS)] if several else _COLOR[statistic],
            line=_LINE[statistic] if several else "solid",
            y=[self._value(each, "mean") for each in trials],
            low=[self._value(each, "ci95_low") for each in trials],
            high=[self._value(each, "ci95_high") for each in trials],
            points=True,
            open=[place for place in places if (each := found.get(place)) is not None and each["n"] == 1],
            texts=["" if each is None else self._interval(each) for each in trials],
        )

    def _value(self, trials: Mapping[str, Any] | None, name: str) -> float | None:
        value = None if trials is None else trials[name]
        return None if value is None else short(value * self._factor)

    def _interval(self, trials: Mapping[str, Any]) -> str:
        if trials["ci95_low"] is None:
            return "n=1, no interval"
        low, high = trials["ci95_low"] * self._factor, trials["ci95_high"] * self._factor
        return f"{low:,.4g} to {high:,.4g}, n={trials['n']}"
