"""Logarithmic bins: whole numbers that stand for values to within a relative error, in the same order.

Values are binned in their metric's base unit (seconds, bytes, a ratio), so that a bin here is a bucket of
a Prometheus native histogram (of schema 7) and of an OTLP exponential histogram (of scale 7), and can be
counted together with those of anybody who uses either.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.packing import FloatArray, IntArray
from phase_bus.aggregation.units import base_unit

SCALE = 7

_LARGEST_EXPONENT = math.nextafter(1024.0, 0.0)  # of a float; the topmost bin may end beyond
# Taken off a value's logarithm to base 2. More than that is ever off by rounding, on any processor, so the
# value at a bin's upper edge is in that bin; and far less than what anybody measures can tell apart.
_TINY = 1e-11


def relative_error(scale: int) -> float:
    """Return the largest relative error if a bin's middle stands for the values in it."""
    return math.tanh(math.log(2.0) / 2 ** (scale + 1))


def coarser(bins: npt.NDArray[Any], steps: int) -> npt.NDArray[Any]:
    """Return the bins of a scale that is ``steps`` lower which hold these bins, shape (n,)."""
    return -(-bins >> steps)


class LogBins:
    """The bins of positive values, of a scale and for a unit.

    With ``base = 2 ** (1 / 2**scale)``, the bin ``i`` holds what is above ``base ** (i - 1)`` base units
    and up to ``base ** i``, this included. So a value ``v`` is in the bin ``ceil(2**scale * log2(v * f))``,
    with the factor ``f`` that converts to the base unit; the factor is an offset in the logarithm. A bin of
    a lower scale is made of neighbouring bins, exactly (:func:`coarser`): nothing is binned twice.

    Args:
        scale: how fine the bins are; one step more halves them.
        unit: the unit of values, as of :class:`~phase_bus.aggregation.units.MetricInfo`.
    """

    def __init__(self, scale: int = SCALE, unit: str = "") -> None:
        self._bins_an_octave = 2.0**scale
        self._offset = math.log2(base_unit(unit).factor)
        self._to_middle = math.log2(1.0 - relative_error(scale))

    def of(self, magnitudes: FloatArray) -> IntArray:
        """Return the bins of positive values, shape (n,)."""
        scaled = np.log2(magnitudes)
        scaled += self._offset - _TINY
        scaled *= self._bins_an_octave
        return np.ceil(scaled, out=scaled).astype(np.int64)

    def middles(self, bins: IntArray) -> FloatArray:
        """Return for each bin the value that is within the relative error of all values in it."""
        return _exp2(bins / self._bins_an_octave + (self._to_middle - self._offset))

    def upper_ends(self, bins: IntArray) -> FloatArray:
        """Return the upper end of each bin, which is the lower end of the next."""
        return _exp2(bins / self._bins_an_octave - self._offset)


@cache
def bins_of(unit: str, scale: int = SCALE) -> LogBins:
    """Return the bins of values in a unit."""
    return LogBins(scale, unit)


def _exp2(exponents: npt.NDArray[Any]) -> FloatArray:
    values: FloatArray = np.exp2(np.minimum(exponents, _LARGEST_EXPONENT))
    return values


# ---- codes: coarser bins of both signs and zero in one row, for windows over time ----

WINDOW_SCALE = 4  # one more would make a partition's state nearly twice as large
WINDOW_ERROR = relative_error(WINDOW_SCALE)


def bits_of(scale: int) -> int:
    """Return how many bits the codes of a scale have."""
    return 14 + scale


def _origin(scale: int) -> tuple[int, int]:
    """Return the code of 0, and what is added to a bin's number, which is negative for values below 1.

    Larger codes stand for positive values.
    """
    return 1 << (bits_of(scale) - 1), 1 << (bits_of(scale) - 3)


def codes_of(values: FloatArray, unit: str = "", scale: int = WINDOW_SCALE) -> IntArray:
    """Return the codes of finite values, shape (n,), each of at most :func:`bits_of` bits.

    A larger value has the same code or a larger one.
    """
    if not len(values):
        return np.empty(0, dtype=np.int64)
    bins, (zero, shift) = bins_of(unit, scale), _origin(scale)
    if values.min() > 0.0:
        return bins.of(values) + (zero + shift)
    codes = np.full(len(values), zero)
    positive, negative = values > 0.0, values < 0.0
    codes[positive] += bins.of(values[positive]) + shift
    codes[negative] -= bins.of(-values[negative]) + shift
    return codes


def values_of(codes: IntArray, unit: str = "", scale: int = WINDOW_SCALE) -> FloatArray:
    """Return for each code the value that stands for its bin, within the relative error of all in it."""
    zero, shift = _origin(scale)
    distance = codes - zero
    middles = bins_of(unit, scale).middles(np.abs(distance) - shift)
    values: FloatArray = np.sign(distance) * middles
    return values


def signed_bins(codes: IntArray, scale: int = WINDOW_SCALE) -> tuple[IntArray, IntArray]:
    """Return for each code the sign of its values, -1, 0 or 1, and their magnitudes' bin."""
    zero, shift = _origin(scale)
    distance = codes - zero
    return np.sign(distance), np.abs(distance) - shift
