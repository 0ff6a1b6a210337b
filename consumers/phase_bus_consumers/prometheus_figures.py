"""What Prometheus is told of runs: counters, gauges and histograms, made of their merged statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from msgspec import Struct

from phase_bus import EventBase, PhaseEvent, PhaseRef, PhaseStats, Records, RunComplete, RunStart, Verdict
from phase_bus.aggregation import Options, PhaseState, RunResult, RunState, base_unit
from phase_bus_consumers.prometheus_families import (
    Family,
    Labels,
    Named,
    Value,
    families_of,
    label_text,
    labels_of,
)
from phase_bus_consumers.verdicts import passed

# Values are counted in bins at once: what is exported has no others.
_OPTIONS = Options(exact_limit=0, window_metrics=())
_MAX_ERRORS = 50
_MAX_PHASES = 100
_MAX_THRESHOLDS = 100
_MAX_RUNS = 32  # that are added up
_REMEMBERED = 100  # runs that were let go of

_INFO = Named("phase_bus_run_info", "gauge", "A run whose figures are in the other series; always 1.")
_RUNNING = Named("phase_bus_runs_in_progress", "gauge", "Runs that go on.")
_SENT = Named("phase_bus_requests_sent_total", "counter", "Requests sent.")
_IN_FLIGHT = Named("phase_bus_requests_in_flight", "gauge", "Requests sent and not answered yet.")
_PROGRESS = Named("phase_bus_phase_progress_ratio", "gauge", "How far the phase is, 0 to 1.")
_REQUESTS = Named("phase_bus_requests_total", "counter", "Requests that are over, failed ones included.")
_ERRORS = Named("phase_bus_request_errors_total", "counter", "Failed requests, by the type of their error.")
_CANCELLED = Named("phase_bus_requests_cancelled_total", "counter", "Requests that the client cancelled.")
_PASSED = Named(
    "phase_bus_threshold_passed",
    "gauge",
    "Whether the run keeps to the threshold: 1, or 0; NaN as long as nobody can tell.",
)
_MEASURED = Named(
    "phase_bus_threshold_value", "gauge", "What was measured at the threshold's last verdict, in its unit."
)
_LIMIT = Named("phase_bus_threshold_limit", "gauge", "What the threshold's value was held against.")
_TOKENS = {
    "input_sequence_length": Named("phase_bus_input_tokens_total", "counter", "Tokens sent."),
    "output_sequence_length": Named("phase_bus_output_tokens_total", "counter", "Tokens received."),
}
_OTHER = "other"  # the type of errors of which there are too many types

_ErrorKey = tuple[str, int | None]


class _SavedRun(Struct):
    state: dict[str, Any]
    start: RunStart | None
    end: RunComplete | None
    stats: list[tuple[PhaseRef, PhaseStats]]
    verdicts: list[Verdict] = []


class SavedFigures(Struct):
    """The content of :class:`Figures`, for msgpack."""

    runs: list[_SavedRun] = []
    errors: list[_ErrorKey] = []
    done: list[str] = []


class _Run(RunResult):
    """A run: its result, and what its other events say."""

    def __init__(self, state: RunState) -> None:
        super().__init__(state)
        self.start: RunStart | None = None
        self.stats: dict[PhaseRef, PhaseStats] = {}
        self.verdicts: dict[Labels, Verdict] = {}

    def take(self, event: EventBase) -> None:
        super().take(event)
        if isinstance(event, RunStart):
            self.start = event
        elif isinstance(event, PhaseEvent) and (event.phase in self.stats or len(self.stats) < _MAX_PHASES):
            self.stats[event.phase] = event.stats
        elif isinstance(event, Verdict):
            labels = labels_of(threshold=event.threshold, phase=event.phase)
            if labels in self.verdicts or len(self.verdicts) < _MAX_THRESHOLDS:
                self.verdicts[labels] = event

    def labels(self) -> Labels:
        """Return what identifies it."""
        start = self.start or RunStart(run_id=self.state.run_id)
        return labels_of(run_id=start.run_id, model=",".join(start.models), producer=start.producer)


class Figures:
    """The figures of the run that goes on, or of several that go on at once, added up.

    They stay when a run is over, and begin anew with the next one that starts while none goes on, which
    Prometheus understands as the reset of a counter. Nothing else lets a counter fall.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._done: dict[str, None] = {}  # runs that were let go of, the oldest first
        self._errors: dict[_ErrorKey, None] = {}  # the types that have series of their own
        # By phase: how many requests there were, and what was told then.
        self._known: dict[str, tuple[int, list[tuple[Named, Labels, Value]]]] = {}

    @property
    def in_progress(self) -> int:
        """How many runs go on."""
        return sum(run.end is None for run in self._runs.values())

    @property
    def complete(self) -> bool:
        """Whether all runs are over, with all that they announced, and none of them was lost."""
        return all(run.final and run.end and run.end.status != "lost" for run in self._runs.values())

    def counts(self, run_id: str) -> bool:
        """Return whether events of a run count: not if it was let go of."""
        return run_id not in self._done

    def knows(self, run_id: str) -> bool:
        """Return whether a run's events are in the figures."""
        return run_id in self._runs

    def begin_anew_with(self, run_id: str) -> bool:
        """Return whether an event of this run makes them begin anew."""
        return self.counts(run_id) and run_id not in self._runs and not self.in_progress

    def take(self, event: EventBase) -> bool:
        """Add an event; return whether it counts: one of a run that was let go of does not.

        Nor does a verdict on a run that has no other events here.
        """
        run = self._runs.get(event.run_id) if isinstance(event, Verdict) else self._run(event.run_id)
        if run is None:
            return False
        run.take(event)
        if isinstance(event, Records):
            for error in event.errors:
                self._list_error((label_text(error.type), error.code))
        return True

    def replace_parts(self, state: RunState) -> None:
        """Take over the partitions of a run that were counted elsewhere."""
        run = self._run(state.run_id)
        if run is None:
            return
        run.state.replace_parts(state)
        run.check_end()
        for part in state.parts.values():
            for key in chain.from_iterable(phase.errors for phase in part.values()):
                self._list_error((label_text(key[0]), key[1]))

    def forget(self, run_id: str) -> None:
        """Let go of a run."""
        if run_id in self._runs:
            del self._runs[run_id]
            self._known.clear()
        self._done[run_id] = None
        if len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]

    def clear(self) -> None:
        """Let go of all runs."""
        for run_id in list(self._runs):
            self.forget(run_id)
        self._errors.clear()

    def families(self, now_ns: int) -> list[Family]:
        """Return all figures, as of a moment: only the progress of phases depends on it."""
        samples: dict[Named, dict[Labels, Value]] = {_RUNNING: {(): float(self.in_progress)}}
        for run in self._runs.values():
            samples.setdefault(_INFO, {})[run.labels()] = 1.0
        for kind, labels, value in chain(self._of_events(now_ns), self._of_verdicts(), self._of_records()):
            samples.setdefault(kind, {})[labels] = value
        return [Family(kind, list(values.items())) for kind, values in samples.items()]

    def saved(self, grouped: bool = False) -> SavedFigures:
        """Return the content; in a group without what the partitions keep."""
        runs = []
        for run in self._runs.values():
            state = run.state.without_parts() if grouped and run.end is None else run.state
            stats, verdicts = list(run.stats.items()), list(run.verdicts.values())
            runs.append(_SavedRun(state.to_dict(), run.start, run.end, stats, verdicts))
        return SavedFigures(runs, list(self._errors), list(self._done))

    @classmethod
    def restored(cls, saved: SavedFigures) -> Figures:
        """Return the figures that :meth:`saved` gave."""
        figures = cls()
        for kept in saved.runs:
            run = _Run(RunState.from_dict(kept.state))
            run.start, run.end, run.stats = kept.start, kept.end, dict(kept.stats)
            for verdict in kept.verdicts:
                run.take(verdict)
            figures._runs[run.state.run_id] = run
        figures._errors, figures._done = dict.fromkeys(saved.errors), dict.fromkeys(saved.done)
        return figures

    def _run(self, run_id: str) -> _Run | None:
        """Return a run, a new one if need be; None for one that was let go of."""
        run = self._runs.get(run_id)
        if run is None and run_id not in self._done:
            if not self.in_progress:
                self.clear()
            elif len(self._runs) >= _MAX_RUNS:
                ended = (name for name, known in self._runs.items() if known.end is not None)
                self.forget(next(ended, next(iter(self._runs))))
            run = self._runs[run_id] = _Run(RunState(run_id, _OPTIONS))
        return run

    def _list_error(self, key: _ErrorKey) -> None:
        # The first ones, so that none that was among the others has a series of its own later.
        if key not in self._errors and len(self._errors) < _MAX_ERRORS:
            self._errors[key] = None

    def _of_events(self, now_ns: int) -> Iterator[tuple[Named, Labels, Value]]:
        by_phase: dict[str, list[PhaseStats]] = {}
        for run in self._runs.values():
            for phase, stats in run.stats.items():
                by_phase.setdefault(label_text(phase.name), []).append(stats)
        for name, known in by_phase.items():
            labels = labels_of(phase=name)
            yield _SENT, labels, float(sum(stats.sent for stats in known))
            yield _IN_FLIGHT, labels, float(sum(stats.in_flight for stats in known))
            parts = [part for stats in known if (part := stats.progress(now_ns)) is not None]
            if parts:
                yield _PROGRESS, labels, min(parts)

    def _of_verdicts(self) -> Iterator[tuple[Named, Labels, Value]]:
        """Yield how thresholds stand; of runs that overlap, the one that is worst off counts."""
        worst: dict[Labels, Verdict] = {}
        for run in self._runs.values():
            for labels, verdict in run.verdicts.items():
                if labels not in worst or _rank(verdict) < _rank(worst[labels]):
                    worst[labels] = verdict
        for verdict in worst.values():
            yield from samples_of(verdict)

    def _of_records(self) -> Iterator[tuple[Named, Labels, Value]]:
        by_phase: dict[str, list[PhaseState]] = {}
        for run in self._runs.values():
            for phase in run.stats:
                by_phase.setdefault(label_text(phase.name), [])  # a counter begins at 0
            for part in run.state.parts.values():
                for phase, state in part.items():
                    by_phase.setdefault(label_text(phase.name), []).append(state)
        metrics = families_of(
            {n for states in by_phase.values() for state in states for n in state.metrics}
        )
        for name, states in by_phase.items():
            requests = sum(state.requests for state in states)
            known = self._known.get(name)
            if known is None or known[0] != requests:  # a phase that is over costs nothing
                known = self._known[name] = (requests, list(self._of_phase(name, states, metrics)))
            yield from known[1]

    def _of_phase(
        self, name: str, states: Sequence[PhaseState], metrics: Mapping[str, Named]
    ) -> Iterator[tuple[Named, Labels, Value]]:
        merged = PhaseState(PhaseRef(name), _OPTIONS)
        merged.merge_numbers(*states)
        labels = labels_of(phase=name)
        yield _REQUESTS, labels, float(merged.requests)
        yield _CANCELLED, labels, float(merged.cancelled)
        errors: Counter[Labels] = Counter()
        for (kind, code), count in merged.errors.items():
            listed = (label_text(kind), code) in self._errors
            errors[
                labels_of(phase=name, type=kind if listed else _OTHER, code=code if listed else None)
            ] += count
        if merged.other_errors:
            errors[labels_of(phase=name, type=_OTHER)] += merged.other_errors
        for with_type, count in errors.items():
            yield _ERRORS, with_type, float(count)
        for metric, family in metrics.items():
            if metric in merged.metrics:
                state = merged.metrics[metric]
                if metric in _TOKENS:
                    yield _TOKENS[metric], labels, state.sum
                yield family, labels, state.sum if family.kind == "counter" else state.exponential()


def samples_of(verdict: Verdict) -> Iterator[tuple[Named, Labels, Value]]:
    """Yield what a verdict says: whether it is a pass, and what was held against what, in base units."""
    labels = labels_of(threshold=verdict.threshold, phase=verdict.phase)
    known = passed(verdict)
    yield _PASSED, labels, math.nan if known is None else float(known)
    unit = base_unit(verdict.unit)
    with_unit = labels_of(threshold=verdict.threshold, phase=verdict.phase, unit=unit.name)
    for kind, value in ((_MEASURED, verdict.value), (_LIMIT, verdict.limit)):
        if value is not None:
            yield kind, with_unit, unit.convert(value)


def _rank(verdict: Verdict) -> int:
    return [False, None, True].index(passed(verdict))
