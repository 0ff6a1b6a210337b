"""What a threshold is: a quantity of some phases, and what it is held against."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from msgspec import Struct

from phase_bus.aggregation.rates import TOKEN_METRICS, RateName, unit_of_rate
from phase_bus.aggregation.units import describe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Operator: TypeAlias = Literal["<", "<=", ">", ">="]
DEFAULT_PHASE = "profiling"

_COMPARISONS: dict[Operator, Callable[[Any, float], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Metric(Struct, frozen=True, tag="metric"):
    """A statistic of a metric's values.

    Attributes:
        name: the metric, as AIPerf calls it (``time_to_first_token``).
        statistic: ``p0`` to ``p100`` (also ``p99.9``), ``mean``, ``std``, ``min``, ``max``, ``sum`` or
            ``count``.
    """

    name: str
    statistic: str


class Rate(Struct, frozen=True, tag="rate"):
    """A figure of the phase as a whole."""

    name: RateName


class Condition(Struct, frozen=True):
    """What one request's value of a metric has to be; ``limit`` is in the metric's unit on the bus."""

    metric: str
    operator: Operator
    limit: float

    def holds(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which of some values are as they have to be, shape (n,); NaN is not."""
        found: npt.NDArray[np.bool_] = _COMPARISONS[self.operator](values, self.limit)
        return found


class Goodput(Struct, frozen=True, tag="goodput"):
    """The share of all requests that meet every condition, which a failed one does not."""

    conditions: tuple[Condition, ...]


class Saturation(Struct, frozen=True, tag="saturation"):
    """By how much the median of a latency has risen while the throughput has not.

    Both are compared between the two halves of the window. It is the rise as a fraction of the first half's
    median, and 0 where the throughput rose too.
    """

    metric: str = "request_latency"


Quantity: TypeAlias = Metric | Rate | Goodput | Saturation


def unit_of(quantity: Quantity) -> str:
    """Return the unit of a quantity's values on the bus, empty for plain numbers."""
    match quantity:
        case Metric(name=name, statistic=statistic):
            return "" if statistic == "count" else describe(name).unit
        case Rate(name=rate):
            return unit_of_rate(rate)
        case Goodput() | Saturation():
            return "fraction"


class BaselineLimit(Struct, frozen=True):
    """A limit that is a baseline's value of the same quantity, times a factor, plus an amount.

    Attributes:
        name: the baseline's name.
        factor: 1.05 for ``+ 5 %``.
        plus: an amount in the quantity's unit on the bus.
    """

    name: str
    factor: float = 1.0
    plus: float = 0.0


class Threshold(Struct, frozen=True, kw_only=True):
    """A quantity and what it has to be; made by :func:`phase_bus.thresholds.parse_threshold`.

    Attributes:
        text: the canonical spelling, which names it everywhere.
        quantity: what is measured.
        operator, limit: what it has to be: a number in the quantity's unit on the bus, or a baseline's.
        phase: the name or kind of the phases whose requests count.
        over_s: the width of a sliding window, in seconds; None for the whole phase up to now.
        for_s: for how many seconds a new state has to last before it counts.
        at_least: how many samples are enough to judge by.
        abort: whether the run is to be ended when it fails.
    """

    text: str
    quantity: Quantity
    operator: Operator
    limit: float | BaselineLimit
    phase: str = DEFAULT_PHASE
    over_s: float | None = None
    for_s: float = 0.0
    at_least: int = 1
    abort: bool = False

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics whose values it needs."""
        match self.quantity:
            case Metric(name=name):
                return frozenset({name})
            case Rate(name=rate):
                return frozenset(TOKEN_METRICS.get(rate, ()))
            case Goodput(conditions=conditions):
                return frozenset(each.metric for each in conditions)
            case Saturation(metric=metric):
                return frozenset({metric})


def compare(value: float, how: Operator, limit: float) -> bool:
    """Return whether a value stands to a limit as an operator says."""
    return bool(_COMPARISONS[how](value, limit))
