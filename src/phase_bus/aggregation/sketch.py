"""A histogram with logarithmic bins that answers quantiles with a bounded relative error.

The method is DDSketch: C. Masson, J. E. Rim, H. K. Lee, "DDSketch: a fast and fully-mergeable quantile
sketch with relative-error guarantees", PVLDB 12(12), 2019, with the store that collapses its lowest
bins (section 2.2). Ours works on whole numpy columns, and where the paper derives the base of its bins from
a wanted error, ours is fixed, 2 ** (1/128), so that its bins are those of Prometheus and OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.exponential import Buckets
from phase_bus.aggregation.log_bins import SCALE, bins_of, relative_error
from phase_bus.aggregation.packing import FloatArray, IntArray, pack_counts, unpack_counts

RELATIVE_ERROR = relative_error(SCALE)
MAX_BINS = 8192


def interpolate(low: FloatArray, high: FloatArray, fraction: FloatArray) -> FloatArray:
    """Return the values that lie ``fraction`` (0 to 1) of the way from ``low`` to ``high``.

    Equal ends come back unchanged, and ends of opposite sign near the largest float do not overflow.
    """
    between: FloatArray = low * (1.0 - fraction) + high * fraction
    return np.where(low == high, low, between)


def ranks(
    count: int | IntArray, quantiles: float | Sequence[float]
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return for each quantile (0 to 1) the two ranks it lies between, and how far along.

    This is linear interpolation as ``numpy.percentile`` and AIPerf do it: the quantile ``q`` of ``n``
    values lies at rank ``q * (n - 1)``, counted from 0. One of the arguments may be an array.

    Raises:
        ValueError: if a quantile is not between 0 and 1.
    """
    q = np.asarray(quantiles, dtype=np.float64)
    if not np.all((q >= 0.0) & (q <= 1.0)):
        raise ValueError(f"quantiles must lie between 0 and 1: {quantiles}")
    position = q * (count - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    return low, high, position - low


class Bins:
    """Counts of integer keys, dense between the lowest and the highest key seen.

    At most ``limit`` bins are kept: when the keys span more, those below the window that ends at the
    highest key are counted in the window's lowest bin. Which keys are affected depends on the highest
    key alone, so the result is the same in whatever order values are added and bins merged.

    Attributes:
        offset: the key of the first bin.
        counts: how often each key from ``offset`` on was seen; the first and last are never 0.
        lowest: the lowest key ever seen, which may lie below ``offset``; None if there were no keys.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.offset = 0
        self.counts: IntArray = np.zeros(0, dtype=np.int64)
        self.lowest: int | None = None

    @property
    def keys(self) -> IntArray:
        """The keys of the bins."""
        return np.arange(self.offset, self.offset + len(self.counts))

    @property
    def collapsed(self) -> bool:
        """Whether some keys were too far below the highest one to keep a bin of their own."""
        return self.lowest is not None and self.lowest < self.offset

    def add(self, keys: IntArray) -> None:
        """Count the keys, shape (n,), n at least 1, each once. The array may be overwritten."""
        lowest, highest = int(np.minimum.reduce(keys)), int(np.maximum.reduce(keys))
        base = max(lowest, highest - self.limit + 1)
        if base > lowest:
            np.maximum(keys, base, out=keys)
        keys -= base
        self.absorb(base, np.bincount(keys), lowest)

    def merge(self, other: Bins) -> None:
        """Add the counts of other bins with the same limit, which are left unchanged."""
        if other.lowest is not None:
            self.absorb(other.offset, other.counts, other.lowest)

    def absorb(self, base: int, counts: npt.NDArray[np.intp], lowest: int) -> None:
        """Add counts of the keys from ``base`` on, of which the lowest was ``lowest``."""
        if self.lowest is None:
            self.offset, self.counts, self.lowest = base, counts.astype(np.int64), lowest
            return
        self.lowest = min(self.lowest, lowest)
        start = base - self.offset
        if start >= 0 and start + len(counts) <= len(self.counts):  # as nearly always
            self.counts[start : start + len(counts)] += counts
            return
        end = max(self.offset + len(self.counts), base + len(counts))
        start = max(min(self.offset, base), end - self.limit)
        if start != self.offset or end != self.offset + len(self.counts):
            grown = np.zeros(end - start, dtype=np.int64)
            _add_into(grown, start, self.offset, self.counts)
            self.offset, self.counts = start, grown
        _add_into(self.counts, start, base, counts)

    def to_dict(self) -> dict[str, Any]:
        """Return the content; equal bins give equal dicts in equal order."""
        seen = np.flatnonzero(self.counts)
        return {"lowest": self.lowest, "counts": pack_counts(seen + self.offset, self.counts[seen])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], limit: int) -> Bins:
        """Return the bins that :meth:`to_dict` gave as ``data``."""
        bins = cls(limit)
        keys, counts = unpack_counts(data["counts"])
        if len(keys):
            dense = np.zeros(int(keys[-1] - keys[0]) + 1, dtype=np.int64)
            dense[keys - keys[0]] = counts
            bins.absorb(int(keys[0]), dense, data["lowest"])
        return bins


def _add_into(target: IntArray, start: int, base: int, counts: npt.NDArray[np.intp]) -> None:
    """Add counts whose first key is ``base`` to a target whose first is ``start``."""
    below = start - base
    if below > 0:
        target[0] += counts[:below].sum()
        counts, base = counts[below:], start
    target[base - start : base - start + len(counts)] += counts


class LogHistogram:
    """Quantiles of any number of values, each within :data:`RELATIVE_ERROR`, in bounded memory.

    Positive values are counted in :class:`~phase_bus.aggregation.log_bins.LogBins`; negative values have
    bins of their own by magnitude, and zeros one counter. When there are too many bins, those nearest to
    zero are collapsed: with the default they then lie 19 orders of magnitude below the largest value of
    their sign. All state is integer counts, so merging is exactly associative and commutative.

    Args:
        unit: the unit of values, which decides where the bins are.
        max_bins: the largest number of bins for each sign; 8 bytes each.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, unit: str = "", max_bins: int = MAX_BINS) -> None:
        if max_bins < 1:
            raise ValueError(f"max_bins must be at least 1, not {max_bins}")
        self.unit = unit
        self.max_bins = max_bins
        self._bins = bins_of(unit)
        self._positive = Bins(max_bins)
        self._negative = Bins(max_bins)
        self._zeros = 0

    @property
    def count(self) -> int:
        """How many values were added."""
        return int(self._positive.counts.sum() + self._negative.counts.sum()) + self._zeros

    @property
    def collapsed(self) -> bool:
        """Whether the error bound no longer holds near zero, since the values span too many bins."""
        return self._positive.collapsed or self._negative.collapsed

    def update(self, values: FloatArray) -> None:
        """Count a column of finite values, shape (n,), which is left unchanged."""
        if len(values):
            self.update_between(values, values.min(), values.max())

    def update_between(self, values: FloatArray, low: float, high: float) -> None:
        """Count a column, n at least 1, of which the least and the largest value are known."""
        if low == high:
            self._add_equal(low, len(values))  # many metrics hardly ever change
        elif low > 0.0:
            self._positive.add(self._bins.of(values))
        else:
            positive, negative = values[values > 0.0], values[values < 0.0]
            self._zeros += len(values) - len(positive) - len(negative)
            if len(positive):
                self._positive.add(self._bins.of(positive))
            if len(negative):
                self._negative.add(self._bins.of(-negative))

    def merge(self, other: LogHistogram) -> None:
        """Add what another one counted; the other is left unchanged.

        Raises:
            ValueError: if the other has a different unit or number of bins.
        """
        mine, theirs = (self.unit, self.max_bins), (other.unit, other.max_bins)
        if mine != theirs:
            raise ValueError(f"cannot merge histograms of (unit, bins) {mine} and {theirs}")
        self._positive.merge(other._positive)
        self._negative.merge(other._negative)
        self._zeros += other._zeros

    def quantiles(self, quantiles: Sequence[float]) -> FloatArray:
        """Return the values at quantiles between 0 and 1, shape (len,).

        Each is within :data:`RELATIVE_ERROR` of what linear interpolation of the exact values gives (of
        the larger of its two neighbours, where these differ in sign).

        Raises:
            ValueError: if nothing was counted, or a quantile is not between 0 and 1.
        """
        if not self.count:
            raise ValueError("no values, no quantiles")
        low, high, fraction = ranks(self.count, quantiles)
        values = _ascending(
            self._bins.middles(self._negative.keys), self._bins.middles(self._positive.keys)
        )
        ends = np.cumsum(self._counts())
        return interpolate(
            values[np.searchsorted(ends, low, side="right")],
            values[np.searchsorted(ends, high, side="right")],
            fraction,
        )

    def ranges(self) -> tuple[FloatArray, FloatArray, IntArray]:
        """Return the lower and upper ends of the non-empty bins, ascending, and their counts."""
        negative, positive, end = self._negative.keys, self._positive.keys, self._bins.upper_ends
        low = _ascending(end(negative), end(positive - 1))
        high = _ascending(end(negative - 1), end(positive))
        counts = self._counts()
        return low[counts > 0], high[counts > 0], counts[counts > 0]

    def buckets(self) -> tuple[int, Buckets, Buckets]:
        """Return the number of zeros, and the counts of positive values and of negative ones."""
        positive, negative = (
            Buckets.of(bins.keys, bins.counts) for bins in (self._positive, self._negative)
        )
        return self._zeros, positive, negative

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        return {
            "max_bins": self.max_bins,
            "zeros": self._zeros,
            "positive": self._positive.to_dict(),
            "negative": self._negative.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], unit: str) -> LogHistogram:
        """Return the histogram of values in ``unit`` that :meth:`to_dict` gave as ``data``."""
        sketch = cls(unit, data["max_bins"])
        sketch._zeros = data["zeros"]
        sketch._positive = Bins.from_dict(data["positive"], sketch.max_bins)
        sketch._negative = Bins.from_dict(data["negative"], sketch.max_bins)
        return sketch

    def _add_equal(self, value: float, count: int) -> None:
        """Count one value ``count`` times."""
        if value == 0.0:
            self._zeros += count
        else:
            bins = self._positive if value > 0.0 else self._negative
            key = int(self._bins.of(np.array([abs(value)]))[0])
            bins.absorb(key, np.array([count]), key)

    def _counts(self) -> IntArray:
        """Return the counts of all bins, in the order of the values."""
        return np.concatenate([self._negative.counts[::-1], [self._zeros], self._positive.counts])


def _ascending(negative: FloatArray, positive: FloatArray) -> FloatArray:
    """Return what belongs to the bins of negative values, zero and positive values, in ascending order."""
    return np.concatenate([-negative[::-1], [0.0], positive])
