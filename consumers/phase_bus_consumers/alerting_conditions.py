"""What is worth an alert: conditions that begin to hold, and hold no more.

Nothing here knows how alerts are delivered.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from msgspec import UNSET, Struct, UnsetType, field

from phase_bus import (
    Drop,
    EventBase,
    PhaseComplete,
    PhaseEvent,
    PhaseProgress,
    PhaseStats,
    PhaseTimeout,
    RunComplete,
    Verdict,
)
from phase_bus.aggregation import readable
from phase_bus_consumers.verdicts import is_no_pass

_REMEMBERED = 1000  # alerts, and runs, that are kept in mind
_WELL_BELOW = 0.9  # of the limit, so that a rate that is just there does not come and go

AlertKind: TypeAlias = Literal[
    "slow_phase",
    "phase_timeout",
    "error_rate",
    "threshold",
    "run_failed",
    "run_lost",
    "events_dropped",
    "run_end",
]
AlertState: TypeAlias = Literal["firing", "resolved", "ended"]


class Alert(Struct, frozen=True):
    """A change: what happened when (Unix time in ns), and the numbers behind it, with units in their names.

    ``phase`` is empty if it concerns the whole run; ``threshold`` says which one, if it concerns one.
    ``state`` says whether something begins to be wrong (``firing``) or is over (``resolved``); a run's end
    by itself is neither (``ended``).
    """

    kind: AlertKind
    message: str
    run_id: str
    phase: str
    ts_ns: int
    details: dict[str, Any]
    state: AlertState = "firing"
    threshold: str | UnsetType = UNSET

    @property
    def key(self) -> str:
        """What is the same when it fires and when it is resolved, and for no other alert."""
        return _key(self.run_id, self.phase, self.kind, self.threshold)


class Known(Struct):
    """What has to outlive a process.

    Attributes:
        firing: the run, phase and kind of what fires and has been told, by key.
        drops: the events that were dropped of runs that go on, by topic.
        phases: a line for each phase that is over, of runs that go on.
    """

    firing: dict[str, tuple[str, str, AlertKind]] = field(default_factory=dict)
    drops: dict[str, dict[str, int]] = field(default_factory=dict)
    phases: dict[str, list[str]] = field(default_factory=dict)


class Conditions:
    """The conditions of all runs; :meth:`take` tells what changes with an event.

    Args:
        threshold_s, max_error_rate, min_requests, run_end: the options of these names.

    Attributes:
        known: what an earlier process knew is to be set here.
    """

    def __init__(
        self, threshold_s: float, max_error_rate: float | None, min_requests: int, run_end: bool
    ) -> None:
        self._threshold_s = threshold_s
        self._max_error_rate = max_error_rate
        self._min_requests = min_requests
        self._run_end = run_end
        self.known = Known()

    def take(self, event: EventBase) -> list[Alert]:
        """Return what begins or is over with this event."""
        match event:
            case PhaseProgress():
                return [*self._is_back(event), *self._on_progress(event)]
            case PhaseComplete():
                return [*self._is_back(event), *self._on_complete(event)]
            case PhaseTimeout():
                return [*self._is_back(event), *self._on_timeout(event)]
            case Drop():
                # Drops come in bursts: one alert at the run's end says it all.
                self.known.drops[event.run_id] = Counter(self.known.drops.get(event.run_id, {})) + Counter(
                    event.events
                )
                _forget_old(self.known.drops)  # whose runs' ends never came
            case Verdict():
                return self._on_verdict(event)
            case RunComplete():
                return self._on_run_complete(event)
        return []

    # ---- phases ----

    def _on_progress(self, event: PhaseProgress) -> list[Alert]:
        changes = []
        if event.stats.start_ns is not None:
            changes += self._duration(
                event, (event.ts_ns - event.stats.start_ns) / 1e9, "has been running for"
            )
        if event.stats.completed >= self._min_requests:
            changes += self._errors(event, "so far ")
        return changes

    def _on_complete(self, event: PhaseComplete) -> list[Alert]:
        changes = []
        duration_s = event.stats.duration_s
        after = ""
        if duration_s is not None:
            changes += self._duration(event, duration_s, "took")
            after = f" after {duration_s:.1f} s (the limit is {self._threshold_s:g} s)"
        details = {"duration_s": duration_s, "threshold_s": self._threshold_s}
        changes += self._resolves(event, "slow_phase", f"phase {event.phase} is complete{after}", details)
        changes += self._errors(event)
        if self._run_end:
            self.known.phases.setdefault(event.run_id, []).append(
                f"{event.phase}: {_in_words(event.stats)}"
            )
            _forget_old(self.known.phases)
        return changes

    def _duration(self, event: PhaseEvent, duration_s: float, took: str) -> list[Alert]:
        if duration_s <= self._threshold_s:
            return []
        return self._fires(
            event,
            "slow_phase",
            f"phase {event.phase} {took} {duration_s:.1f} s, more than {self._threshold_s:g} s",
            {"duration_s": duration_s, "threshold_s": self._threshold_s},
        )

    def _errors(self, event: PhaseEvent, so_far: str = "") -> list[Alert]:
        stats, limit = event.stats, self._max_error_rate
        if limit is None:
            return []
        rate = stats.errors / stats.completed if stats.completed else 0.0
        details = {
            "errors": stats.errors,
            "completed": stats.completed,
            "error_rate": rate,
            "max_error_rate": limit,
        }
        failed = f"{stats.errors} of {stats.completed} requests failed"
        told = f"phase {event.phase}: {so_far}{failed} ({rate:.1%}, "
        if rate > limit:
            return self._fires(event, "error_rate", f"{told}more than {limit:.1%})", details)
        if so_far and rate > limit * _WELL_BELOW:
            return []
        return self._resolves(event, "error_rate", f"{told}no more than {limit:.1%})", details)

    def _on_timeout(self, event: PhaseTimeout) -> list[Alert]:
        grace_s = event.stats.grace_period_s
        period = "its grace period" if grace_s is None else f"its grace period of {grace_s:g} s"
        return self._fires(
            event,
            "phase_timeout",
            f"phase {event.phase} timed out: {event.requests_cut} requests cut at the end of {period}",
            {"requests_cut": event.requests_cut, "grace_period_s": grace_s},
        )

    def _on_verdict(self, event: Verdict) -> list[Alert]:
        """Tell what is no pass. The end changes nothing of it: the last verdict comes only then."""
        measured = readable(event.value, event.unit) or "nothing"
        told = f"{event.threshold}: {measured} was measured, {event.samples:,} samples"
        told += f" ({event.reason})" if event.reason else ""
        details = {
            "verdict": event.state,
            "final": event.final,
            "value": event.value,
            "limit": event.limit,
            "unit": event.unit,
            "samples": event.samples,
            "reason": event.reason,
        }
        if is_no_pass(event):
            failed = "failed" if event.state == "failed" else "is unknown in the end, which is no pass"
            return self._fires(event, "threshold", f"threshold {failed}: {told}", details)
        if event.state == "unknown":
            return []
        return self._resolves(event, "threshold", f"threshold passes again: {told}", details)

    # ---- runs ----

    def _is_back(self, event: EventBase) -> list[Alert]:
        """Say that a run goes on that was taken for lost."""
        return self._resolves(event, "run_lost", f"run {event.run_id} is back: its publisher goes on", {})

    def _on_run_complete(self, event: RunComplete) -> list[Alert]:
        run_id, status = event.run_id, event.status
        changes = []
        reason = f": {event.reason}" if event.reason else ""
        details = {"reason": event.reason}
        if status != "lost":
            changes += self._is_back(event)
        if status != "failed":
            told = f"run {run_id} has ended once more, as {status}"
            changes += self._resolves(event, "run_failed", told, {"status": status})
        if status == "failed":
            changes += self._fires(event, "run_failed", f"run {run_id} failed{reason}", details)
        elif status == "lost":
            changes += self._fires(event, "run_lost", f"run {run_id} was lost{reason}", details)
        # The publisher's own drops are reported in both places, the bus's only in drop events.
        dropped = Counter(self.known.drops.pop(run_id, {})) | Counter(event.dropped)
        if dropped:
            changes += self._fires(
                event,
                "events_dropped",
                f"run {run_id} ended with {dropped.total()} events dropped: "
                "results computed from them are not whole",
                {"events": dict(dropped)},
            )
        changes += self._end_phases(event)
        lines = self.known.phases.pop(run_id, [])
        if self._run_end:
            told = "; ".join([f"run {run_id} {status}{reason}: {event.records:,} records", *lines])
            ended = {"status": status, "reason": event.reason, "records": event.records}
            changes.append(Alert("run_end", told, run_id, "", event.ts_ns, ended, "ended"))
        return changes

    def _end_phases(self, event: RunComplete) -> list[Alert]:
        """Let go of what concerns the run's phases: none is slow any more, the rest stays as it is."""
        changes = []
        for key, (run_id, phase, kind) in list(self.known.firing.items()):
            if run_id != event.run_id or kind in ("run_failed", "run_lost", "threshold"):
                continue
            del self.known.firing[key]
            if kind == "slow_phase":
                told = f"phase {phase} goes on no more: the run is over"
                changes.append(Alert(kind, told, run_id, phase, event.ts_ns, {}, "resolved"))
        return changes

    # ---- changes ----

    def _fires(
        self, event: EventBase, kind: AlertKind, message: str, details: dict[str, Any]
    ) -> list[Alert]:
        alert = Alert(
            kind, message, event.run_id, _phase(event), event.ts_ns, details, threshold=_threshold(event)
        )
        if alert.key in self.known.firing:
            return []
        self.known.firing[alert.key] = (alert.run_id, alert.phase, kind)
        _forget_old(self.known.firing)
        return [alert]

    def _resolves(
        self, event: EventBase, kind: AlertKind, message: str, details: dict[str, Any]
    ) -> list[Alert]:
        """Say that something is over; nothing, if it was not wrong."""
        phase = "" if kind in ("run_failed", "run_lost") else _phase(event)
        over = Alert(
            kind, message, event.run_id, phase, event.ts_ns, details, "resolved", _threshold(event)
        )
        return [] if self.known.firing.pop(over.key, None) is None else [over]


def _key(run_id: str, phase: str, kind: str, threshold: str | UnsetType) -> str:
    parts = (run_id, phase, kind) if threshold is UNSET else (run_id, phase, kind, threshold)
    return "/".join(quote(part, safe="") for part in parts)


def _phase(event: EventBase) -> str:
    if isinstance(event, Verdict):
        return event.phase
    return event.phase.name if isinstance(event, PhaseEvent) else ""


def _threshold(event: EventBase) -> str | UnsetType:
    return event.threshold if isinstance(event, Verdict) else UNSET


def _in_words(stats: PhaseStats) -> str:
    rate = stats.errors / stats.completed if stats.completed else 0.0
    took = f" in {stats.duration_s:.1f} s" if stats.duration_s is not None else ""
    return f"{stats.completed:,} requests, {stats.errors:,} errors ({rate:.1%}){took}"


def _forget_old(known: dict[str, Any]) -> None:
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]
