"""The one spelling of a threshold: what verdicts are called by, and what is read as the same threshold."""

from __future__ import annotations

from decimal import Decimal

from phase_bus.aggregation.units import describe
from phase_bus.thresholds.names import BASELINE_NAMES, METRIC_NAMES, PHASE_NAMES
from phase_bus.thresholds.threshold import (
    BaselineLimit,
    Condition,
    Goodput,
    Metric,
    Quantity,
    Rate,
    Saturation,
    Threshold,
    unit_of,
)
from phase_bus.thresholds.units import DURATION, Unit, spell_number, writing_of


def spell(threshold: Threshold) -> str:
    """Return a threshold's canonical spelling.

    Every part is there that was given or means something: the phase always, then what is measured, what it
    has to be, in the unit that people read (``ms``, ``%``, ``requests/s``), then ``over``, ``for``,
    ``at least`` and ``abort``, in this order::

        profiling time_to_first_token p99 < 500 ms over 30 s for 10 s, at least 100 samples, abort
    """
    words = [PHASE_NAMES.spell(threshold.phase), _quantity(threshold.quantity)]
    if not isinstance(threshold.quantity, Saturation):
        unit = writing_of(unit_of(threshold.quantity))
        words += [threshold.operator, _limit(threshold.limit, unit)]
    if threshold.over_s is not None:
        words.append(f"over {DURATION.spell(threshold.over_s)}")
    if threshold.for_s:
        words.append(f"for {DURATION.spell(threshold.for_s)}")
    parts = [" ".join(words)]
    if threshold.at_least > 1:
        parts.append(f"at least {threshold.at_least} samples")
    if threshold.abort:
        parts.append("abort")
    return ", ".join(parts)


def _quantity(quantity: Quantity) -> str:
    match quantity:
        case Metric(name=name, statistic=statistic):
            return f"{METRIC_NAMES.spell(name)} {statistic}"
        case Rate(name=rate):
            return rate
        case Goodput(conditions=conditions):
            return f"goodput({', '.join(map(_condition, conditions))})"
        case Saturation(metric=metric):
            return f"no saturation of {METRIC_NAMES.spell(metric)}"


def _condition(condition: Condition) -> str:
    limit = writing_of(describe(condition.metric).unit).spell(condition.limit)
    return f"{METRIC_NAMES.spell(condition.metric)} {condition.operator} {limit}"


def _limit(limit: float | BaselineLimit, unit: Unit) -> str:
    if not isinstance(limit, BaselineLimit):
        return unit.spell(limit)
    name = BASELINE_NAMES.spell(limit.name)
    if limit.plus:
        return f"{name} {_sign(limit.plus)} {unit.plain().spell(abs(limit.plus))}"
    if limit.factor != 1.0:
        percent = (Decimal(repr(limit.factor)) - 1) * 100
        return f"{name} {_sign(percent)} {spell_number(abs(percent))} %"
    return name


def _sign(value: float | Decimal) -> str:
    return "+" if value > 0 else "-"
