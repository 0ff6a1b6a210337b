"""Logarithmic bins: whole numbers that stand for values to within a relative error, in the same order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.packing import FloatArray, IntArray

_LARGEST_EXPONENT = 709.78  # that of the largest float, beyond which the topmost bin may end


class LogBins:
    """The bins of positive values that DDSketch uses (see :mod:`~phase_bus.aggregation.sketch`).

    A value ``v`` is in the bin ``ceil(log(v) / log(gamma))`` with ``gamma = (1 + e) / (1 - e)`` for the
    relative error ``e``. Bins are found by numpy's ``log``: a value within an ulp of a bin's edge may fall
    to either side on another processor.
    """

    def __init__(self, relative_error: float) -> None:
        self._to_middle = math.log1p(-relative_error)
        self._log_gamma = math.log1p(relative_error) - self._to_middle

    def of(self, magnitudes: FloatArray) -> IntArray:
        """Return the bins of positive values, shape (n,)."""
        scaled = np.log(magnitudes)
        scaled *= 1.0 / self._log_gamma
        return np.ceil(scaled, out=scaled).astype(np.int64)

    def middles(self, bins: IntArray) -> FloatArray:
        """Return for each bin the value that is within the relative error of all values in it."""
        return _exp(bins * self._log_gamma + self._to_middle)

    def upper_ends(self, bins: IntArray) -> FloatArray:
        """Return the upper end of each bin, which is the lower end of the next."""
        return _exp(bins * self._log_gamma)


def _exp(exponents: npt.NDArray[Any]) -> FloatArray:
    values: FloatArray = np.exp(np.minimum(exponents, _LARGEST_EXPONENT))
    return values


# ---- codes: coarser bins of both signs and zero in one row, for windows over time ----

WINDOW_ERROR = 0.02
BITS = 18

_BINS = LogBins(WINDOW_ERROR)
_ZERO = 1 << (BITS - 1)  # the code of 0; larger codes stand for positive values
_SHIFT = 1 << (BITS - 3)  # added to a bin's number, which is negative for values below 1


def codes_of(values: FloatArray) -> IntArray:
    """Return the codes of finite values, shape (n,), each of at most :data:`BITS` bits.

    A larger value has the same code or a larger one.
    """
    if not len(values):
        return np.empty(0, dtype=np.int64)
    if values.min() > 0.0:
        return _BINS.of(values) + (_ZERO + _SHIFT)
    codes = np.full(len(values), _ZERO)
    positive, negative = values > 0.0, values < 0.0
    codes[positive] += _BINS.of(values[positive]) + _SHIFT
    codes[negative] -= _BINS.of(-values[negative]) + _SHIFT
    return codes


def values_of(codes: IntArray) -> FloatArray:
    """Return for each code the value that stands for its bin, within :data:`WINDOW_ERROR` of all in it."""
    distance = codes - _ZERO
    values: FloatArray = np.sign(distance) * _BINS.middles(np.abs(distance) - _SHIFT)
    return values
