"""The plots of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from phase_bus.aggregation.packing import FloatArray
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.text import in_reading_order
from phase_bus.aggregation.units import describe, readable_unit
from phase_bus.core.printable import printable
from phase_bus.reporting.theme import COLORS, FAILED, GOOD, HIGH, LOW, Axis, Figure, Series, short

LATENCY = "request_latency"
# The smallest and the largest number of bins of the distribution, and of the fine bins it is made from.
_BINS = (12, 80)
_FINE_BINS = 2000
_DECADE = 10.0
# Points get markers if there are few of them, or if one stands alone between gaps.
_MARKERS_UP_TO = 120
# A run's start that is longer before its first phase than this is no sensible beginning of a plot.
_LONGEST_START_NS = 3_600_000_000_000


def run_figures(
    summary: Mapping[str, Any], phases: Sequence[PhaseState] | None, start_ns: int | None = None
) -> list[Figure]:
    """Return the plots of a run's summary; without the states of its phases there is no distribution.

    Args:
        start_ns: when the run began, Unix time; by default when its first phase did.
    """
    windows = summary["overall"].get("windows")
    over_time = None if windows is None else _OverTime(windows, summary["phases"], start_ns)
    figures = [] if over_time is None else over_time.latencies([LATENCY])
    if phases is not None:
        figures += _distribution(summary, phases)
    if over_time is not None:
        figures.append(over_time.throughput())
        figures += over_time.latencies(in_reading_order(set(windows["metrics"]) - {LATENCY}))
    return figures


class _OverTime:
    """Plots over the time since the run began."""

    def __init__(
        self, windows: Mapping[str, Any], phases: Sequence[Mapping[str, Any]], start_ns: int | None
    ) -> None:
        self._windows = windows
        count, width_s = len(windows["requests"]), windows["width_s"]
        self._window = "second" if width_s == 1 else f"window of {width_s:g} s"
        starts_ns = [_first(phase["start_ns"], phase["first_request_ns"]) for phase in phases]
        # A window begins at a whole second, and may so begin before the first phase; the first request may
        # end, and so the windows begin, long after that.
        known = [ns for ns in starts_ns if ns is not None] or [windows["start_ns"]]
        self._start_ns: int = min(known)
        self._since = "the first phase began"
        if start_ns is not None and 0 <= self._start_ns - start_ns <= _LONGEST_START_NS:
            self._start_ns, self._since = start_ns, "the run began"
        before_s = (windows["start_ns"] - self._start_ns) / 1e9
        span_s = before_s + count * width_s
        self._scale: float
        self._unit, self._scale = ("s", 1.0) if span_s <= 600 else ("min", 60.0)
        if span_s > 5 * 3600:
            self._unit, self._scale = "h", 3600.0
        middles_s = [before_s + (n + 0.5) * width_s for n in range(count)]
        # The middle of what of a window belongs to the run.
        self._x = [round(max(at, (at + width_s / 2) / 2) / self._scale, 6) for at in middles_s]
        self._range: list[float] = [0.0, round(span_s / self._scale, 6)]
        self._bands = self._mark(phases)

    def latencies(self, names: Iterable[str]) -> list[Figure]:
        """Return a plot of the median and the 99th percentile of each of these metrics."""
        figures = []
        for name in names:
            metric = self._windows["metrics"].get(name)
            if metric is None or not any(metric["count"]):
                continue
            unit, factor = readable_unit(metric["unit"])
            lines = ((50, LOW), (99, HIGH))
            series = [_line(f"p{p}", _array(metric[f"p{p}"]) * factor, color) for p, color in lines]
            caption = (
                f"Of the requests that ended in each {self._window}, the median and the 99th percentile."
            )
            figures.append(self._figure(f"{describe(name).title} over time", caption, series, unit, name))
        return figures

    def throughput(self) -> Figure:
        """Return a plot of successful and failed requests per second."""
        failed = _array(self._windows["failed"]) / self._windows["width_s"]
        series = [
            _line("successful", _array(self._windows["throughput"]), GOOD),
            _line("failed", failed, FAILED, fill=True),
        ]
        caption = (
            f"Requests per second that ended in each {self._window}; the first and last are partly filled."
        )
        return self._figure("Throughput and errors over time", caption, series, "requests/s", "throughput")

    def _figure(self, title: str, caption: str, series: list[Series], unit: str, key: str) -> Figure:
        return Figure(
            key=key,
            title=title,
            caption=caption,
            unit=unit,
            x=Axis(title=f"{self._unit} since {self._since}", values=self._x, range=self._range),
            y=Axis(title=unit, from_zero=True),
            series=series,
            bands=self._bands,
            over_time=True,
        )

    def _mark(self, phases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a band for each phase."""
        bands: list[dict[str, Any]] = []
        for phase in phases:
            start_ns = _first(phase["start_ns"], phase["first_request_ns"])
            end_ns = _first(phase["end_ns"], phase["last_request_ns"])
            if start_ns is not None and end_ns is not None:
                edges = {"from": self._place(start_ns), "to": self._place(end_ns)}
                bands.append({"name": printable(phase["name"]), **edges})
        return bands

    def _place(self, ts_ns: int) -> float:
        at = (ts_ns - self._start_ns) / 1e9 / self._scale
        return round(min(max(at, self._range[0]), self._range[1]), 6)


def _line(name: str, values: FloatArray, color: str, *, fill: bool = False) -> Series:
    y = [None if math.isnan(value) else short(value) for value in values]
    return Series(name=name, color=color, y=y, points=_needs_markers(values), fill=fill)


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
    hide = any(phase["kind"] != "warmup" for phase, _ in metrics)
    series = []
    for number, ((phase, _), (at, counts)) in enumerate(zip(metrics, histograms, strict=True)):
        below = np.interp(edges, at, np.concatenate([[0], np.cumsum(counts)]))
        share = np.clip(np.diff(below) / counts.sum() * 100, 0.0, 100.0)
        # A warm-up can be shown by a click, but is not in the way.
        series.append(_histogram(phase, edges, share, number, hidden=hide and phase["kind"] == "warmup"))
    title, factor = describe(LATENCY).title, readable_unit("ns")[1]
    edges_ms = [short(edge) for edge in (edges * factor).tolist()]
    caption = "Successful requests by latency. A click on a phase's name shows or hides it."
    return [
        Figure(
            key="distribution",
            title=f"{title} distribution",
            caption=caption,
            unit="%",
            x=Axis(
                title=f"{title}, ms",
                values=edges_ms,
                range=[edges_ms[0], edges_ms[-1]],
                log=bool(logarithmic),
                ticks=_log_ticks(edges_ms[0], edges_ms[-1]) if logarithmic else [],
            ),
            y=Axis(title="% of the phase's requests", from_zero=True, most=100.0),
            series=series,
        )
    ]


def _histogram(
    phase: Mapping[str, Any], edges: FloatArray, share: FloatArray, number: int, *, hidden: bool
) -> Series:
    edges_ms = (edges * readable_unit("ns")[1]).tolist()
    return Series(
        name=printable(phase["name"]),
        color=COLORS[number % len(COLORS)],
        y=[*map(short, share.tolist()), 0.0],
        line="steps",
        fill=True,
        hidden=hidden,
        texts=[*(f"{low:,.4g} to {high:,.4g} ms" for low, high in pairwise(edges_ms)), ""],
    )


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
