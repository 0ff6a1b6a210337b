"""The mergeable state of one run, by partition.

Floating-point sums depend on the order of summing. So a run's statistics are kept by partition of its
records: a partition's depend on its own records and their order alone, not on how they were cut into
batches, when somebody looked, or which process counted them. The run's numbers are always those of its
partitions merged, and merging is exact. Thus one process, eight that share the partitions, and a journal
that is read years later all give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus.aggregation.limits import MAX_ERROR_TYPES, MAX_METRICS, MAX_PHASES
from phase_bus.aggregation.log_bins import WINDOW_SCALE
from phase_bus.aggregation.metric import least, most
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.windows import Group, Windows, reach_of
from phase_bus.core.records import RecordBatch
from phase_bus.errors import StateError
from phase_bus.events import PhaseRef

# That of what states hold: one of another version is refused, since its bins stand for other values.
VERSION = 2
ALL_PHASES = PhaseRef("all phases", "profiling", -1)
# What there are too many phases for is counted in this one, which comes last.
OTHER_PHASES = PhaseRef("other phases", "profiling", (1 << 63) - 1)


class Span(Struct):
    """When a phase took place, by its events: Unix time in ns of its start and of its last answer."""

    start_ns: int | None = None
    end_ns: int | None = None


class RunState:
    """The statistics of one run: its records' by partition and phase, and when the phases took place."""

    def __init__(self, run_id: str, options: Options = Options()) -> None:  # noqa: B008 - frozen
        self.run_id = run_id
        self.options = options
        self.parts: dict[int, dict[PhaseRef, PhaseState]] = {}
        self.spans: dict[PhaseRef, Span] = {}

    @property
    def records(self) -> int:
        """How many records were counted."""
        return sum(phase.requests for part in self.parts.values() for phase in part.values())

    def span(self, phase: PhaseRef) -> Span:
        """Return when a phase took place, to be read and changed."""
        if phase not in self.spans and len(self.spans) >= MAX_PHASES:
            return Span()
        return self.spans.setdefault(phase, Span())

    def update(self, batch: RecordBatch) -> None:
        """Add a batch of the run's records."""
        partition, phase = batch.event.partition, batch.phase
        part = self.parts.setdefault(partition, {})
        if phase not in part and len(part) >= MAX_PHASES:
            phase = OTHER_PHASES
        errors = sum(len(state.errors) for state in part.values())
        metrics = sum(len(state.metrics) for state in part.values())
        self._state(partition, phase).update(batch, MAX_ERROR_TYPES - errors, MAX_METRICS - metrics)

    def merge(self, other: RunState) -> None:
        """Add another state of the same run, made from other events, which is left unchanged.

        Raises:
            ValueError: if the other has different options.
        """
        self._check(other)
        theirs = {(n, phase): state for n, part in other.parts.items() for phase, state in part.items()}
        ours = {(n, phase) for n, part in self.parts.items() for phase in part}
        for partition, phase in ours | set(theirs):
            known = theirs.get((partition, phase))
            self._state(partition, phase).merge(*([] if known is None else [known]))
        for phase, span in other.spans.items():
            mine = self.span(phase)
            mine.start_ns = least(mine.start_ns, span.start_ns)
            mine.end_ns = most(mine.end_ns, span.end_ns)

    def replace_parts(self, other: RunState) -> None:
        """Replace the partitions that another state has by the other's, without copying them.

        Raises:
            ValueError: if the other has different options.
        """
        self._check(other)
        self.parts.update(other.parts)

    def without_parts(self) -> RunState:
        """Return what is known from events other than records, without copying it."""
        state = RunState(self.run_id, self.options)
        state.spans = self.spans
        return state

    def phases(self, recent_windows: int | None = None) -> list[PhaseState]:
        """Return a new state of each phase, in order, with the last ``recent_windows`` windows only."""
        phases = []
        for ref, parts in self._by_phase().items():
            state = PhaseState(ref, self.options)
            state.merge_numbers(*parts)
            windows = self._windows(ref, parts)
            state.set_aside_times(reach_of(windows), windows.start_ns, windows.end_ns)
            state.windows = Windows.for_reading(self.options, [windows], recent_windows)
            phases.append(state)
        return phases

    def overall(self, phases: Sequence[PhaseState], recent_windows: int | None = None) -> PhaseState:
        """Return a new state over all ``phases``, with the last ``recent_windows`` windows only."""
        state = PhaseState(ALL_PHASES, self.options)
        state.merge_numbers(*phases)
        # From the partitions, since the last windows of the run may be more than those of its phases.
        windows = [self._windows(ref, parts) for ref, parts in self._by_phase().items()]
        state.windows = Windows.for_reading(self.options, windows, recent_windows)
        return state

    def overall_span(self, phases: Iterable[PhaseRef]) -> Span:
        """Return when the phases took place, all together; known once it is known of each."""
        span = Span()
        for phase in phases:
            known = self.spans.get(phase, Span())
            if known.start_ns is None or known.end_ns is None:
                return Span()
            span = Span(least(span.start_ns, known.start_ns), most(span.end_ns, known.end_ns))
        return span

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        return {
            "version": VERSION,
            "run_id": self.run_id,
            # As they were before there was a scale: a checkpoint of then is read, too.
            "options": msgspec.structs.astuple(self.options)[
                : 2 if self.options.window_scale == WINDOW_SCALE else 3
            ],
            "spans": [
                [ref.index, ref.name, ref.kind, *msgspec.structs.astuple(self.spans[ref])]
                for ref in in_order(self.spans)
            ],
            "parts": [
                [partition, [part[ref].to_dict() for ref in in_order(part)]]
                for partition, part in sorted(self.parts.items())
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunState:
        """Return the state that :meth:`to_dict` wrote as ``data``.

        Raises:
            StateError: if a phase-bus wrote it that counted in other bins.
        """
        version = data.get("version", 1)
        if version != VERSION:
            age = "an older" if version < VERSION else "a newer"
            raise StateError(
                f"its state is of {age} phase-bus (histogram version {version}, this one has {VERSION})"
            )
        limit, window_metrics, *scale = data["options"]
        state = cls(data["run_id"], Options(limit, tuple(window_metrics), *scale))
        for index, name, kind, *span in data["spans"]:
            state.spans[PhaseRef(name, kind, index)] = Span(*span)
        for partition, part in data["parts"]:
            phases = [PhaseState.from_dict(phase, state.options) for phase in part]
            state.parts[partition] = {phase.phase: phase for phase in phases}
        return state

    def _by_phase(self) -> dict[PhaseRef, list[PhaseState]]:
        """Return the states of each phase by partition, in order; the smallest of too many together."""
        found: dict[PhaseRef, list[PhaseState]] = {ref: [] for ref in self.spans}
        for partition in sorted(self.parts):
            for ref, state in self.parts[partition].items():
                found.setdefault(ref, []).append(state)
        refs = in_order(found)
        if len(refs) > MAX_PHASES:
            refs.sort(key=lambda ref: (ref == OTHER_PHASES, -sum(state.requests for state in found[ref])))
            others = [state for ref in refs[MAX_PHASES:] for state in found.pop(ref)]
            found[OTHER_PHASES] = others
        return {ref: found[ref] for ref in in_order(found)}

    def _windows(self, ref: PhaseRef, parts: Sequence[PhaseState]) -> Group:
        span = self.spans.get(ref, Span())
        return Group([state.windows for state in parts], span.start_ns, span.end_ns)

    def _state(self, partition: int, phase: PhaseRef) -> PhaseState:
        part = self.parts.setdefault(partition, {})
        state = part.get(phase)
        if state is None:
            state = part[phase] = PhaseState(phase, self.options)
        return state

    def _check(self, other: RunState) -> None:
        if self.options != other.options:
            raise ValueError(f"cannot merge states of {self.options} and {other.options}")


def in_order(phases: Iterable[PhaseRef]) -> list[PhaseRef]:
    """Return phases in the order in which everything is told of them."""
    return sorted(phases, key=lambda phase: (phase.index, phase.name, phase.kind))
