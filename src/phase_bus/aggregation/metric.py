"""The mergeable state of one metric: exact sums, and percentiles in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.histogram import count_ranges, count_values, edges
from phase_bus.aggregation.moments import Moments
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.packing import FloatArray, IntArray, pack_values, unpack_values
from phase_bus.aggregation.sketch import DDSketch, interpolate, ranks

# Values are summed in chunks counted from the first value, so that batches leave no trace. What waits for
# its chunk to be full is part of the state, and so of what is written at every checkpoint.
_CHUNK = 1024
# So many are looked into at a time, where there is a choice: enough for numpy to be fast.
_BLOCK = 4 * _CHUNK

_Number = TypeVar("_Number", int, float)


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
        # While exact all values, of which the first _settled_count are settled; then those that are not.
        self._buffer: FloatArray = np.empty(0)
        self._filled = 0
        self._settled_count = 0
        self._room = 0  # up to where the buffer can be filled without a further thought

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
        end = self._filled + len(values)
        if end <= self._room:
            self._buffer[self._filled : end] = values
            self._filled = end
        else:
            self._make_room(values)

    def merge(self, *others: MetricState) -> None:
        """Add what other states know; they stay as they are.

        The result is exact if all of them are, however many values that makes: the limit is of the
        values that one state is updated with.

        Raises:
            ValueError: another has other options.
        """
        for other in others:
            if self.options != other.options:
                raise ValueError(f"cannot merge states of {self.options} and {other.options}")
        self._settle()
        others = tuple(other.settled() for other in others)
        kept = [state._values() for state in (self, *others) if state._sketch is None]
        if len(kept) == 1 + len(others):
            # Sorted, since the order of merging must not show; + 0.0 makes -0.0 a plain zero.
            self._buffer = np.sort(np.concatenate(kept)) + 0.0
            self._filled = self._settled_count = len(self._buffer)
            self._room = 0
        else:
            self._leave_exact()
            assert self._sketch is not None
            for other in others:
                if other._sketch is None:
                    self._sketch.update(other._values())
                else:
                    self._sketch.merge(other._sketch)
        for other in others:
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
        state._buffer, state._room = self._values().copy(), 0
        return state

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        self._settle_chunks()
        return {
            "set_aside": self.set_aside,
            "moments": self._moments.to_dict(),
            "min": self._min,
            "max": self._max,
            "values": pack_values(self._values()),
            "settled": self._settled_count,
            "sketch": None if self._sketch is None else self._sketch.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], options: Options) -> MetricState:
        """Return the state that :meth:`to_dict` gave as ``data``, to go on with.

        Args:
            data: it.
            options: those of that state.
        """
        state = cls(options)
        state.set_aside, state._settled_count = data["set_aside"], data["settled"]
        state._moments = Moments.from_dict(data["moments"])
        state._min, state._max = data["min"], data["max"]
        state._buffer = unpack_values(data["values"])
        state._filled = len(state._buffer)
        if data["sketch"] is not None:
            state._sketch = DDSketch.from_dict(data["sketch"])
        return state

    def _values(self) -> FloatArray:
        return self._buffer[: self._filled]

    def _make_room(self, values: npt.NDArray[Any]) -> None:
        """Add values that do not fit in, or hardly."""
        if self._sketch is None and self._filled + len(values) > self.options.exact_limit:
            self._leave_exact()
        if self._sketch is not None:
            while self._filled + len(values) >= _BLOCK:
                part = values[: _BLOCK - self._filled]
                self._append(part)
                self._settle_chunks()
                values = values[len(part) :]
        self._append(values)

    def _append(self, values: npt.NDArray[Any]) -> None:
        end = self._filled + len(values)
        if end > len(self._buffer):
            limit = self.options.exact_limit if self._sketch is None else _BLOCK
            buffer = np.empty(min(max(end, 2 * len(self._buffer)), limit))
            buffer[: self._filled] = self._values()
            self._buffer = buffer
            self._room = len(buffer) if self._sketch is None else len(buffer) - 1
        self._buffer[self._filled : end] = values
        self._filled = end

    def _settle_chunks(self) -> None:
        """Sum the chunks that are full; once not exact, only what waits for its chunk is kept."""
        full = (self._filled - self._settled_count) // _CHUNK * _CHUNK
        if full:
            self._settle_next(full, _CHUNK)

    def _settle(self) -> None:
        """Sum everything, full chunk or not: nothing can be added as if it had not been looked at."""
        self._settle_chunks()
        rest = self._filled - self._settled_count
        if rest:
            self._settle_next(rest, rest)

    def _settle_next(self, count: int, chunk: int) -> None:
        start, end = self._settled_count, self._settled_count + count
        values = self._buffer[start:end]
        low, high = self._moments.add(values.reshape(-1, chunk))
        # + 0.0 turns -0.0 into 0.0: which of two equal zeros came first must not show.
        self._min, self._max = least(self._min, low + 0.0), most(self._max, high + 0.0)
        if self._sketch is None:
            self._settled_count = end
        else:
            self._sketch.update_between(values, low, high)
            self._filled -= end
            self._buffer[: self._filled] = self._buffer[end : end + self._filled]

    def _leave_exact(self) -> None:
        """Go over to the sketch; what waits goes on waiting."""
        if self._sketch is not None:
            return
        self._settle_chunks()
        self._sketch = DDSketch(self.options.relative_error)
        self._sketch.update(self._buffer[: self._settled_count])
        self._buffer = self._buffer[self._settled_count : self._filled].copy()
        self._filled, self._settled_count, self._room = len(self._buffer), 0, 0


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
