"""How a run went over time: counts and coarse percentiles, by the time at which requests ended.

A window is a stretch of time that begins at a whole multiple of its width in Unix time. Windows are one
second wide, and their width doubles whenever there would be something in more than :data:`MAX_WINDOWS`. So
the width depends on the times alone, not on the order of records or of merging, and memory stays bounded
however long a run goes on.

A clock that is wrong once must not stretch the time of all others. What is kept is sparse, so a time that
is far away costs one window; what is read, without gaps, has only the times that belong to the phase.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.exponential import Buckets, ExponentialHistogram
from phase_bus.aggregation.limits import LARGEST
from phase_bus.aggregation.log_bins import (
    bits_of,
    codes_of,
    relative_error,
    signed_bins,
    values_of,
)
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.packing import FloatArray, IntArray, pack_counts, unpack_counts
from phase_bus.aggregation.sketch import interpolate, ranks
from phase_bus.aggregation.tally import Tally
from phase_bus.aggregation.units import base_unit, describe
from phase_bus.core.records import Column, RecordBatch

WIDTH_NS = 1_000_000_000
MAX_WINDOWS = 600
QUANTILES = {"p50": 0.5, "p99": 0.99}

_END = "request_end_ns"
# Records are processed this many at a time: enough for numpy to be fast.
_CHUNK = 4096
# A phase's times are those from its start to its end by its events, and those near to the middle half of
# its requests' ends: within so many times as long as these took, and so many seconds.
_REACH, _REACH_S = 20, 60


class Group(NamedTuple):
    """The windows of one phase, and its start and end by its events, in ns, as far as these are known."""

    parts: Sequence[Windows]
    start_ns: int | None = None
    end_ns: int | None = None


class WindowHistogram(NamedTuple):
    """The values of a metric in one window, which begins at a Unix time in ns and is so many ns wide."""

    start_ns: int
    width_ns: int
    histogram: ExponentialHistogram


class Windows:
    """Requests, failures and the values of some metrics, by window.

    Percentiles are within the relative error of the options' ``window_scale``. A metric that is a list has
    no windows.

    Attributes:
        unplaced: requests without a usable end time; they are in no window.
    """

    def __init__(self, options: Options = Options()) -> None:  # noqa: B008 - frozen
        self._options = options
        self.unplaced = 0
        self._level = 0  # the width is WIDTH_NS << level
        self._begin: int | None = None  # the first window to show, of level 0; by default the first used
        self._requests = Tally()
        self._failed = Tally()
        self._scale = options.window_scale
        self._bits = bits_of(self._scale)
        self._metrics: dict[str, Tally] = {}  # counts ``window << bits | code of the value``
        # What is not processed yet, with windows of level 0; how much that is does not show in results.
        self._waiting = 0
        self._new: list[IntArray] = []
        self._new_failed: list[IntArray] = []
        self._new_values: dict[str, list[tuple[IntArray, npt.NDArray[Any]]]] = {}

    def update(self, batch: RecordBatch, left_out: Collection[str] = ()) -> None:
        """Add a batch of records, but for the values of some metrics."""
        windows = _windows_of(batch)
        if windows is None:
            self.unplaced += len(batch)
            return
        self._new.append(windows)
        if batch.errors:
            self._new_failed.append(windows[[error.row for error in batch.errors]])
        names = self._options.window_metrics
        for name in batch.metrics if "*" in names else names:
            column = None if name in left_out else _numbers(batch, name)
            if column is not None:
                at = windows if column.rows is None else windows[column.rows]
                # A copy, since a view would keep all of the batch in memory.
                self._new_values.setdefault(name, []).append((at, column.values.copy()))
        self._waiting += len(batch)
        if self._waiting >= _CHUNK:
            self._settle()

    def merge(self, *others: Windows) -> None:
        """Add other windows, which are left unchanged."""
        parts = [self, *others]
        for part in parts:
            part._settle()
        self.unplaced = sum(part.unplaced for part in parts)
        level = max(part._level for part in parts)
        self._unite([part._at_level(level) for part in parts], level)
        self._make_room()

    @classmethod
    def for_reading(cls, options: Options, groups: Sequence[Group], recent: int | None = None) -> Windows:
        """Return new windows over phases without the times that do not belong to these.

        Keep the ``recent`` last windows only, if given.
        """
        windows = cls(options)
        ranges = [_range_of(group) for group in groups]
        known = [found for found in ranges if found is not None]
        first, end = min((f for f, _ in known), default=0), max((e for _, e in known), default=0)
        level = max((part._level for group in groups for part in group.parts), default=0)
        level = _fit(level, first, end - 1)
        if recent is not None:
            first = max(first, ((end - 1 >> level) - recent + 1) << level)
        cut = []
        for group, found in zip(groups, ranges, strict=True):
            for part in group.parts:
                windows.unplaced += part.unplaced
                if found is None:
                    continue
                inside = part._requests.between(*(edge >> part._level for edge in found))
                windows.unplaced += int(part._requests.counts.sum() - inside.counts.sum())
                cut.append(part._at_level(level, (max(first, found[0]), found[1])))
        if cut:
            windows._unite(cut, level)
            windows._begin = first
        return windows

    def columns(self) -> dict[str, Any] | None:
        """Return one list per quantity with one number per window, gaps included; None without windows.

        ``width_s`` and ``start_ns`` (of the first window, Unix time); ``requests``, ``failed`` and
        ``throughput`` (successful requests per second); by metric ``count``, ``p50`` and ``p99``, which
        are None in a window without values; their ``relative_error``; ``unplaced``: requests in no window,
        since they have no end time, or one far away from those of the phase's other requests.
        """
        self._settle()
        if not len(self._requests.keys):
            return None
        first, last = (int(key) << self._level for key in self._requests.keys[[0, -1]])
        first = first if self._begin is None else self._begin
        level = _fit(self._level, first, last)
        first, last, shown = first >> level, last >> level, self._at_level(level)
        requests, failed = (_dense(t, first, last) for t in (shown._requests, shown._failed))
        width_s = (WIDTH_NS << level) / 1e9
        return {
            "width_s": width_s,
            "start_ns": first * (WIDTH_NS << level),
            "requests": requests.tolist(),
            "failed": failed.tolist(),
            "throughput": ((requests - failed) / width_s).tolist(),
            "metrics": {
                name: _metric_columns(shown._metrics[name], describe(name).unit, self._scale, first, last)
                for name in sorted(shown._metrics)
            },
            "relative_error": relative_error(self._scale),
            "unplaced": self.unplaced,
        }

    def histograms(self, name: str) -> Iterator[WindowHistogram]:
        """Yield a metric's histogram for each window with values of it, in order, in the base unit.

        The buckets are those of :meth:`MetricState.exponential
        <phase_bus.aggregation.metric.MetricState.exponential>` at a lower scale, exactly. A window keeps
        nothing else of its values: the ``sum`` is that of the buckets' middles, within
        the same error, and ``min`` and ``max`` are not known.
        """
        self._settle()
        tally = self._metrics.get(name, Tally())
        windows, unit = tally.keys >> self._bits, describe(name).unit
        codes = tally.keys & (1 << self._bits) - 1
        values = values_of(codes, unit, self._scale)
        for window in np.unique(windows).tolist():
            inside = slice(*np.searchsorted(windows, [window, window + 1]))
            yield WindowHistogram(
                window * (WIDTH_NS << self._level),
                WIDTH_NS << self._level,
                _histogram(codes[inside], values[inside], tally.counts[inside], unit, self._scale),
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        self._settle()
        return {
            "unplaced": self.unplaced,
            "level": self._level,
            "requests": pack_counts(self._requests.keys, self._requests.counts),
            "failed": pack_counts(self._failed.keys, self._failed.counts),
            "metrics": {
                name: _pack_metric(self._metrics[name], self._bits) for name in sorted(self._metrics)
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], options: Options) -> Windows:
        """Return the windows that :meth:`to_dict` wrote as ``data``."""
        windows = cls(options)
        windows.unplaced, windows._level = data["unplaced"], data["level"]
        windows._requests = Tally.of(*unpack_counts(data["requests"]))
        windows._failed = Tally.of(*unpack_counts(data["failed"]))
        windows._metrics = {name: _unpack_metric(m, windows._bits) for name, m in data["metrics"].items()}
        return windows

    def _settle(self) -> None:
        """Process what is waiting."""
        if not self._new:
            return
        windows = np.concatenate(self._new)
        placed = windows[windows > 0]
        self.unplaced += len(windows) - len(placed)
        if len(placed):
            self._requests.add(placed >> self._level)
            if self._new_failed:
                failed = np.concatenate(self._new_failed)
                self._failed.add(failed[failed > 0] >> self._level)
            for name, pairs in self._new_values.items():
                self._add_values(name, *map(np.concatenate, zip(*pairs, strict=True)))
            self._make_room()
        self._waiting = 0
        self._new, self._new_failed, self._new_values = [], [], {}

    def _add_values(self, name: str, windows: IntArray, values: npt.NDArray[Any]) -> None:
        usable = windows > 0
        if values.dtype.kind == "f":
            usable &= np.abs(values) <= LARGEST
        if not usable.all():
            windows, values = windows[usable], values[usable]
        if len(values):
            codes = codes_of(values.astype(np.float64), describe(name).unit, self._scale)
            keys = windows >> self._level << self._bits | codes
            self._metrics.setdefault(name, Tally()).add(keys)

    def _make_room(self) -> None:
        """Widen the windows while too many of them have something in them."""
        level, keys = self._level, self._requests.keys
        while len(keys) > MAX_WINDOWS:
            level += 1
            keys = np.unique(keys >> 1)
        if level > self._level:
            self._unite([self._at_level(level)], level)

    def _unite(self, parts: Sequence[Windows], level: int) -> None:
        """Take over what is counted in parts, at least one, that are all of one level."""
        self._level = level
        self._requests = Tally.union([part._requests for part in parts])
        self._failed = Tally.union([part._failed for part in parts])
        tallies: dict[str, list[Tally]] = {}
        for part in parts:
            for name, tally in part._metrics.items():
                tallies.setdefault(name, []).append(tally)
        self._metrics = {name: Tally.union(some) for name, some in tallies.items()}

    def _at_level(self, level: int, between: tuple[int, int] | None = None) -> Windows:
        """Return the tallies with windows of the same or a higher level.

        Only what lies ``between`` two windows of level 0, without the second, if these are given.
        """
        shift = level - self._level

        def moved(tally: Tally, bits: int) -> Tally:
            if between is not None:
                tally = tally.between(*(edge >> self._level << bits for edge in between))
            return _widened(tally, shift, bits)

        other = Windows(self._options)
        other._level = level
        other._requests, other._failed = moved(self._requests, 0), moved(self._failed, 0)
        other._metrics = {name: moved(tally, self._bits) for name, tally in self._metrics.items()}
        return other


def reach_of(group: Group) -> int | None:
    """Return how many seconds a time may be away from a phase's others, None if it has none."""
    middle = _middle_of(group)
    return None if middle is None else _reach(middle) * (1 << middle.level) * WIDTH_NS // 1_000_000_000


class _Middle(NamedTuple):
    """The windows, of a level, in which the middle half of a phase's requests ended."""

    low: int
    high: int
    level: int
    requests: Tally  # all of the phase's


def _middle_of(group: Group) -> _Middle | None:
    for part in group.parts:
        part._settle()
    level = max((part._level for part in group.parts), default=0)
    tallies = [_widened(part._requests, level - part._level) for part in group.parts]
    requests = Tally.union(tallies) if tallies else Tally()
    if not len(requests.keys):
        return None
    ends = np.cumsum(requests.counts)
    quarter = int(ends[-1]) // 4
    ranks_ = [quarter, int(ends[-1]) - 1 - quarter]
    low, high = (int(key) for key in requests.keys[np.searchsorted(ends, ranks_, side="right")])
    return _Middle(low, high, level, requests)


def _reach(middle: _Middle) -> int:
    """Return how many windows from the middle half others may be, at most."""
    return _REACH * (middle.high - middle.low + 1) + (_REACH_S >> middle.level) + 1


def _range_of(group: Group) -> tuple[int, int] | None:
    """Return the first window of level 0 that belongs to a phase, and the first one after these."""
    middle = _middle_of(group)
    if middle is None:
        return None
    level, reach = middle.level, _reach(middle)
    low, high = middle.low - reach, middle.high + reach
    if group.start_ns is not None:
        low = min(low, group.start_ns // WIDTH_NS >> level)
        if group.end_ns is not None and group.end_ns >= group.start_ns:
            high = max(high, group.end_ns // WIDTH_NS >> level)
    keys = middle.requests.keys
    keys = keys[(keys >= low) & (keys <= high)]
    return int(keys[0]) << level, (int(keys[-1]) + 1) << level


def _widened(tally: Tally, shift: int, bits: int = 0) -> Tally:
    """Return a tally with windows that are ``2**shift`` times as wide; the low ``bits`` of keys stay."""
    if not shift:
        return tally
    keys = tally.keys >> shift + bits << bits | (tally.keys & (1 << bits) - 1)
    return Tally.of(keys, tally.counts)


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


def _histogram(
    codes: IntArray, values: FloatArray, counts: IntArray, unit: str, scale: int
) -> ExponentialHistogram:
    """Return the histogram of some codes, given the value that stands for each, and how many it has."""
    signs, bins = signed_bins(codes, scale)
    base = base_unit(unit)
    positive, negative = (Buckets.of(bins[signs == sign], counts[signs == sign]) for sign in (1, -1))
    return ExponentialHistogram(
        unit=base.name,
        scale=scale,
        count=int(counts.sum()),
        sum=base.convert(float(values @ counts)),
        zeros=int(counts[signs == 0].sum()),
        positive=positive,
        negative=negative,
    )


def _metric_columns(tally: Tally, unit: str, scale: int, first: int, last: int) -> dict[str, Any]:
    """Return a metric's counts and percentiles by window."""
    bits = bits_of(scale)
    values, ends = values_of(tally.keys & (1 << bits) - 1, unit, scale), np.cumsum(tally.counts)
    after = np.searchsorted(tally.keys, np.arange(first, last + 2) << bits)
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


def _pack_metric(tally: Tally, bits: int) -> list[Any]:
    """Return a metric's tally for msgpack, its codes brought close together."""
    windows, codes = tally.keys >> bits, tally.keys & (1 << bits) - 1
    lowest = int(codes.min())
    stride = int(codes.max()) - lowest + 1
    return [lowest, stride, *pack_counts(windows * stride + (codes - lowest), tally.counts)]


def _unpack_metric(packed: list[Any], bits: int) -> Tally:
    lowest, stride = packed[:2]
    keys, counts = unpack_counts(packed[2:])
    return Tally.of(keys // stride << bits | (keys % stride + lowest), counts)
