"""Which events of a run's phases have been published, and which are due."""

from __future__ import annotations

import threading
from typing import Any

from phase_bus.aiperf.mapping import phase_ref, phase_stats
from phase_bus.events import (
    PhaseComplete,
    PhaseEvent,
    PhaseProgress,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
)


class PhaseLog:
    """Turns AIPerf's phase stats, wherever they come from, into each phase event exactly once.

    AIPerf's stats have the time of each transition, so they alone say how far a phase is; the kind of
    message that brought them does not matter. A message that was lost, came twice, or came too late is
    made up for by any later one. Stats without a new transition are progress.

    Thread-safe.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._last: dict[int, PhaseStats] = {}
        self._echoes: set[int] = set()  # phases whose next stats may just repeat a transition
        self._refs: dict[int, PhaseRef] = {}
        self._lock = threading.Lock()

    def update(self, source: Any) -> list[PhaseEvent]:
        """Return the events that follow from new stats of a phase, in order."""
        stats = phase_stats(source)
        ref = self.ref(source)
        with self._lock:
            last = self._last.get(ref.index, _NOTHING)
            events = self._transitions(ref, last, stats)
            if events:
                self._echoes.add(ref.index)
            elif self._is_progress(ref, last, stats):
                events.append(PhaseProgress(run_id=self._run_id, phase=ref, stats=stats))
            if events:
                self._last[ref.index] = stats
        return events

    def ref(self, source: Any) -> PhaseRef:
        """Return the phase of AIPerf's stats or of a record's metadata."""
        try:
            ref = self._refs.get(source.phase_index)
            if ref is not None and ref.name == source.phase_name:
                return ref
        except AttributeError:  # an AIPerf that names it differently
            pass
        ref = phase_ref(source)
        self._refs[ref.index] = ref
        return ref

    def ended(self, count: int) -> bool:
        """Return whether at least ``count`` phases have begun, and all that have begun have ended."""
        with self._lock:
            over = [stats.end_ns is not None for stats in self._last.values()]
        return len(over) >= max(count, 1) and all(over)

    def _is_progress(self, ref: PhaseRef, last: PhaseStats, stats: PhaseStats) -> bool:
        # A sum, since each count only ever grows.
        count = stats.sent + stats.completed + stats.cancelled
        if last.end_ns is not None or count < last.sent + last.completed + last.cancelled:
            return False  # it was overtaken
        if ref.index in self._echoes:  # AIPerf reports each transition twice, once as progress
            self._echoes.discard(ref.index)
            return stats != last
        return True

    def _transitions(self, ref: PhaseRef, last: PhaseStats, stats: PhaseStats) -> list[PhaseEvent]:
        run_id = self._run_id
        events: list[PhaseEvent] = []  # list[PhaseEvent]() would take as long as the rest of this
        start_ns, sent_end_ns, end_ns = stats.start_ns, stats.sent_end_ns, stats.end_ns
        if last.start_ns is None and start_ns is not None:
            events.append(PhaseStart(run_id=run_id, ts_ns=start_ns, phase=ref, stats=stats))
        if last.sent_end_ns is None and sent_end_ns is not None:
            events.append(PhaseSendingComplete(run_id=run_id, ts_ns=sent_end_ns, phase=ref, stats=stats))
        if last.end_ns is None and end_ns is not None:
            if stats.grace_period_timeout_triggered:
                events.append(
                    PhaseTimeout(
                        run_id=run_id,
                        ts_ns=end_ns,
                        phase=ref,
                        stats=stats,
                        requests_cut=stats.cancelled,
                    )
                )
            events.append(PhaseComplete(run_id=run_id, ts_ns=end_ns, phase=ref, stats=stats))
        return events


_NOTHING = PhaseStats()
