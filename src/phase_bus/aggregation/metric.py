"""The mergeable state of one metric: exact sums, and percentiles in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from phase_bus.aggregation.histogram import count_ranges, count_values, edges
from phase_bus.aggregation.moments import Moments
from phase_bus.aggregation.sketch import (
    RELATIVE_ERROR,
    DDSketch,
    FloatArray,
    IntArray,
    interpolate,
    ranks,
)

EXACT_LIMIT = 16_384

# Values are summed and binned this many at a time: enough for numpy to be fast, and within the cache.
_CHUNK = 4096

_Number = TypeVar("_Number", int, float)


class Options(Struct, frozen=True):
    """How a state summarises values. Only states of equal options can be merged.

    Attributes:
        relative_error: the largest relative error of a percentile that is not exact.
        exact_limit: up to how many values of one metric and phase percentiles are exact; 8 bytes each.
    """

    relative_error: float = RELATIVE_ERROR
    exact_limit: int = EXACT_LIMIT


class MetricState:
    """What is known of one metric's values, in the metric's own unit.

    Up to ``options.exact_limit`` values are kept as they are, and percentiles are exact; beyond that
    they are only counted in a :class:`~phase_bus.aggregation.sketch.DDSketch`, and memory no longer
    grows. Count, sum, mean, standard deviation, min and max are never approximated.

    Attributes:
        options: how values are summarised.
        set_aside: how many values were NaN or infinite; nothing else counts them.
    """

    def __init__(self, options: Options = Options()) -> None:  # noqa: B008 - frozen
        self.options = options
        self.set_aside = 0
        self._moments = Moments()  # of the values that are settled
        self._min: float | None = None
        self._max: float | None = None
        self._sketch: DDSketch | None = None  # None while exact
        # While exact all values, of which the first _settled_count are settled; then those that are
        # not. Values are settled in chunks counted from the first one: thus batches leave no trace.
        self._buffer: FloatArray = np.empty(0)
        self._filled = 0
        self._settled_count = 0

    @property
    def count(self) -> int:
        """How many finite values there were."""
        return self._moments.count + self._filled - self._settled_count

    @property
    def exact(self) -> bool:
        """Whether percentiles are exact."""
        return self._sketch is None

    @property
    def sum(self) -> float:
        """The sum of the values."""
        return self.settled()._moments.sum

    @property
    def mean(self) -> float | None:
        """The mean, None without values."""
        return self.settled()._moments.mean

    @property
    def std(self) -> float | None:
        """The population standard deviation (AIPerf's: divided by n), None without values."""
        return self.settled()._moments.std

    @property
    def min(self) -> float | None:
        """The least value, None without values."""
        return self.settled()._min

    @property
    def max(self) -> float | None:
        """The largest value, None without values."""
        return self.settled()._max

    def percentile(self, p: float) -> float | None:
        """Return the percentile ``p`` (0 to 100), None without values; see :meth:`percentiles`."""
        return self.percentiles([p])[0] if self.count else None

    def percentiles(self, ps: Sequence[float]) -> list[float]:
        """Return the percentiles ``ps`` (0 to 100), by linear interpolation; none without values.

        While ``exact``, as ``numpy.percentile``. Then within ``options.relative_error`` of that.

        Raises:
            ValueError: a percentile is not between 0 and 100.
        """
        state = self.settled()
        if not state.count:
            return []
        quantiles = [p / 100.0 for p in ps]
        if state._sketch is None:
            values = np.sort(state._values())
            low, high, fraction = ranks(len(values), quantiles)
            found = interpolate(values[low], values[high], fraction)
        else:
            found = state._sketch.quantiles(quantiles)
        result: list[float] = np.clip(found, state._min, state._max).tolist()
        return result

    def histogram(self, bins: int) -> tuple[FloatArray, IntArray]:
        """Return edges, shape (n + 1,), and how many values lie between them, shape (n,), for a plot.

        The edges go from the least to the largest value, at equal distances, or at equal ratios where
        all values are positive and span a decade. There are ``bins`` bins, or fewer where the values
        differ too little for so many; both arrays are empty without values. Once the percentiles are
        not exact, a count is shared out as if values lay evenly within a bin of the sketch.

        Raises:
            ValueError: ``bins`` is not at least 1.
        """
        state = self.settled()
        if state._min is None or state._max is None:
            return np.empty(0), np.empty(0, dtype=np.int64)
        at = edges(state._min, state._max, bins)
        if state._sketch is None:
            return at, count_values(state._values(), at)
        low, high, counts = state._sketch.ranges()
        low, high = (np.clip(end, state._min, state._max) for end in (low, high))
        return at, count_ranges(low, high, counts, at)

    def update(self, values: npt.NDArray[Any]) -> None:
        """Add a column of numbers, shape (n,). NaN and infinity are counted and set aside."""
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            strange = len(values) - int(np.count_nonzero(finite))  # quicker than all()
            if strange:
                self.set_aside += strange
                values = values[finite]
        if self._sketch is None and self._filled + len(values) > self.options.exact_limit:
            self._leave_exact()
        if self._sketch is None:
            self._keep(values)
        else:
            self._pass(values)

    def merge(self, other: MetricState) -> None:
        """Add what another state knows; it stays as it is.

        Raises:
            ValueError: the other has other options.
        """
        if self.options != other.options:
            raise ValueError(f"cannot merge states of {self.options} and {other.options}")
        self._settle()
        other = other.settled()
        fits = self.count + other.count <= self.options.exact_limit
        if self.exact and other.exact and fits:
            # Sorted, since the order of merging must not show; + 0.0 makes -0.0 a plain zero.
            self._buffer = np.sort(np.concatenate([self._values(), other._values()])) + 0.0
            self._filled = self._settled_count = len(self._buffer)
        else:
            self._leave_exact()
            assert self._sketch is not None
            if other._sketch is None:
                self._sketch.update(other._values())
            else:
                self._sketch.merge(other._sketch)
        self.set_aside += other.set_aside
        self._moments.merge(other._moments)
        self._min, self._max = least(self._min, other._min), most(self._max, other._max)

    def settled(self) -> MetricState:
        """Return this state for reading: itself, or a copy where values are not yet summed."""
        if self._filled == self._settled_count:
            return self
        state = self.copy()
        state._settle()
        return state

    def copy(self) -> MetricState:
        """Return a state of the same content that changes on its own."""
        state = copy(self)
        state._moments = self._moments.copy()
        state._sketch = None if self._sketch is None else self._sketch.copy()
        state._buffer = self._values().copy()
        return state

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack."""
        return {
            "options": [self.options.relative_error, self.options.exact_limit],
            "set_aside": self.set_aside,
            "moments": self._moments.to_dict(),
            "min": self._min,
            "max": self._max,
            "values": self._values().astype("<f8").tobytes(),
            "settled": self._settled_count,
            "sketch": None if self._sketch is None else self._sketch.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MetricState:
        """Return the state that :meth:`to_dict` gave as ``data``, to go on with."""
        state = cls(Options(*data["options"]))
        state.set_aside, state._settled_count = data["set_aside"], data["settled"]
        state._moments = Moments.from_dict(data["moments"])
        state._min, state._max = data["min"], data["max"]
        state._buffer = np.frombuffer(data["values"], "<f8").astype(np.float64)
        state._filled = len(state._buffer)
        if data["sketch"] is not None:
            state._sketch = DDSketch.from_dict(data["sketch"])
        return state

    def _values(self) -> FloatArray:
        return self._buffer[: self._filled]

    def _keep(self, values: npt.NDArray[Any]) -> None:
        """Take in values while exact."""
        end = self._filled + len(values)
        self._reserve(end, self.options.exact_limit)
        self._buffer[self._filled : end] = values
        self._filled = end
        while self._filled - self._settled_count >= _CHUNK:
            start, self._settled_count = self._settled_count, self._settled_count + _CHUNK
            self._add_chunk(self._buffer[start : self._settled_count])

    def _pass(self, values: npt.NDArray[Any]) -> None:
        """Take in values once they are no longer kept."""
        self._reserve(_CHUNK, _CHUNK)
        start = 0
        while start < len(values):
            part = values[start : start + _CHUNK - self._filled]
            start += len(part)
            if len(part) == _CHUNK:
                self._add_chunk(np.asarray(part, dtype=np.float64))
                continue
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == _CHUNK:
                self._filled = 0
                self._add_chunk(self._buffer[:_CHUNK])

    def _reserve(self, needed: int, limit: int) -> None:
        if needed > len(self._buffer):
            buffer = np.empty(min(max(needed, 2 * len(self._buffer)), limit))
            buffer[: self._filled] = self._values()
            self._buffer = buffer

    def _settle(self) -> None:
        """Sum what waits for its chunk to be full."""
        waiting = self._buffer[self._settled_count : self._filled]
        if self._sketch is None:
            self._settled_count = self._filled
        else:
            self._filled = 0
        if len(waiting):
            self._add_chunk(waiting)

    def _leave_exact(self) -> None:
        """Go over to the sketch; what waits goes on waiting."""
        if self._sketch is not None:
            return
        self._sketch = DDSketch(self.options.relative_error)
        self._sketch.update(self._buffer[: self._settled_count])
        self._buffer = self._buffer[self._settled_count : self._filled].copy()
        self._filled, self._settled_count = len(self._buffer), 0

    def _add_chunk(self, values: FloatArray) -> None:
        # + 0.0 turns -0.0 into 0.0: which of two equal zeros came first must not show.
        low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
        self._moments.add(values, low, high)
        self._min, self._max = least(self._min, low), most(self._max, high)
        if self._sketch is not None:
            self._sketch.update(values)


def least(a: _Number | None, b: _Number | None) -> _Number | None:
    """Return the lesser of two numbers, of which either may be missing."""
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)


def most(a: _Number | None, b: _Number | None) -> _Number | None:
    """Return the larger of two numbers, of which either may be missing."""
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)
