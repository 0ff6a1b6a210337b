"""The mergeable statistics of one phase's records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from phase_bus.aggregation.extremes import Extremes
from phase_bus.aggregation.limits import LONGEST_NAME, MAX_ERROR_TYPES, MAX_METRICS
from phase_bus.aggregation.metric import MetricState, least, most
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.units import describe
from phase_bus.aggregation.windows import Windows, find_column
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef

# AIPerf's running extremes: points in time, kept as exact integers, without statistics of their own.
_TIMES = _FIRST_SENT, _LAST_ANSWERED = "min_request_timestamp", "max_response_timestamp"
_COUNTS = ("requests", "cancelled", "other_errors", "other_values")
# The attributes that are the earliest or latest of times, and the column of these.
_FIRST = {"first_request_ns": "request_start_ns", "first_success_ns": _FIRST_SENT}
_LAST = {"last_request_ns": "request_end_ns", "last_success_ns": _LAST_ANSWERED}


class _Metrics(dict[str, MetricState]):
    """The states of metrics by name; that of a new one is made when it is looked up."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def __missing__(self, name: str) -> MetricState:
        state = self[name] = MetricState(self._options, describe(name).unit)
        return state


class PhaseState:
    """The statistics of one phase's requests, from their records.

    Attributes:
        requests: records counted, successful and failed.
        cancelled: of these, requests that the client cancelled; AIPerf reports each as failed too.
        errors: failed requests by the error's type and code (None without one).
        other_errors: failed requests whose type of error is not among ``errors``, since these are many.
        other_values: values of metrics that are not among ``metrics``, likewise.
    """

    def __init__(self, phase: PhaseRef, options: Options = Options()) -> None:  # noqa: B008 - frozen
        self.phase = phase
        self.requests = 0
        self.cancelled = 0
        self.other_errors = 0
        self.other_values = 0
        self.errors: Counter[tuple[str, int | None]] = Counter()
        self._times = {name: Extremes(name in _LAST) for name in (*_FIRST, *_LAST)}
        self._chosen: dict[str, int | None] = {}  # of these, once it is known which are too far away
        self.metrics: dict[str, MetricState] = _Metrics(options)
        self.windows = Windows(options)

    @property
    def first_request_ns(self) -> int | None:
        """Unix time in ns of the first request's start, None if it is not known."""
        return self._time("first_request_ns")

    @property
    def last_request_ns(self) -> int | None:
        """Unix time in ns of the last request's end."""
        return self._time("last_request_ns")

    @property
    def first_success_ns(self) -> int | None:
        """The same of successful requests: the start of the first one."""
        return self._time("first_success_ns")

    @property
    def last_success_ns(self) -> int | None:
        """The last answer to a successful request."""
        return self._time("last_success_ns")

    @property
    def failed(self) -> int:
        """How many requests failed, cancelled ones included."""
        return self.errors.total() + self.other_errors

    def update(
        self,
        batch: RecordBatch,
        new_errors: int = MAX_ERROR_TYPES,
        new_metrics: int = MAX_METRICS,
        only: Collection[str] | None = None,
    ) -> None:
        """Add a batch of the phase's records, with so many new types of errors and metrics at most.

        With ``only``, the values of these metrics alone are counted, and nothing by windows.
        """
        self.requests += len(batch)
        new_errors += len(self.errors)
        for error in batch.errors:
            key = (error.type[:LONGEST_NAME], error.code)
            if key in self.errors or len(self.errors) < new_errors:
                self.errors[key] += 1
            else:
                self.other_errors += 1
        for name, column_name in (_FIRST | _LAST).items():
            column = find_column(batch, column_name)
            if column is not None:
                self._times[name].update(column.values)
        cancelled = find_column(batch, "was_cancelled")
        if cancelled is not None:
            self.cancelled += int(np.count_nonzero(cancelled.values))
        if only is not None:
            for name in only:
                if name in batch.metrics:
                    self.metrics[name].update(batch.values(name))
            return
        names = [name for name in batch.metrics if name not in _TIMES]
        left_out = self._left_out(batch, names, new_metrics)
        for name in names:
            if name in left_out:
                self.other_values += len(batch.values(name))
            else:
                self.metrics[name].update(batch.values(name))
        self.windows.update(batch, left_out)

    def merge(self, *others: PhaseState) -> None:
        """Add the content of other states, which are left unchanged.

        The result is for reading: updating it further would round sums differently.
        """
        self.merge_numbers(*others)
        self.windows.merge(*(other.windows for other in others))

    def merge_numbers(self, *others: PhaseState) -> None:
        """Do the same for all but the windows over time."""
        states = (self, *others)
        for name in _COUNTS:
            setattr(self, name, sum(getattr(state, name) for state in states))
        for name, times in self._times.items():
            times.merge([other._times[name] for other in others])
        if any(other._chosen for other in others):
            for name in self._times:
                known = [other._time(name) for other in others]
                self._chosen[name] = most(*known) if name in _LAST else least(*known)
        for other in others:
            self.errors.update(other.errors)
        for name in dict.fromkeys(name for state in states for name in state.metrics):
            self.metrics[name].merge(*(other.metrics[name] for other in others if name in other.metrics))

    def set_aside_times(self, reach_s: int | None, start_ns: int | None, end_ns: int | None) -> None:
        """Leave out, for reading, few times that are further than ``reach_s`` from all others.

        Those between the phase's start and end by its events are none of them.
        """
        for name, times in self._times.items():
            known_ns = end_ns if name in _LAST else start_ns
            self._chosen[name] = times.outermost(reach_s, known_ns)

    def _time(self, name: str) -> int | None:
        return self._chosen[name] if name in self._chosen else self._times[name].outermost()

    def _left_out(self, batch: RecordBatch, names: Sequence[str], room: int) -> set[str]:
        """Return which of a batch's metrics are not kept: those that came after too many others."""
        unknown = [name for name in names if name not in self.metrics]
        left_out = {name for name in unknown if len(name) > LONGEST_NAME}
        if len(unknown) > room:
            # In the order of records, so that it does not matter how these were cut into batches.
            unknown = [name for name in unknown if name not in left_out]
            unknown.sort(key=lambda name: (int(batch.rows(name)[0]) if len(batch.rows(name)) else 0, name))
            left_out.update(unknown[max(room, 0) :])
        return left_out

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        errors = sorted(self.errors.items(), key=lambda item: (item[0][0], str(item[0][1])))
        return {
            "phase": [self.phase.index, self.phase.name, self.phase.kind],
            **{name: getattr(self, name) for name in _COUNTS},
            "times": [times.to_list() for times in self._times.values()],
            "errors": [[kind, code, count] for (kind, code), count in errors],
            "metrics": {name: self.metrics[name].to_dict() for name in sorted(self.metrics)},
            "windows": self.windows.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], options: Options) -> PhaseState:
        """Return the state of these options that :meth:`to_dict` wrote as ``data``."""
        index, name, kind = data["phase"]
        state = cls(PhaseRef(name, kind, index), options)
        for name in _COUNTS:
            setattr(state, name, data[name])
        for name, times in zip(state._times, data["times"], strict=True):
            state._times[name] = Extremes.from_list(name in _LAST, times)
        state.errors.update({(kind, code): count for kind, code, count in data["errors"]})
        for name, metric in data["metrics"].items():
            state.metrics[name] = MetricState.from_dict(metric, options, describe(name).unit)
        state.windows = Windows.from_dict(data["windows"], options)
        return state
