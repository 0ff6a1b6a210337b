"""The mergeable states of an aggregation: of one phase, and of one run.

A state depends only on the records it was given and their order, not on how they were cut into batches
nor on when somebody looked at it. Merging is exact, so parts that several workers made give one result.
Every ``to_dict`` is canonical: the same content encodes to the same msgpack bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from phase_bus.aggregation.metric import MetricState, Options, least, most
from phase_bus.events import PhaseRef
from phase_bus.records import RecordBatch

# AIPerf's running extremes: points in time, kept as exact integers, without statistics of their own.
_FIRST_SENT, _LAST_ANSWERED = "min_request_timestamp", "max_response_timestamp"


class PhaseState:
    """What is known of one phase's requests.

    Attributes:
        phase: which phase.
        requests: records counted, successful and failed.
        cancelled: of these, requests that the client cancelled; AIPerf reports each as failed too.
        errors: failed requests by the error's type and code (None without one).
        first_request_ns: Unix time in ns of the first request's start.
        last_request_ns: Unix time in ns of the last request's end.
        first_success_ns: Unix time in ns of the first successful request's start.
        last_success_ns: Unix time in ns of the last successful request's last answer.
        start_ns: Unix time in ns when the phase began, if its events were seen.
        end_ns: Unix time in ns of the phase's last answer, once it is over.
        metrics: the metrics' states by name.
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
        self.start_ns: int | None = None
        self.end_ns: int | None = None
        self.metrics: dict[str, MetricState] = {}

    @property
    def failed(self) -> int:
        """How many requests failed; cancelled ones are among them."""
        return sum(self.errors.values())

    def update(self, batch: RecordBatch) -> None:
        """Add a batch of the phase's records."""
        self.requests += len(batch)
        for error in batch.errors:
            key = (error.type, error.code)
            self.errors[key] = self.errors.get(key, 0) + 1
        self._update_times(batch)
        if "was_cancelled" in batch:
            self.cancelled += int(np.count_nonzero(batch.values("was_cancelled")))
        for name in batch.metrics:
            if name not in (_FIRST_SENT, _LAST_ANSWERED):
                self._metric(name).update(batch.values(name))

    def merge(self, other: PhaseState) -> None:
        """Add what another state knows of the phase; it stays as it is."""
        self.requests += other.requests
        self.cancelled += other.cancelled
        for key, count in other.errors.items():
            self.errors[key] = self.errors.get(key, 0) + count
        for name in ("first_request_ns", "first_success_ns", "start_ns"):
            setattr(self, name, least(getattr(self, name), getattr(other, name)))
        for name in ("last_request_ns", "last_success_ns", "end_ns"):
            setattr(self, name, most(getattr(self, name), getattr(other, name)))
        for name, metric in other.metrics.items():
            self._metric(name).merge(metric)

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack."""
        errors = sorted(self.errors.items(), key=lambda item: (item[0][0], str(item[0][1])))
        return {
            "phase": msgspec.to_builtins(self.phase),
            "options": [self.options.relative_error, self.options.exact_limit],
            **{name: getattr(self, name) for name in _PHASE_NUMBERS},
            "errors": [[kind, code, count] for (kind, code), count in errors],
            "metrics": {name: self.metrics[name].to_dict() for name in sorted(self.metrics)},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PhaseState:
        """Return the state that :meth:`to_dict` gave as ``data``, to go on with."""
        state = cls(msgspec.convert(data["phase"], PhaseRef), Options(*data["options"]))
        for name in _PHASE_NUMBERS:
            setattr(state, name, data[name])
        state.errors = {(kind, code): count for kind, code, count in data["errors"]}
        state.metrics = {n: MetricState.from_dict(m) for n, m in data["metrics"].items()}
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


_PHASE_NUMBERS = (
    "requests",
    "cancelled",
    "first_request_ns",
    "last_request_ns",
    "first_success_ns",
    "last_success_ns",
    "start_ns",
    "end_ns",
)


class RunState:
    """What is known of a run, by phase.

    Attributes:
        run_id: which run.
        phases: the phases' states by the phase's index.
    """

    def __init__(self, run_id: str, options: Options = Options()) -> None:  # noqa: B008 - frozen
        self.run_id = run_id
        self.options = options
        self.phases: dict[int, PhaseState] = {}

    @property
    def records(self) -> int:
        """How many records were counted."""
        return sum(phase.requests for phase in self.phases.values())

    def phase(self, phase: PhaseRef) -> PhaseState:
        """Return the phase's state, a new one if nothing is known of it."""
        state = self.phases.get(phase.index)
        if state is None:
            state = self.phases[phase.index] = PhaseState(phase, self.options)
        return state

    def update(self, batch: RecordBatch) -> None:
        """Add a batch of the run's records."""
        self.phase(batch.phase).update(batch)

    def merge(self, other: RunState) -> None:
        """Add what another state knows of the run, such as another partition's; it stays as it is."""
        for phase in other.phases.values():
            self.phase(phase.phase).merge(phase)

    def overall(self) -> PhaseState:
        """Return a state over all phases. It has an end only when every phase has one."""
        phases = [self.phases[index] for index in sorted(self.phases)]
        state = PhaseState(PhaseRef("all phases", "profiling", -1), self.options)
        for phase in phases:
            state.merge(phase)
        if any(phase.start_ns is None or phase.end_ns is None for phase in phases):
            state.start_ns = state.end_ns = None
        return state

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack, as a checkpoint."""
        return {
            "run_id": self.run_id,
            "options": [self.options.relative_error, self.options.exact_limit],
            "phases": [self.phases[index].to_dict() for index in sorted(self.phases)],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunState:
        """Return the state that :meth:`to_dict` gave as ``data``, to go on with."""
        state = cls(data["run_id"], Options(*data["options"]))
        phases = [PhaseState.from_dict(phase) for phase in data["phases"]]
        state.phases = {phase.phase.index: phase for phase in phases}
        return state


def _extreme(batch: RecordBatch, name: str, *, last: bool = False) -> int | None:
    """Return the earliest or latest of a batch's times in ns, None where it has none."""
    if name not in batch:
        return None
    values = batch.values(name)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if values.dtype.kind not in "if" or not len(values):
        return None
    return int(values.max() if last else values.min())
