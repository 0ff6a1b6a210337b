"""Small integers that stand for values to within a relative error, in the order of the values.

These are the bins of :class:`~phase_bus.aggregation.sketch.DDSketch` for both signs and zero in one row,
without a bound on their number other than the range of a float.
"""

from __future__ import annotations

import math

import numpy as np

from phase_bus.aggregation.packing import FloatArray, IntArray

WINDOW_ERROR = 0.02
BITS = 18

_LOG_GAMMA = math.log1p(WINDOW_ERROR) - math.log1p(-WINDOW_ERROR)
_ZERO = 1 << (BITS - 1)  # the code of 0; larger ones are of positive values
_SHIFT = 1 << (BITS - 3)  # added to a bin's number, which is negative for values below 1


def codes_of(values: FloatArray) -> IntArray:
    """Return the codes of finite values, shape (n,), each of at most :data:`BITS` bits.

    A larger value has a larger code, or the same.
    """
    if not len(values):
        return np.empty(0, dtype=np.int64)
    if values.min() > 0.0:
        return _bins(values) + (_ZERO + _SHIFT)
    codes = np.full(len(values), _ZERO)
    positive, negative = values > 0.0, values < 0.0
    codes[positive] += _bins(values[positive]) + _SHIFT
    codes[negative] -= _bins(-values[negative]) + _SHIFT
    return codes


def values_of(codes: IntArray) -> FloatArray:
    """Return for each code the value that is off from both ends of its bin by :data:`WINDOW_ERROR`."""
    distance = codes - _ZERO
    exponents = (np.abs(distance) - _SHIFT) * _LOG_GAMMA + math.log1p(-WINDOW_ERROR)
    # The last bin of all may end beyond the largest float. The exponent of zero means nothing.
    values: FloatArray = np.sign(distance) * np.exp(np.minimum(exponents, 709.78))
    return values


def _bins(magnitudes: FloatArray) -> IntArray:
    scaled = np.log(magnitudes)
    scaled *= 1.0 / _LOG_GAMMA
    return np.ceil(scaled, out=scaled).astype(np.int64)
