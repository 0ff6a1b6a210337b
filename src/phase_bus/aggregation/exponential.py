"""Histograms for export: in base units, with the bins that Prometheus and OpenTelemetry use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from phase_bus.aggregation.log_bins import SCALE, coarser
from phase_bus.aggregation.packing import IntArray


def edge(index: int, scale: int = SCALE) -> float:
    """Return the upper end of a bucket, which is the lower end of the next one."""
    return float(2.0 ** (index / 2.0**scale))


def nearest_edges(bounds: Iterable[float], scale: int = SCALE) -> list[int]:
    """Return the ascending indices of the buckets that end nearest to wanted bounds, each of them once.

    By ratio: no bound is further from its edge than half a bucket, 0.27 % at scale 7.

    Args:
        bounds: in the base unit, in any order.
        scale: that of the buckets.

    Raises:
        ValueError: if a bound is not positive and finite.
    """
    wanted = list(bounds)
    if not all(0.0 < bound < math.inf for bound in wanted):
        raise ValueError(f"bounds must be positive and finite: {wanted}")
    return sorted({round(math.log2(bound) * 2.0**scale) for bound in wanted})


class Buckets(Struct, frozen=True):
    """Counts of neighbouring buckets; the first and the last of them are not 0.

    Attributes:
        offset: the index of the first one.
        counts: how many values are in each.
    """

    offset: int = 0
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, indices: IntArray, counts: IntArray) -> Buckets:
        """Return the buckets of some indices, shape (n,), in any order, with the counts of each added."""
        indices, counts = indices[counts > 0], counts[counts > 0]
        if not len(indices):
            return cls()
        offset = int(indices.min())
        dense = np.zeros(int(indices.max()) - offset + 1, dtype=np.int64)
        np.add.at(dense, indices - offset, counts)
        return cls(offset, tuple(dense.tolist()))

    def coarser(self, steps: int) -> Buckets:
        """Return the buckets of a scale that is ``steps`` lower."""
        indices = self.offset + np.arange(len(self.counts))
        return Buckets.of(coarser(indices, steps), np.array(self.counts, dtype=np.int64))

    def up_to(self, index: int) -> int:
        """Return how many values are in this bucket and those before it."""
        return sum(self.counts[: max(index - self.offset + 1, 0)])


class ExponentialHistogram(Struct, frozen=True):
    """How a metric's values are distributed, in its base unit, exactly counted in exponential buckets.

    With ``base = 2 ** (1 / 2**scale)``, the bucket ``i`` of positive values holds what is above
    ``base ** (i - 1)`` and up to ``base ** i``, as in Prometheus' native histograms, whose schema is the
    scale. In OpenTelemetry's exponential histograms the same bucket has the index ``i - 1``. A value that
    is a few parts in 10**12 above an edge may be counted as if it were at the edge.

    Should values span more than 19 orders of magnitude, the smallest ones are in the lowest bucket.

    Attributes:
        unit: the base unit's name (see :func:`~phase_bus.aggregation.units.base_unit`).
        scale: how fine the buckets are: 2**scale for each power of two.
        count: how many values there are.
        sum: their sum, in the base unit.
        min: the smallest one, None if it is not known, or without values.
        max: the largest one, likewise.
        zeros: how many are 0.
        positive: the counts of positive values.
        negative: the counts of negative values, by magnitude.
    """

    unit: str = ""
    scale: int = SCALE
    count: int = 0
    sum: float = 0.0
    min: float | None = None
    max: float | None = None
    zeros: int = 0
    positive: Buckets = Buckets()
    negative: Buckets = Buckets()

    def coarser(self, scale: int) -> ExponentialHistogram:
        """Return the same at a lower scale, each bucket made of neighbours: exactly as if counted there.

        Raises:
            ValueError: if the scale is higher than this one's.
        """
        steps = self.scale - scale
        if steps < 0:
            raise ValueError(f"a histogram of scale {self.scale} has no scale {scale}, which is finer")
        if not steps:
            return self
        positive, negative = self.positive.coarser(steps), self.negative.coarser(steps)
        return replace(self, scale=scale, positive=positive, negative=negative)

    def below(self, edges: Sequence[int]) -> list[int]:
        """Return how many values are at most as large as the upper ends of some buckets of positive values.

        That is what the buckets of a classic Prometheus histogram count: exact, since these edges are edges
        of buckets here. Their values are given by :func:`edge`, and :func:`nearest_edges` finds them.

        Args:
            edges: the indices of the buckets at this scale.
        """
        not_positive = self.zeros + sum(self.negative.counts)
        return [not_positive + self.positive.up_to(index) for index in edges]
