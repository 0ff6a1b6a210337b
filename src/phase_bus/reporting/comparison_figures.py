"""The plots of a comparison: all differences with their intervals, and each run of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from phase_bus.aggregation.units import readable_unit
from phase_bus.comparison.comparison import Compared, Comparison, Side
from phase_bus.core.printable import printable
from phase_bus.reporting.comparison_text import cells, titled
from phase_bus.reporting.theme import COLORS, Axis, Figure, Series, short

_SIDES = {"base": COLORS[0], "candidate": COLORS[1]}
_ROUND = (1, 2, 5)
_TICKS = 6  # about, on the axis of differences


def comparison_figures(comparison: Comparison) -> list[Figure]:
    """Return a plot of the runs' values for each measure."""
    return [_runs(each, comparison) for each in comparison.metrics]


def differences(comparison: Comparison) -> Mapping[str, Any]:
    """Return the plot of the differences, the first measure at the top, for templates/differences.html.

    Places are in percent of its width. What lies beyond its ends, as the interval of very few runs may, is
    drawn at the end.
    """
    low, high = _reach(comparison.metrics)

    def at(value: float) -> float:
        return round((min(max(value, low), high) - low) / (high - low) * 100, 3)

    rows = []
    for each in comparison.metrics:
        ends = (each.low_pct, each.high_pct)
        interval = None if None in ends else [at(end) for end in ends if end is not None]
        rows.append(
            {
                "title": each.title,
                "verdict": each.verdict,
                "told": ", ".join(cells(each)[-2:]),
                "at": at(each.difference_pct),
                "margin": [at(-each.margin_pct), at(each.margin_pct)],
                "interval": interval,
            }
        )
    which = "within the runs" if any(each.within_runs for each in comparison.metrics) else "over runs"
    caption = (
        f"Each difference and its interval {which}, with {comparison.confidence:.0%} confidence for "
        "all together. The band is what does not matter; values left of 0 are lower than the base's."
    )
    ticks = [(at(tick), f"{tick:+g}" if tick else "0") for tick in _ticks(low, high)]
    return {"rows": rows, "ticks": ticks, "zero": at(0.0), "caption": caption}


def _reach(measures: Sequence[Compared]) -> tuple[float, float]:
    """Return from where to where the axis of differences goes."""
    inner = [0.0, *(each.difference_pct for each in measures)]
    inner += [sign * each.margin_pct for each in measures for sign in (-1, 1)]
    outer = [end for each in measures for end in (each.low_pct, each.high_pct) if end is not None]
    low, high = min(inner), max(inner)
    # A wide interval does not press all others together.
    room = 1.5 * (high - low)
    low, high = max(min([low, *outer]), low - room), min(max([high, *outer]), high + room)
    space = 0.05 * (high - low) or 1.0
    return low - space, high + space


def _ticks(low: float, high: float) -> list[float]:
    steps = (digit * 10.0**power for power in count(-6) for digit in _ROUND)
    step = next(step for step in steps if (high - low) / step <= _TICKS)
    first, last = int(low / step), int(high / step)
    return [round(number * step, 9) for number in range(first, last + 1) if low <= number * step <= high]


def _runs(each: Compared, comparison: Comparison) -> Figure:
    """Return the plot of each run's value, with a line at each side's mean."""
    unit, factor = readable_unit(each.unit)
    unit = unit.replace("/sec", "/s")
    sides = (
        ("base", comparison.base, each.base, each.base_value),
        ("candidate", comparison.candidate, each.candidate, each.candidate_value),
    )
    places: list[float] = []
    series: list[Series] = []
    levels: list[dict[str, Any]] = []
    total = sum(len(values) for _, _, values, _ in sides)
    for number, (name, side, values, mean) in enumerate(sides):
        before, after = len(places), total - len(places) - len(values)
        # Beside one another, in the order in which they ran, so that none hides another.
        places += [round(number + (place + 1) / (len(values) + 1) - 0.5, 4) for place in range(len(values))]
        series.append(
            Series(
                name=name,
                color=_SIDES[name],
                y=[*[None] * before, *(short(value * factor) for value in values), *[None] * after],
                line="none",
                points=True,
                texts=[*[""] * before, *_labels(side), *[""] * after],
            )
        )
        edges = {"from": number - 0.42, "to": number + 0.42}
        levels.append({"y": short(mean * factor), "color": _SIDES[name], **edges})
    return Figure(
        key=f"runs-{each.metric}-{each.statistic}",
        title=titled(each),
        caption=f"A point is a run, the line the mean of the side. Verdict: {each.verdict}.",
        unit=unit,
        x=Axis(title="", values=places, range=[-0.6, 1.6], labels=["base", "candidate"]),
        # Runs of one build lie close together; only shares begin at 0, which is what everybody asks.
        y=Axis(title=unit, from_zero=each.in_points, most=100.0 if each.in_points else None),
        series=series,
        levels=levels,
    )


def _labels(side: Side) -> list[str]:
    return [printable(run.run_id) for run in side.runs]
