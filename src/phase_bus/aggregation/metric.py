"""The mergeable state of one metric: exact sums, and percentiles in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.exponential import ExponentialHistogram
from phase_bus.aggregation.histogram import count_ranges, count_values, edges
from phase_bus.aggregation.limits import LARGEST
from phase_bus.aggregation.log_bins import SCALE
from phase_bus.aggregation.moments import Moments
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.packing import FloatArray, IntArray, pack_values, unpack_values
from phase_bus.aggregation.sketch import LogHistogram, interpolate, ranks
from phase_bus.aggregation.units import base_unit
from phase_bus.errors import StateError

# Values are summed in chunks counted from the first value, so that the sizes of batches do not show. What
# waits for its chunk to be full is part of the state, and so of what is written at every checkpoint.
_CHUNK = 1024
# What waits is processed when there is this much, enough for numpy to be fast, or in this many pieces.
_BLOCK = 4 * _CHUNK
_PIECES = 16

_NOTHING: FloatArray = np.empty(0)

_Number = TypeVar("_Number", int, float)


class MetricState:
    """The statistics of one metric's values, in the metric's own unit.

    Up to ``options.exact_limit`` values are kept as they are, and percentiles are exact; beyond that
    they are only counted in a :class:`~phase_bus.aggregation.sketch.LogHistogram`, and memory no longer
    grows. Count, sum, mean, standard deviation, min and max are never approximated.

    Values that wait to be processed keep the batch alive that they came in.

    Args:
        options: how values are summarised.
        unit: the metric's own unit, as of :class:`~phase_bus.aggregation.units.MetricInfo`.
    """

    def __init__(self, options: Options = Options(), unit: str = "") -> None:  # noqa: B008 - frozen
        self.options = options
        self.unit = unit
        self._set_aside = 0
        self._moments = Moments()
        self._min: float | None = None
        self._max: float | None = None
        self._kept: list[FloatArray] = []  # while exact: all the values that are summed
        self._sketch: LogHistogram | None = None  # None while exact
        self._waiting: list[npt.NDArray[Any]] = []
        self._filled = 0  # how many wait

    @property
    def set_aside(self) -> int:
        """How many values were left out as NaN, infinite or beyond 1e250; no other number has them."""
        self._sum_chunks()
        return self._set_aside

    @property
    def count(self) -> int:
        """How many values there were, without those set aside."""
        self._sum_chunks()
        return self._moments.count + self._filled

    @property
    def exact(self) -> bool:
        """Whether percentiles are exact."""
        self._sum_chunks()
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
        """The smallest value, None without values."""
        return self.settled()._min

    @property
    def max(self) -> float | None:
        """The largest value, None without values."""
        return self.settled()._max

    def statistic(self, name: str) -> float | None:
        """Return ``mean``, ``std``, ``min``, ``max``, ``sum``, ``count``, or ``p0`` to ``p100``.

        None where it takes values and there are none.
        """
        if name.startswith("p"):
            return self.percentile(float(name[1:]))
        value: float | None = getattr(self, name)
        return None if value is None else float(value)

    def percentile(self, p: float) -> float | None:
        """Return the percentile ``p`` (0 to 100), None without values; see :meth:`percentiles`."""
        return self.percentiles([p])[0] if self.count else None

    def percentiles(self, ps: Sequence[float]) -> list[float]:
        """Return the percentiles ``ps`` (0 to 100), by linear interpolation; none without values.

        While ``exact``, as ``numpy.percentile``. Then within
        :data:`~phase_bus.aggregation.sketch.RELATIVE_ERROR` of that.

        Raises:
            ValueError: if a percentile is not between 0 and 100.
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
        found = np.clip(found, state._min, state._max)
        found[np.equal(quantiles, 0.0)], found[np.equal(quantiles, 1.0)] = state._min, state._max
        result: list[float] = found.tolist()
        return result

    def histogram(self, bins: int) -> tuple[FloatArray, IntArray]:
        """Return edges, shape (n + 1,), and how many values lie between them, shape (n,), for a plot.

        The edges go from the smallest to the largest value, at equal distances, or at equal ratios if
        all values are positive and span a decade. There are ``bins`` bins, or fewer if the values
        differ too little for so many; both arrays are empty without values. Once the percentiles are
        not exact, counts are distributed as if values lay evenly within each bin of the sketch.

        Raises:
            ValueError: if ``bins`` is less than 1.
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

    def exponential(self, scale: int = SCALE) -> ExponentialHistogram:
        """Return the values' histogram for export, in the metric's base unit.

        Its count, sum, min and max are this state's, and it has the same bins whether percentiles are exact
        or not.

        Args:
            scale: how fine the buckets are, at most the default.

        Raises:
            ValueError: if the scale is higher.
        """
        state = self.settled()
        sketch = state._sketch
        if sketch is None:
            sketch = LogHistogram(self.unit)
            sketch.update(state._values())
        zeros, positive, negative = sketch.buckets()
        base = base_unit(self.unit)
        low, high = (None if end is None else base.convert(end) for end in (state._min, state._max))
        whole = ExponentialHistogram(
            base.name, SCALE, state.count, base.convert(state.sum), low, high, zeros, positive, negative
        )
        return whole.coarser(scale)

    def update(self, values: npt.NDArray[Any]) -> None:
        """Add a column of numbers, shape (n,), which must not change any more.

        NaN, infinity, and what is too large to be summed are counted and left out.
        """
        self._waiting.append(values)
        self._filled += len(values)
        if self._filled >= _BLOCK or len(self._waiting) >= _PIECES:
            self._sum_chunks()

    def merge(self, *others: MetricState) -> None:
        """Add the content of other states, which are left unchanged.

        The result is exact if all of them are, however many values that makes: the limit applies to the
        values that one state is updated with.

        Raises:
            ValueError: if another state has different options, or another unit.
        """
        for other in others:
            if (self.options, self.unit) != (other.options, other.unit):
                mine, theirs = ((state.options, state.unit) for state in (self, other))
                raise ValueError(f"cannot merge states of {mine} and {theirs}")
        parts = [part for state in (self, *others) for part in state._parts()][1:]
        self._waiting, self._filled = [], 0
        if all(part._sketch is None for part in (self, *parts)):
            values = np.concatenate([_NOTHING, *(kept for part in (self, *parts) for kept in part._kept)])
            # Sorted, since the order of merging must not show; + 0.0 makes -0.0 a plain zero.
            self._kept = [np.sort(values) + 0.0]
        else:
            sketch = self._leave_exact()
            for part in parts:
                if part._sketch is None:
                    sketch.update(part._values())
                else:
                    sketch.merge(part._sketch)
        for part in parts:
            self._set_aside += part._set_aside
            self._moments.merge(part._moments)
        self._min = least(self._min, *(part._min for part in parts))
        self._max = most(self._max, *(part._max for part in parts))

    def approximate(self) -> None:
        """Let go of the values that are kept: percentiles are not exact any more."""
        self._sum_chunks()
        self._leave_exact()

    def settled(self) -> MetricState:
        """Return this state for reading: itself, or a copy if values still wait to be summed."""
        self._sum_chunks()
        if not self._filled:
            return self
        state = MetricState(self.options, self.unit)
        state.merge(self)
        return state

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        self._sum_chunks()
        return {
            "unit": self.unit,
            "set_aside": self._set_aside,
            "moments": self._moments.to_dict(),
            "min": self._min,
            "max": self._max,
            "values": pack_values(np.concatenate([_NOTHING, *self._kept, *self._waiting])),
            "settled": sum(map(len, self._kept)),
            "sketch": None if self._sketch is None else self._sketch.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], options: Options, unit: str = "") -> MetricState:
        """Return the state of these options and this unit that :meth:`to_dict` wrote as ``data``.

        Raises:
            StateError: if the unit was another one then, and so the bins.
        """
        if data["unit"] != unit:
            raise StateError(f"its state has values in {data['unit']!r}, where this phase-bus has {unit!r}")
        state = cls(options, unit)
        state._set_aside = data["set_aside"]
        state._moments = Moments.from_dict(data["moments"])
        state._min, state._max = data["min"], data["max"]
        kept, waiting = np.split(unpack_values(data["values"]), [data["settled"]])
        state._kept = [kept]
        if data["sketch"] is not None:
            state._sketch = LogHistogram.from_dict(data["sketch"], unit)
        state.update(waiting)
        return state

    def _values(self) -> FloatArray:
        return np.concatenate([_NOTHING, *self._kept])

    def _sum_chunks(self) -> None:
        """Process what waits: leave out what cannot be summed, and sum the chunks that are full."""
        if not self._filled:
            return
        values = np.concatenate(self._waiting)
        if values.dtype.kind == "f":
            usable = np.abs(values) <= LARGEST
            if not usable.all():
                values = values[usable]
                self._set_aside += self._filled - len(values)
        else:
            values = values.astype(np.float64)
        if self._sketch is None and self._moments.count + len(values) > self.options.exact_limit:
            self._leave_exact()
        full = len(values) // _CHUNK * _CHUNK
        if full:
            self._sum(values[:full], _CHUNK)
            values = values[full:].copy()
        self._waiting, self._filled = [values], len(values)

    def _sum(self, values: FloatArray, chunk: int) -> None:
        """Sum values for good, shape (k * chunk,), chunk by chunk: this is what rounds the sums."""
        low, high = self._moments.add(values.reshape(-1, chunk))
        # + 0.0 makes -0.0 a plain zero: which of two equal zeros came first must not show.
        self._min, self._max = least(self._min, low + 0.0), most(self._max, high + 0.0)
        if self._sketch is None:
            self._kept.append(values)
        else:
            self._sketch.update_between(values, low, high)

    def _parts(self) -> list[MetricState]:
        """Return this state and, if values still wait, a state of those, full chunk or not."""
        self._sum_chunks()
        if not self._filled:
            return [self]
        rest = MetricState(self.options, self.unit)
        if self._sketch is not None:
            rest._leave_exact()
        rest._sum(np.concatenate(self._waiting), self._filled)
        return [self, rest]

    def _leave_exact(self) -> LogHistogram:
        """Start counting in a sketch, and return it."""
        if self._sketch is None:
            self._sketch = LogHistogram(self.unit)
            self._sketch.update(self._values())
            self._kept = []
        return self._sketch


def least(*numbers: _Number | None) -> _Number | None:
    """Return the smallest of the numbers that are not None, None if all are."""
    return min([number for number in numbers if number is not None], default=None)


def most(*numbers: _Number | None) -> _Number | None:
    """Return the largest of the numbers that are not None, None if all are."""
    return max([number for number in numbers if number is not None], default=None)
