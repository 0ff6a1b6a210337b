"""The look of plots."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

# Okabe and Ito's colours, which colour-blind people can tell apart too (https://jfly.uni-koeln.de/color).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LOW, HIGH, GOOD, FAILED = COLORS[0], COLORS[1], COLORS[2], "#c1121f"
# The phases' backgrounds, in turn.
BAND = ("rgba(31, 41, 55, 0.035)", "rgba(31, 41, 55, 0.085)")

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_GRID = "#e5e7eb"


class Figure(Struct, frozen=True, kw_only=True):
    """A plot: its name on the page, texts, and plotly's traces and layout.

    Those over the run's time are zoomed together.
    """

    key: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    over_time: bool = False


def layout(x_axis: dict[str, Any], y_title: str, **more: Any) -> dict[str, Any]:
    """Return a plot's layout with this x axis, the title of a y axis that begins at 0, and ``more``.

    Texts in it are HTML: escape what comes from outside.
    """
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": "#9ca3af", "automargin": True}
    return {
        "autosize": True,
        "font": {"family": _FONT, "size": 12, "color": "#1f2937"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 12, "t": 58, "b": 44},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#9ca3af", "activecolor": "#1f2937"},
        "legend": {
            "orientation": "h",
            **{"x": 0.02, "xref": "container", "xanchor": "left"},
            **{"y": 1, "yref": "container", "yanchor": "top"},
        },
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"family": _FONT}},
        "xaxis": {**axis, **x_axis},
        "yaxis": {
            **axis,
            "tickformat": ",~g",
            "title": {"standoff": 12, "text": y_title},
            "rangemode": "tozero",
        },
        **more,
    }
