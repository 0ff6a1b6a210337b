"""What a partition's records come to, cut finely enough to be judged at any event of the run.

A cell has the records that lie between two events that are no records, and were published within one
second. Both are the same for whoever counts a partition, so cells are, too, and what is made of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct

from phase_bus.aggregation.limits import MAX_PHASES
from phase_bus.aggregation.options import EXACT_LIMIT, Options
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.state import OTHER_PHASES, in_order
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef, Records
from phase_bus.thresholds.threshold import Condition, Goodput, Threshold

# For how long after an event the cells before it are kept for a leader that is away, in seconds.
KEPT_S = 120
_MAX_CELLS = 4096  # should clocks say that records are of very many seconds
_OPTIONS = Options(EXACT_LIMIT, ())


class Needs(Struct, frozen=True):
    """What thresholds need to have counted: metrics, requests that are good, and for how long one by one.

    Attributes:
        goodputs: the conditions of each goodput, each once.
        window_s: the width of the widest window, in whole seconds.
    """

    metrics: tuple[str, ...]
    goodputs: tuple[tuple[Condition, ...], ...]
    window_s: int

    @classmethod
    def of(cls, thresholds: Iterable[Threshold]) -> Needs:
        """Return what these thresholds need."""
        thresholds = list(thresholds)
        quantities = [threshold.quantity for threshold in thresholds]
        return cls(
            tuple(sorted(set().union(*(threshold.metrics for threshold in thresholds)))),
            tuple(dict.fromkeys(each.conditions for each in quantities if isinstance(each, Goodput))),
            max((seconds(threshold.over_s) for threshold in thresholds), default=0),
        )


class Key(NamedTuple):
    """Which cell: the number of the last event before its records, and the Unix second of these."""

    number: int
    second: int


class Part:
    """Some requests of one phase.

    Attributes:
        state: their statistics.
        good: how many of them are good, by the conditions of each of :attr:`Needs.goodputs`.
    """

    def __init__(self, phase: PhaseRef) -> None:
        self.state = PhaseState(phase, _OPTIONS)
        self.good: Counter[tuple[Condition, ...]] = Counter()

    def update(self, batch: RecordBatch, needs: Needs) -> None:
        """Add a batch of the phase's records."""
        self.state.update(batch, 0, 0, needs.metrics)
        for conditions in needs.goodputs:
            self.good[conditions] += _count_good(batch, conditions)

    def merge(self, *others: Part) -> None:
        """Add other parts, which are left unchanged."""
        self.state.merge_numbers(*(other.state for other in others))
        for other in others:
            self.good.update(other.good)


Parts: TypeAlias = dict[PhaseRef, Part]


def merge_into(parts: Parts, others: Iterable[Parts]) -> None:
    """Add many to some: all of a phase at once, which is far quicker than one after another."""
    found: dict[PhaseRef, list[Part]] = {}
    for other in others:
        for phase, part in other.items():
            found.setdefault(phase, []).append(part)
    for phase, some in found.items():
        if phase not in parts:
            parts[phase] = Part(phase)
        parts[phase].merge(*some)


class PartitionCells:
    """The cells of one partition of a run, and all that is older in one.

    Args:
        lasting: whether cells are kept for a leader that is elsewhere; else until they are folded.

    Attributes:
        records: how many records there were.
        base: what was in the cells that are not kept any more.
        base_key: the last one of these, None if there is none.
        cells: the others.
    """

    def __init__(self, needs: Needs, *, lasting: bool) -> None:
        self.needs = needs
        self.records = 0
        self.base: Parts = {}
        self.base_key: Key | None = None
        self.cells: dict[Key, Parts] = {}
        self._lasting = lasting
        self._closed: dict[int, int] = {}  # by number: the first second of a later one
        self._number = 0  # the last one
        self._second = 0  # the latest
        self._counts: dict[tuple[PhaseRef, str], int] = {}  # of values in the base
        self._phases: set[PhaseRef] = set()

    def take(self, event: Records, number: int) -> None:
        """Add a batch of records that comes after so many events that are none."""
        batch = RecordBatch(event)
        second = event.ts_ns // 1_000_000_000
        if number > self._number:
            self._closed[self._number], self._number = second, number
        self._second = max(self._second, second)
        parts = self.cells.setdefault(Key(number, second), {})
        phase = event.phase
        if phase not in self._phases:
            if len(self._phases) >= MAX_PHASES:
                phase = OTHER_PHASES
            self._phases.add(phase)
        part = parts.get(phase)
        if part is None:
            part = parts[phase] = Part(phase)
        part.update(batch, self.needs)
        self.records += len(batch)
        if self._lasting:
            self._fold_old()

    def before(self, number: int) -> list[tuple[Key, Parts]]:
        """Return the cells of lower numbers."""
        return [(key, parts) for key, parts in self.cells.items() if key.number < number]

    def fold(self, number: int, second: int) -> None:
        """Keep no cell of a lower number than this and up to this second any more."""
        self._fold([key for key in sorted(self.cells) if key.number < number and key.second <= second])

    def _fold_old(self) -> None:
        """Keep no cell any more that a leader would have to be away for long to need."""
        before_s = self._second - self.needs.window_s - KEPT_S
        first = min(self.cells)
        if first.second >= before_s and len(self.cells) <= _MAX_CELLS:
            return
        over = len(self.cells) - _MAX_CELLS
        old: list[Key] = []
        for key in sorted(self.cells):
            closed_s = self._closed.get(key.number)
            is_old = closed_s is not None and closed_s + KEPT_S < self._second and key.second < before_s
            if not is_old and len(old) >= over:
                break
            old.append(key)
        self._fold(old)
        for known in [known for known in self._closed if self.base_key and known < self.base_key.number]:
            del self._closed[known]

    def _fold(self, keys: Sequence[Key]) -> None:
        if not keys:
            return
        folded = [self.cells.pop(key) for key in keys]
        merge_into(self.base, folded)
        for parts in folded:
            limit_values(self.base, parts, self._counts)
        self.base_key = max(keys[-1], self.base_key or keys[-1])

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        return {
            "records": self.records,
            "base": self._dump(self.base),
            "base_key": self.base_key,
            "cells": [[*key, self._dump(self.cells[key])] for key in sorted(self.cells)],
            "closed": sorted(self._closed.items()),
            "last": [self._number, self._second],
            "counts": [
                [phase.index, phase.name, phase.kind, name, count]
                for (phase, name), count in sorted(self._counts.items(), key=lambda each: str(each[0]))
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], needs: Needs, *, lasting: bool) -> PartitionCells:
        """Return the cells that :meth:`to_dict` wrote as ``data``."""
        cells = cls(needs, lasting=lasting)
        cells.records = data["records"]
        cells.base = cells._load(data["base"])
        cells.base_key = None if data["base_key"] is None else Key(*data["base_key"])
        cells.cells = {Key(number, second): cells._load(parts) for number, second, parts in data["cells"]}
        cells._closed = dict(data["closed"])
        cells._number, cells._second = data["last"]
        cells._phases = {phase for parts in (cells.base, *cells.cells.values()) for phase in parts}
        cells._counts = {
            (PhaseRef(name, kind, index), metric): count
            for index, name, kind, metric, count in data["counts"]
        }
        return cells

    def _dump(self, parts: Parts) -> list[Any]:
        ordered = (parts[phase] for phase in in_order(parts))
        goodputs = self.needs.goodputs
        return [[part.state.to_dict(), [part.good[each] for each in goodputs]] for part in ordered]

    def _load(self, dumped: Iterable[Any]) -> Parts:
        parts: Parts = {}
        for saved, good in dumped:
            state = PhaseState.from_dict(saved, _OPTIONS)
            part = parts[state.phase] = Part(state.phase)
            part.state, part.good = state, Counter(dict(zip(self.needs.goodputs, good, strict=True)))
        return parts


def limit_values(parts: Parts, added: Parts, counts: dict[tuple[PhaseRef, str], int]) -> None:
    """Keep single values only while a partition has few of a metric, as the aggregator does.

    Args:
        parts: which of a partition's values are in.
        added: those that were added last.
        counts: how many of the partition's values are in, by phase and metric; it is brought up to date.
    """
    for phase, part in added.items():
        for name, metric in part.state.metrics.items():
            count = counts[phase, name] = counts.get((phase, name), 0) + metric.count
            if count > EXACT_LIMIT:
                parts[phase].state.metrics[name].approximate()


def seconds(duration_s: float | None) -> int:
    """Return how many whole seconds hold a duration."""
    return 0 if duration_s is None else max(int(np.ceil(duration_s)), 1)


def _count_good(batch: RecordBatch, conditions: Sequence[Condition]) -> int:
    good = np.ones(len(batch), dtype=np.bool_)
    good[[error.row for error in batch.errors]] = False
    for each in conditions:
        if each.metric not in batch.metrics:
            return 0
        # A request without a value has NaN there, which is never as it has to be.
        good &= each.holds(batch.dense(each.metric))
    return int(np.count_nonzero(good))
