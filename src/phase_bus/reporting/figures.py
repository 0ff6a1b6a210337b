"""The plots of a run, as the plain data and layout that plotly draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from phase_bus.aggregation.packing import FloatArray
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.text import in_reading_order
from phase_bus.aggregation.units import describe, readable_unit
from phase_bus.reporting.theme import BAND, COLORS, FAILED, GOOD, HIGH, LOW, Figure, layout

LATENCY = "request_latency"
# The smallest and the largest number of bins of the distribution, and of the fine bins it is made from.
_BINS = (12, 80)
_FINE_BINS = 2000
_DECADE = 10.0
# Points get markers if there are few of them, or if one stands alone between gaps.
_MARKERS_UP_TO = 120
# The share of the width that a phase's name may need; one that is nearer to the last is drawn higher.
_NAME_SHARE = 0.15


def run_figures(summary: Mapping[str, Any], phases: Sequence[PhaseState] | None) -> list[Figure]:
    """Return the plots of a run's summary; without the states of its phases there is no distribution."""
    windows = summary["overall"].get("windows")
    over_time = None if windows is None else _OverTime(windows, summary["phases"])
    figures = [] if over_time is None else over_time.latencies([LATENCY])
    if phases is not None:
        figures += _distribution(summary, phases)
    if over_time is not None:
        figures.append(over_time.throughput())
        figures += over_time.latencies(in_reading_order(set(windows["metrics"]) - {LATENCY}))
    return figures


class _OverTime:
    """Plots over the time since the first phase began."""

    def __init__(self, windows: Mapping[str, Any], phases: Sequence[Mapping[str, Any]]) -> None:
        self._windows = windows
        count, width_s = len(windows["requests"]), windows["width_s"]
        self._window = "second" if width_s == 1 else f"window of {width_s:g} s"
        starts_ns = (_first(phase["start_ns"], phase["first_request_ns"]) for phase in phases)
        # The first request may end, and so the windows begin, long after the phase began.
        self._start_ns: int = min([windows["start_ns"], *(ns for ns in starts_ns if ns is not None)])
        before_s = (windows["start_ns"] - self._start_ns) / 1e9
        span_s = before_s + count * width_s
        self._scale: float
        self._unit, self._scale = ("s", 1.0) if span_s <= 600 else ("min", 60.0)
        if span_s > 5 * 3600:
            self._unit, self._scale = "h", 3600.0
        self._x = [round((before_s + (n + 0.5) * width_s) / self._scale, 6) for n in range(count)]
        self._range: list[float] = [0.0, span_s / self._scale]
        self._shapes, self._annotations = self._mark(phases)

    def latencies(self, names: Iterable[str]) -> list[Figure]:
        """Return a plot of the median and the 99th percentile of each of these metrics."""
        figures = []
        for name in names:
            metric = self._windows["metrics"].get(name)
            if metric is None or not any(metric["count"]):
                continue
            unit, factor = readable_unit(metric["unit"])
            traces = [
                self._line(f"p{p}", _array(metric[f"p{p}"]) * factor, color, unit)
                for p, color in ((99, HIGH), (50, LOW))
            ]
            caption = (
                f"Of the requests that ended in each {self._window}, the median and the 99th percentile."
            )
            figures.append(self._figure(f"{describe(name).title} over time", caption, traces, unit, name))
        return figures

    def throughput(self) -> Figure:
        """Return a plot of successful and failed requests per second."""
        failed = _array(self._windows["failed"]) / self._windows["width_s"]
        traces = [
            self._line("successful", _array(self._windows["throughput"]), GOOD, "requests/s"),
            self._line("failed", failed, FAILED, "requests/s"),
        ]
        traces[-1] |= {"fill": "tozeroy", "fillcolor": f"{FAILED}33"}
        caption = (
            f"Requests per second that ended in each {self._window}; the first and last are partly filled."
        )
        return self._figure("Throughput and errors over time", caption, traces, "requests/s", "throughput")

    def _line(self, name: str, values: FloatArray, color: str, unit: str) -> dict[str, Any]:
        return {
            "type": "scatter",
            "name": name,
            "x": self._x,
            # Three digits more than anybody can see, and a third of the size.
            "y": [None if math.isnan(value) else float(f"{value:.5g}") for value in values],
            "mode": "lines+markers" if _needs_markers(values) else "lines",
            "line": {"color": color, "width": 1.8},
            "marker": {"color": color, "size": 5},
            "hovertemplate": f"{name} %{{y:,.4~g}} {escape(unit)}<extra></extra>",
        }

    def _figure(
        self, title: str, caption: str, traces: list[dict[str, Any]], y_title: str, key: str
    ) -> Figure:
        x_axis = {
            "title": {"text": f"time since the start ({self._unit})"},
            "range": self._range,
            "hoverformat": ".4~g",
        }
        look = layout(
            x_axis,
            escape(y_title),
            shapes=self._shapes,
            annotations=self._annotations,
            hovermode="x unified",
        )
        return Figure(key=key, title=title, caption=caption, data=traces, layout=look, over_time=True)

    def _mark(self, phases: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        """Return a band in the background for each phase, and their names above."""
        shapes: list[Any] = []
        annotations: list[Any] = []
        low = -math.inf  # where the last name on the lower line begins
        for number, phase in enumerate(phases):
            start_ns = _first(phase["start_ns"], phase["first_request_ns"])
            end_ns = _first(phase["end_ns"], phase["last_request_ns"])
            if start_ns is None or end_ns is None:
                continue
            x0, x1 = (self._place(t) for t in (start_ns, end_ns))
            band = {"type": "rect", "yref": "paper", "x0": x0, "x1": x1, "y0": 0, "y1": 1}
            shapes.append(
                {**band, "layer": "below", "line": {"width": 0}, "fillcolor": BAND[number % len(BAND)]}
            )
            crowded = x0 - low < _NAME_SHARE * self._range[1]
            low = low if crowded else x0
            annotations.append(
                {
                    "x": x0,
                    "y": 1,
                    "yref": "paper",
                    "xanchor": "left",
                    "yanchor": "bottom",
                    "yshift": 14 if crowded else 0,
                    "text": escape(phase["name"]),
                    "showarrow": False,
                    "font": {"size": 11, "color": "#57606a"},
                }
            )
        return shapes, annotations

    def _place(self, ts_ns: int) -> float:
        at = (ts_ns - self._start_ns) / 1e9 / self._scale
        return min(max(at, self._range[0]), self._range[1])


def _distribution(summary: Mapping[str, Any], phases: Sequence[PhaseState]) -> list[Figure]:
    """Return the plot of the latencies' distribution, in bins that all phases share."""
    found = [state.metrics.get(LATENCY) for state in phases]
    pairs = zip(summary["phases"], found, strict=True)
    metrics = [(phase, metric) for phase, metric in pairs if metric is not None and metric.count]
    if not metrics:
        return []
    histograms = [metric.histogram(_FINE_BINS) for _, metric in metrics]
    low, high = min(at[0] for at, _ in histograms), max(at[-1] for at, _ in histograms)
    bins = int(np.clip(2 * math.sqrt(max(metric.count for _, metric in metrics)), *_BINS))
    logarithmic = low > 0 and high / low >= _DECADE
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
    traces = []
    for number, ((phase, _), (at, counts)) in enumerate(zip(metrics, histograms, strict=True)):
        below = np.interp(edges, at, np.concatenate([[0], np.cumsum(counts)]))
        traces.append(_histogram(phase, edges, np.diff(below) / counts.sum() * 100, number))
    if any(phase["kind"] != "warmup" for phase, _ in metrics):
        for (phase, _), trace in zip(metrics, traces, strict=True):
            # A warm-up can be shown by a click, but is not in the way.
            trace["visible"] = "legendonly" if phase["kind"] == "warmup" else True
    title = describe(LATENCY).title
    x_axis: dict[str, Any] = {"title": {"text": f"{title} (ms)"}}
    if logarithmic:
        ticks = _log_ticks(*(edges[[0, -1]] * readable_unit("ns")[1]).tolist())
        x_axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,.10g}" for tick in ticks]}
    look = layout(x_axis, "% of the phase's requests", showlegend=True, hovermode="closest")
    caption = "Successful requests by latency. A click on a phase in the legend shows or hides it."
    return [
        Figure(key="distribution", title=f"{title} distribution", caption=caption, data=traces, layout=look)
    ]


def _histogram(
    phase: Mapping[str, Any], edges: FloatArray, share: FloatArray, number: int
) -> dict[str, Any]:
    edges_ms = (edges * readable_unit("ns")[1]).tolist()
    color, name = COLORS[number % len(COLORS)], escape(phase["name"])
    texts = [f"{low:,.4g} to {high:,.4g} ms" for low, high in pairwise(edges_ms)]
    return {
        "type": "scatter",
        "name": name,
        "x": edges_ms,
        "y": [*share.tolist(), 0.0],
        "line": {"shape": "hv", "color": color, "width": 1.5},
        "mode": "lines",
        "fill": "tozeroy",
        "fillcolor": f"{color}33",
        "text": [*texts, ""],
        "hovertemplate": "%{text}: %{y:.3~g} %<extra>" + name + "</extra>",
    }


def _array(values: Sequence[float | None]) -> FloatArray:
    """Return numbers as floats, NaN for None."""
    return np.array(values, dtype=np.float64)


def _needs_markers(values: FloatArray) -> bool:
    there = np.pad(~np.isnan(values), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    return bool(there.sum() <= _MARKERS_UP_TO or alone.any())


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between two numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _first(*times: int | None) -> int | None:
    return next((time for time in times if time is not None), None)
