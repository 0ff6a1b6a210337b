"""What a plot on a page is made of; templates/page.js draws it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

# Names of colours in templates/page.css. Those of series are Okabe and Ito's, which colour-blind people can
# tell apart too (https://jfly.uni-koeln.de/color); the lighter ones for dark pages are in the same order.
COLORS = ("series-1", "series-2", "series-3", "series-4", "series-5", "series-6")
LOW, HIGH, GOOD, FAILED = COLORS[0], COLORS[1], COLORS[2], "bad"


class Series(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line or row of points of a plot.

    Attributes:
        name: what the legend calls it.
        color: one of the page's colours.
        y: a value for each place on the x axis, None for a gap.
        line: how it is drawn between its values.
        points: whether each value has a mark.
        open: the places whose mark is a ring.
        fill: whether the ground beneath it is coloured.
        hidden: whether it is shown only after a click on its name.
        low, high: the ends of each value's interval, None without one.
        texts: what the legend says of each value, besides it.
    """

    name: str
    color: str
    y: list[float | None]
    line: str = "solid"
    points: bool = False
    open: list[int] = []
    fill: bool = False
    hidden: bool = False
    low: list[float | None] = []
    high: list[float | None] = []
    texts: list[str] = []


class Axis(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An axis: its title, and for x the places, what they are called, and how far it goes.

    Attributes:
        log: whether it is logarithmic, with marks at ``ticks``.
        labels: the names of the places 0, 1, 2 ..., instead of numbers.
        from_zero: whether it begins at 0.
        most: where it ends at the latest.
    """

    title: str
    values: list[float] = []
    range: list[float] = []
    log: bool = False
    ticks: list[float] = []
    labels: list[str] = []
    from_zero: bool = False
    most: float | None = None


class Figure(Struct, frozen=True, kw_only=True):
    """A plot: its name on the page, texts, series and axes.

    Attributes:
        unit: that of its values.
        bands: stretches of the x axis with a background of their own: ``name``, ``from``, ``to``.
        levels: lines at a height: ``y``, ``from``, ``to``, ``color``.
        over_time: whether it is over the run's time: such plots are zoomed together.
    """

    key: str
    title: str
    caption: str
    unit: str
    x: Axis
    y: Axis
    series: list[Series]
    bands: list[dict[str, Any]] = []
    levels: list[dict[str, Any]] = []
    over_time: bool = False


def short(value: float) -> float:
    """Return a number with three digits more than anybody can see, which takes a third of the room."""
    return float(f"{value:.5g}")
