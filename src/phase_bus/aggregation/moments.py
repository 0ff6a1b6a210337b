"""Sum, mean and standard deviation that come out the same in whatever order parts are merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

import numpy as np
import numpy.typing as npt

# Every float is an integer multiple of 2**-1074, the smallest one.
_SCALE = 1074
# Between these bounds neither float32 pivots nor float64 squares overflow or vanish.
_HUGE, _TINY = 1e37, 1e-37


class Moments:
    """Count, sum and sum of squares of values, for their mean and population standard deviation.

    A column is summed in floating point about a pivot near its mean, where next to nothing cancels;
    the sums are then shifted back to zero and accumulated as exact integers (fixed-point numbers of
    a few hundred digits). So merging is exactly associative and commutative, equal values give a
    standard deviation of exactly 0, and the sum of integers is exact up to about 2**53.

    The shift is the textbook identity ``sum x^2 = sum (x-p)^2 + 2 p sum (x-p) + n p^2``.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0  # in units of 2**-_SCALE
        self._squares = 0  # in units of 2**-(2 * _SCALE)

    def add(self, rows: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Add finite values, shape (k, n), n at least 1, row by row; return the smallest and largest.

        What a row adds depends on that row alone.
        """
        lows: list[float] = np.minimum.reduce(rows, axis=1).tolist()
        highs: list[float] = np.maximum.reduce(rows, axis=1).tolist()
        low, high, narrowest = min(lows), max(highs), min(map(sub, highs, lows))
        n = rows.shape[1]
        if low == high:
            self._add_about(rows.size, [low], [0.0], [0.0])
        elif max(-low, high) > _HUGE or narrowest < _TINY:
            if n == rows.size:
                self._add_exactly(rows[0])
            else:
                for row in rows:
                    self.add(row[np.newaxis])
        else:
            # A pivot of 24 bits makes the differences of integers exact.
            pivots = (np.add.reduce(rows, axis=1) / n).astype(np.float32).astype(np.float64)
            difference = rows - pivots[:, np.newaxis]
            totals = np.add.reduce(difference, axis=1)
            np.multiply(difference, difference, out=difference)
            squares = np.add.reduce(difference, axis=1)
            self._add_about(n, pivots.tolist(), totals.tolist(), squares.tolist())
        return low, high

    def merge(self, other: Moments) -> None:
        """Add what another has summed; the other is left unchanged."""
        self.count += other.count
        self._sum += other._sum
        self._squares += other._squares

    @property
    def sum(self) -> float:
        """The sum; infinite if it is beyond the range of a float."""
        return _ratio(self._sum, 1 << _SCALE)

    @property
    def mean(self) -> float | None:
        """The mean, None without values."""
        return _ratio(self._sum, self.count << _SCALE) if self.count else None

    @property
    def std(self) -> float | None:
        """The population standard deviation, None without values."""
        if not self.count:
            return None
        deviation = max(self.count * self._squares - self._sum**2, 0)
        extra = 64  # bits, so that the integer root of a small number is precise too
        return _ratio(math.isqrt(deviation << 2 * extra), self.count << (_SCALE + extra))

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        return {"count": self.count, "sum": _pack(self._sum), "squares": _pack(self._squares)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Moments:
        """Return the moments that :meth:`to_dict` wrote as ``data``."""
        moments = cls()
        moments.count = data["count"]
        moments._sum, moments._squares = _unpack(data["sum"]), _unpack(data["squares"])
        return moments

    def _add_about(self, n: int, pivots: list[float], totals: list[float], squares: list[float]) -> None:
        """Add rows of n values, given each one's sum and sum of squares after subtracting its pivot."""
        ratios = [number.as_integer_ratio() for number in (*pivots, *totals, *squares)]
        # As integers in units of 2**-bits, which are far shorter than in those of 2**-_SCALE.
        bits = max(denominator for _, denominator in ratios).bit_length() - 1
        whole = [numerator << bits + 1 - denominator.bit_length() for numerator, denominator in ratios]
        k = len(pivots)
        added = added_squares = 0
        for p, d, s in zip(whole[:k], whole[k : 2 * k], whole[2 * k :], strict=True):
            added += n * p + d
            added_squares += (s << bits) + (2 * d + n * p) * p
        self.count += n * k
        self._sum += added << _SCALE - bits
        self._squares += added_squares << 2 * (_SCALE - bits)

    def _add_exactly(self, values: npt.NDArray[np.float64]) -> None:
        """Add values whose squares a float cannot hold; slow, about 1 µs a value."""
        fixed = [_fixed(value) for value in values.tolist()]
        self.count += len(fixed)
        self._sum += sum(fixed)
        self._squares += sum(value * value for value in fixed)


def _fixed(value: float) -> int:
    """Return a finite float in units of ``2**-_SCALE``, exactly."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_SCALE + 1 - denominator.bit_length())


def _ratio(numerator: int, denominator: int) -> float:
    try:
        return numerator / denominator
    except OverflowError:
        return math.copysign(math.inf, numerator)


def _pack(number: int) -> list[Any]:
    """Return an integer of any size as its trailing zero bits and the bytes of the rest."""
    if not number:
        return [0, b""]
    zeros = (number & -number).bit_length() - 1
    odd = number >> zeros
    return [zeros, odd.to_bytes(odd.bit_length() // 8 + 1, "little", signed=True)]


def _unpack(packed: Sequence[Any]) -> int:
    zeros, odd = int(packed[0]), packed[1]
    return int.from_bytes(odd, "little", signed=True) << zeros
