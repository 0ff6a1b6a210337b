"""The mergeable statistics of one phase's records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from phase_bus.aggregation.metric import MetricState, least, most
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.windows import Windows
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef

# AIPerf's running extremes: points in time, kept as exact integers, without statistics of their own.
_TIMES = _FIRST_SENT, _LAST_ANSWERED = "min_request_timestamp", "max_response_timestamp"
_COUNTS = ("requests", "cancelled")
_FIRST = ("first_request_ns", "first_success_ns")
_LAST = ("last_request_ns", "last_success_ns")


class PhaseState:
    """The statistics of one phase's requests, from their records.

    Attributes:
        requests: records counted, successful and failed.
        cancelled: of these, requests that the client cancelled; AIPerf reports each as failed too.
        errors: failed requests by the error's type and code (None without one).
        first_request_ns: Unix time in ns of the first request's start; ``last_request_ns`` is the last
            one's end.
        first_success_ns: the same for successful requests, whose end is their last answer.
    """

    def __init__(self, phase: PhaseRef, options: Options = Options()) -> None:  # noqa: B008 - frozen
        self.phase = phase
        self.options = options
        self.requests = 0
        self.cancelled = 0
        self.errors: dict[tuple[str, int | None], int] = {}
        self.first_request_ns: int | None = None
        self.last_request_ns: int | None = None
        self.first_success_ns: int | None = None
        self.last_success_ns: int | None = None
        self.metrics: dict[str, MetricState] = {}
        self.windows = Windows(options)

    @property
    def failed(self) -> int:
        """How many requests failed, cancelled ones included."""
        return sum(self.errors.values())

    def update(self, batch: RecordBatch) -> None:
        """Add a batch of the phase's records."""
        self.requests += len(batch)
        for error in batch.errors:
            key = (error.type, error.code)
            self.errors[key] = self.errors.get(key, 0) + 1
        self._update_times(batch)
        cancelled = _values(batch, "was_cancelled")
        if cancelled is not None:
            self.cancelled += int(np.count_nonzero(cancelled))
        for name in batch.metrics:
            if name not in _TIMES:
                self._metric(name).update(batch.values(name))
        self.windows.update(batch)

    def merge(self, *others: PhaseState, recent_windows: int | None = None) -> None:
        """Add the content of other states, which are left unchanged.

        Keep only the ``recent_windows`` last windows over time, if given. The result is for reading:
        updating it further would round sums differently.
        """
        metrics: dict[str, list[MetricState]] = {name: [] for name in self.metrics}
        for other in others:
            for name in _COUNTS:
                setattr(self, name, getattr(self, name) + getattr(other, name))
            for key, count in other.errors.items():
                self.errors[key] = self.errors.get(key, 0) + count
            for name in _FIRST:
                setattr(self, name, least(getattr(self, name), getattr(other, name)))
            for name in _LAST:
                setattr(self, name, most(getattr(self, name), getattr(other, name)))
            for name, metric in other.metrics.items():
                metrics.setdefault(name, []).append(metric)
        for name, some in metrics.items():
            self._metric(name).merge(*some)
        self.windows.merge(*(other.windows for other in others), recent=recent_windows)

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        errors = sorted(self.errors.items(), key=lambda item: (item[0][0], str(item[0][1])))
        return {
            "phase": [self.phase.index, self.phase.name, self.phase.kind],
            **{name: getattr(self, name) for name in (*_COUNTS, *_FIRST, *_LAST)},
            "errors": [[kind, code, count] for (kind, code), count in errors],
            "metrics": {name: self.metrics[name].to_dict() for name in sorted(self.metrics)},
            "windows": self.windows.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], options: Options) -> PhaseState:
        """Return the state of these options that :meth:`to_dict` wrote as ``data``."""
        index, name, kind = data["phase"]
        state = cls(PhaseRef(name, kind, index), options)
        for name in (*_COUNTS, *_FIRST, *_LAST):
            setattr(state, name, data[name])
        state.errors = {(kind, code): count for kind, code, count in data["errors"]}
        state.metrics = {n: MetricState.from_dict(m, options) for n, m in data["metrics"].items()}
        state.windows = Windows.from_dict(data["windows"], options)
        return state

    def _metric(self, name: str) -> MetricState:
        metric = self.metrics.get(name)
        if metric is None:
            metric = self.metrics[name] = MetricState(self.options)
        return metric

    def _update_times(self, batch: RecordBatch) -> None:
        self.first_request_ns = least(self.first_request_ns, _extreme(batch, "request_start_ns"))
        self.last_request_ns = most(self.last_request_ns, _extreme(batch, "request_end_ns", last=True))
        self.first_success_ns = least(self.first_success_ns, _extreme(batch, _FIRST_SENT))
        self.last_success_ns = most(self.last_success_ns, _extreme(batch, _LAST_ANSWERED, last=True))


def _values(batch: RecordBatch, name: str) -> npt.NDArray[Any] | None:
    """Return a batch's values of a field or metric, None if no record has one."""
    try:
        return batch.values(name)
    except KeyError:
        return None


def _extreme(batch: RecordBatch, name: str, *, last: bool = False) -> int | None:
    """Return the earliest or latest of a batch's times in ns, None if it has none."""
    values = _values(batch, name)
    if values is None:
        return None
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if values.dtype.kind not in "if" or not len(values):
        return None
    return int(values.max() if last else values.min())
