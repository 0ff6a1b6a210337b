"""Histograms for plots: bins of equal width, or of equal ratio where the values span decades."""

from __future__ import annotations

import numpy as np

from phase_bus.aggregation.packing import FloatArray, IntArray

# Bins are of equal ratio if the largest value is at least this many times the smallest.
_DECADE = 10.0


def edges(low: float, high: float, bins: int) -> FloatArray:
    """Return the ascending edges, shape (bins + 1,), of bins from ``low`` to ``high``.

    The first and last edge are exactly these; if both are equal, one bin of 1 % lies around them. There
    are fewer bins if there are too few floats in between.

    Raises:
        ValueError: if ``bins`` is less than 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if low == high:
        half = abs(low) * 0.005 or 0.5
        return np.array([low - half, high + half])
    if low > 0.0 and high / _DECADE >= low:
        found = np.exp(np.linspace(np.log(low), np.log(high), bins + 1))
    else:  # halved, since the distance of two floats may overflow
        found = np.linspace(low / 2, high / 2, bins + 1) * 2
    found[0], found[-1] = low, high
    result: FloatArray = np.unique(np.clip(found, low, high))
    return result


def count_values(values: FloatArray, at: FloatArray) -> IntArray:
    """Count values, shape (n,), all of them between the first and last edge, between the edges."""
    places = np.searchsorted(at, values, side="right") - 1
    counts: IntArray = np.bincount(np.minimum(places, len(at) - 2), minlength=len(at) - 1).astype(np.int64)
    return counts


def count_ranges(low: FloatArray, high: FloatArray, counts: IntArray, at: FloatArray) -> IntArray:
    """Distribute the counts of ascending ranges over bins, as if values lay evenly within their range.

    What is below an edge is rounded to a whole number, so the counts are whole and their sum is kept. Each
    range, shape (n,), lies between the first and the last edge of ``at``; that of a single value is empty.
    """
    ends = np.cumsum(counts)
    place = np.minimum(np.searchsorted(high, at, side="right"), len(ends) - 1)  # first one not all below
    width = high[place] - low[place]
    share = np.clip((at - low[place]) / np.where(width > 0.0, width, 1.0), 0.0, 1.0)
    share[width <= 0.0] = 0.0
    below = np.rint(ends[place] - counts[place] * (1.0 - share)).astype(np.int64)
    below[0], below[-1] = 0, ends[-1]
    return np.diff(below)
