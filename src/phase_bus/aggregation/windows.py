"""How a run went over time: counts and coarse percentiles, by the time at which requests ended.

A window is a stretch of time that begins at a whole multiple of its width in Unix time. Windows are one
second wide, and their width doubles whenever there would be more than :data:`MAX_WINDOWS`. So the width
depends on the first and the last time alone, not on the order of records or of merging, and memory stays
bounded however long a run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.log_bins import BITS, WINDOW_ERROR, codes_of, values_of
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.packing import IntArray, pack_counts, unpack_counts
from phase_bus.aggregation.sketch import interpolate, ranks
from phase_bus.aggregation.tally import Tally
from phase_bus.core.records import Column, RecordBatch

WIDTH_NS = 1_000_000_000
MAX_WINDOWS = 600
QUANTILES = {"p50": 0.5, "p99": 0.99}

_END = "request_end_ns"
# Records are processed this many at a time: enough for numpy to be fast.
_CHUNK = 4096
# A metric's tally counts ``window << BITS | code of the value``.
_CODE = (1 << BITS) - 1


class Windows:
    """Requests, failures and the values of some metrics, by window.

    Percentiles are within :data:`~phase_bus.aggregation.log_bins.WINDOW_ERROR`. A metric that is a list
    has no windows.

    Attributes:
        unplaced: requests without an end time; they are in no window.
    """

    def __init__(self, options: Options = Options()) -> None:  # noqa: B008 - frozen
        self._options = options
        self.unplaced = 0
        self._level = 0  # the width is WIDTH_NS << level
        self._range: tuple[int, int] | None = None  # the first and last window, of level 0
        self._requests = Tally()
        self._failed = Tally()
        self._metrics: dict[str, Tally] = {}
        # What is not processed yet, with windows of level 0; how much that is does not show in results.
        self._waiting = 0
        self._new: list[IntArray] = []
        self._new_failed: list[IntArray] = []
        self._new_values: dict[str, list[tuple[IntArray, npt.NDArray[Any]]]] = {}

    def update(self, batch: RecordBatch) -> None:
        """Add a batch of records."""
        windows = _windows_of(batch)
        if windows is None:
            self.unplaced += len(batch)
            return
        self._new.append(windows)
        if batch.errors:
            self._new_failed.append(windows[[error.row for error in batch.errors]])
        names = self._options.window_metrics
        for name in batch.metrics if "*" in names else names:
            column = _numbers(batch, name)
            if column is not None:
                at = windows if column.rows is None else windows[column.rows]
                # A copy, since a view would keep all of the batch in memory.
                self._new_values.setdefault(name, []).append((at, column.values.copy()))
        self._waiting += len(batch)
        if self._waiting >= _CHUNK:
            self._settle()

    def merge(self, *others: Windows, recent: int | None = None) -> None:
        """Add other windows, which are left unchanged, and keep the ``recent`` last ones only, if given."""
        parts = [self, *others]
        for part in parts:
            part._settle()
        self.unplaced = sum(part.unplaced for part in parts)
        ranges = [part._range for part in parts if part._range is not None]
        if not ranges:
            return
        first, last = min(r[0] for r in ranges), max(r[1] for r in ranges)
        level = _fit(max(part._level for part in parts), first, last)
        cut = None if recent is None else max(first >> level, (last >> level) - recent + 1)
        parts = [part._at_level(level, cut) for part in parts]
        self._level, self._range = level, (first if cut is None else cut << level, last)
        self._requests = Tally.union([part._requests for part in parts])
        self._failed = Tally.union([part._failed for part in parts])
        tallies: dict[str, list[Tally]] = {}
        for part in parts:
            for name, tally in part._metrics.items():
                tallies.setdefault(name, []).append(tally)
        self._metrics = {name: Tally.union(some) for name, some in tallies.items()}

    def columns(self) -> dict[str, Any] | None:
        """Return one list per quantity with one number per window, gaps included; None without windows.

        ``width_s`` and ``start_ns`` (of the first window, Unix time); ``requests``, ``failed`` and
        ``throughput`` (successful requests per second); by metric ``count``, ``p50`` and ``p99``, which
        are None in a window without values; their ``relative_error``; ``unplaced``: requests without an
        end time, which are in no window.
        """
        self._settle()
        if self._range is None:
            return None
        first, last = (window >> self._level for window in self._range)
        requests, failed = (_dense(t, first, last) for t in (self._requests, self._failed))
        width_s = (WIDTH_NS << self._level) / 1e9
        return {
            "width_s": width_s,
            "start_ns": first * (WIDTH_NS << self._level),
            "requests": requests.tolist(),
            "failed": failed.tolist(),
            "throughput": ((requests - failed) / width_s).tolist(),
            "metrics": {n: _metric_columns(self._metrics[n], first, last) for n in sorted(self._metrics)},
            "relative_error": WINDOW_ERROR,
            "unplaced": self.unplaced,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        self._settle()
        return {
            "unplaced": self.unplaced,
            "level": self._level,
            "range": self._range and [window >> self._level for window in self._range],
            "requests": pack_counts(self._requests.keys, self._requests.counts),
            "failed": pack_counts(self._failed.keys, self._failed.counts),
            "metrics": {name: _pack_metric(self._metrics[name]) for name in sorted(self._metrics)},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], options: Options) -> Windows:
        """Return the windows that :meth:`to_dict` wrote as ``data``."""
        windows = cls(options)
        windows.unplaced, windows._level = data["unplaced"], data["level"]
        if data["range"] is not None:
            first, last = data["range"]
            windows._range = (first << windows._level, last << windows._level)
        windows._requests = Tally.of(*unpack_counts(data["requests"]))
        windows._failed = Tally.of(*unpack_counts(data["failed"]))
        windows._metrics = {name: _unpack_metric(m) for name, m in data["metrics"].items()}
        return windows

    def _settle(self) -> None:
        """Process what is waiting."""
        if not self._new:
            return
        windows = np.concatenate(self._new)
        placed = windows[windows > 0]
        self.unplaced += len(windows) - len(placed)
        if len(placed):
            self._make_room(int(placed.min()), int(placed.max()))
            self._requests.add(placed >> self._level)
            if self._new_failed:
                failed = np.concatenate(self._new_failed)
                self._failed.add(failed[failed > 0] >> self._level)
            for name, pairs in self._new_values.items():
                self._add_values(name, *map(np.concatenate, zip(*pairs, strict=True)))
        self._waiting = 0
        self._new, self._new_failed, self._new_values = [], [], {}

    def _add_values(self, name: str, windows: IntArray, values: npt.NDArray[Any]) -> None:
        usable = windows > 0
        if values.dtype.kind == "f":
            usable &= np.isfinite(values)
        if not usable.all():
            windows, values = windows[usable], values[usable]
        if len(values):
            keys = windows >> self._level << BITS | codes_of(values.astype(np.float64))
            self._metrics.setdefault(name, Tally()).add(keys)

    def _make_room(self, first: int, last: int) -> None:
        """Extend the range to windows of level 0, and widen the windows if there would be too many."""
        if self._range is not None:
            first, last = min(first, self._range[0]), max(last, self._range[1])
        level = _fit(self._level, first, last)
        if level > self._level:
            wider = self._at_level(level)
            self._requests, self._failed, self._metrics = wider._requests, wider._failed, wider._metrics
        self._level, self._range = level, (first, last)

    def _at_level(self, level: int, first: int | None = None) -> Windows:
        """Return the tallies with windows of the same or a higher level, from the window ``first`` on."""
        shift = level - self._level

        def moved(tally: Tally, bits: int) -> Tally:
            if first is not None:
                tally = tally.since(first << shift + bits)
            if not shift:
                return tally
            keys = tally.keys >> shift + bits << bits | (tally.keys & (1 << bits) - 1)
            return Tally.of(keys, tally.counts)

        other = Windows(self._options)
        other._requests, other._failed = moved(self._requests, 0), moved(self._failed, 0)
        other._metrics = {name: moved(tally, BITS) for name, tally in self._metrics.items()}
        return other


def _fit(level: int, first: int, last: int) -> int:
    """Return the lowest level, this one or above, at which a range of level 0 has few enough windows."""
    while (last >> level) - (first >> level) >= MAX_WINDOWS:
        level += 1
    return level


def _windows_of(batch: RecordBatch) -> IntArray | None:
    """Return each record's window of level 0, shape (len,), <= 0 without an end time; None if all are."""
    column = _numbers(batch, _END)
    if column is None:
        return None
    ends = column.values
    if ends.dtype.kind == "f":
        ends = np.nan_to_num(ends, posinf=0.0, neginf=0.0).clip(0.0, 2.0**62).astype(np.int64)
    windows: IntArray = ends // WIDTH_NS
    if column.rows is None:
        return windows
    full = np.zeros(len(batch), dtype=np.int64)
    full[column.rows] = windows
    return full


def find_column(batch: RecordBatch, name: str) -> Column | None:
    """Return a batch's column of a field or metric, None if no record has one."""
    try:
        return batch.column(name)
    except KeyError:
        return None


def _numbers(batch: RecordBatch, name: str) -> Column | None:
    """Return a batch's column of numbers, None if there is none: neither texts nor lists are."""
    column = find_column(batch, name)
    return column if column is not None and column.type in "ifb" else None


def _dense(tally: Tally, first: int, last: int) -> IntArray:
    counts = np.zeros(last - first + 1, dtype=np.int64)
    counts[tally.keys - first] = tally.counts
    return counts


def _metric_columns(tally: Tally, first: int, last: int) -> dict[str, Any]:
    """Return a metric's counts and percentiles by window."""
    values, ends = values_of(tally.keys & _CODE), np.cumsum(tally.counts)
    after = np.searchsorted(tally.keys, np.arange(first, last + 2) << BITS)
    below = np.concatenate([[0], ends])[after]  # how many values are in earlier windows
    counts = np.diff(below)
    filled = np.flatnonzero(counts)
    columns: dict[str, Any] = {"count": counts.tolist()}
    for name, quantile in QUANTILES.items():
        low, high, fraction = ranks(counts[filled], quantile)
        at = [np.searchsorted(ends, below[filled] + rank, side="right") for rank in (low, high)]
        found = np.full(len(counts), None, dtype=object)
        found[filled] = interpolate(values[at[0]], values[at[1]], fraction)
        columns[name] = found.tolist()
    return columns


def _pack_metric(tally: Tally) -> list[Any]:
    """Return a metric's tally for msgpack, its codes brought close together."""
    windows, codes = tally.keys >> BITS, tally.keys & _CODE
    lowest = int(codes.min())
    stride = int(codes.max()) - lowest + 1
    return [lowest, stride, *pack_counts(windows * stride + (codes - lowest), tally.counts)]


def _unpack_metric(packed: list[Any]) -> Tally:
    lowest, stride = packed[:2]
    keys, counts = unpack_counts(packed[2:])
    return Tally.of(keys // stride << BITS | (keys % stride + lowest), counts)
