"""The result of one run, and when it is final."""

from __future__ import annotations

from typing import Any

from phase_bus.aggregation.state import RunState
from phase_bus.aggregation.summary import summarize
from phase_bus.core.records import RecordBatch
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseEvent,
    PhaseProgress,
    PhaseStart,
    Records,
    RunComplete,
)

_WITH_TIMES = (PhaseStart, PhaseProgress, PhaseComplete)


class RunResult:
    """The result of a run's events, whether they come live or from a journal."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.end: RunComplete | None = None

    @property
    def final(self) -> bool:
        """Whether as many records were counted as the run announced at its end."""
        return self.end is not None and self.state.records == self.end.records

    def take(self, event: EventBase) -> None:
        """Add an event; most kinds do not change the result."""
        if isinstance(event, Records):
            self.state.update(RecordBatch(event))
        elif isinstance(event, RunComplete):
            self.end = event
        elif isinstance(event, PhaseEvent) and isinstance(event, _WITH_TIMES):
            span = self.state.span(event.phase)
            span.start_ns = span.start_ns if event.stats.start_ns is None else event.stats.start_ns
            span.end_ns = span.end_ns if event.stats.end_ns is None else event.stats.end_ns

    def summary(self, recent_windows: int | None = None) -> dict[str, Any]:
        """Return the document of :func:`~phase_bus.aggregation.summary.summarize`."""
        return summarize(self.state, final=self.final, end=self.end, recent_windows=recent_windows)
