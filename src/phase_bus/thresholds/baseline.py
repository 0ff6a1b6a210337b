"""Limits that are a baseline's value: the number is put in before anything is judged."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import msgspec

from phase_bus.errors import ConfigError, JournalError
from phase_bus.journal.baselines import baseline_journal
from phase_bus.journal.reader import JournalReader
from phase_bus.thresholds.judge import judge_journal
from phase_bus.thresholds.threshold import BaselineLimit, Saturation, Threshold


def resolve(threshold: Threshold) -> Threshold:
    """Return a threshold with a number as its limit; see :func:`resolve_all`."""
    return resolve_all([threshold])[0]


def resolve_all(thresholds: Sequence[Threshold]) -> list[Threshold]:
    """Return thresholds with numbers as their limits, in their order; those that have one stay as they are.

    A baseline's value is the mean over its runs of the same quantity, in the same phases, each as a whole:
    also for a threshold on windows of them. Only that of a saturation, which there is in windows alone, is
    the highest of these.

    Raises:
        ConfigError: if there is no such baseline, or it has no such data.
        JournalError: if it cannot be read.
    """
    names = {each.limit.name for each in thresholds if isinstance(each.limit, BaselineLimit)}
    values: dict[Threshold, float] = {}
    for name in sorted(names):
        of_it = [each for each in thresholds if _is_of(name, each)]
        values |= zip(of_it, _values(name, of_it), strict=True)
    return [_with_number(each, values) for each in thresholds]


def _is_of(name: str, threshold: Threshold) -> bool:
    return isinstance(threshold.limit, BaselineLimit) and threshold.limit.name == name


def _with_number(threshold: Threshold, values: dict[Threshold, float]) -> Threshold:
    limit = threshold.limit
    if not isinstance(limit, BaselineLimit):
        return threshold
    return msgspec.structs.replace(threshold, limit=values[threshold] * limit.factor + limit.plus)


def _values(name: str, thresholds: Sequence[Threshold]) -> list[float]:
    """Return what the quantities of thresholds come to in a baseline, which is read once for each run."""
    measured = [_measured(each) for each in thresholds]
    found: list[list[float]] = [[] for _ in measured]
    with JournalReader(baseline_journal(name)) as reader:
        for run in reader.runs():
            final = [v for v in judge_journal(reader, run.run_id, measured) if v.final]
            for values, verdict in zip(found, final, strict=True):
                if verdict.value is not None and verdict.samples:
                    values.append(verdict.value)
        if damage := reader.damage():
            raise JournalError(reader.path, damage, "set the baseline anew, or give a number")
    for threshold, values in zip(thresholds, found, strict=True):
        if not values:
            raise ConfigError(
                f"threshold {threshold.text!r}: no run of baseline {name!r} has data for it in phase "
                f"{threshold.phase!r}; set it with runs that have, or give a number"
            )
    return [fmean(values) for values in found]


def _measured(threshold: Threshold) -> Threshold:
    """Return a threshold whose final verdict has the value of the quantity over the whole phase."""
    over_s = threshold.over_s if isinstance(threshold.quantity, Saturation) else None
    changes = {"limit": 0.0, "over_s": over_s, "for_s": 0.0, "at_least": 1, "abort": False}
    return msgspec.structs.replace(threshold, **changes)
