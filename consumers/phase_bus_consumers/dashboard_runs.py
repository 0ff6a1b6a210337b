"""What the page shows of a run, from its events: bounded, and cheap to keep up to date."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from phase_bus import (
    Drop,
    EventBase,
    PhaseEvent,
    PhasePlan,
    PhaseRef,
    PhasesConfigured,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    Records,
    RunComplete,
    RunStart,
    Verdict,
    printable,
)
from phase_bus.aggregation import Options, RunResult, RunState, readable

# What has percentiles over time. Values are counted in bins at once, which is what the page has room for;
# the report has the exact numbers.
METRICS = ("request_latency", "time_to_first_token", "inter_token_latency")
OPTIONS = Options(exact_limit=0, window_metrics=METRICS)
_LONGEST = 300  # characters of a name or message on the page
_MAX_PHASES = 100
_MAX_THRESHOLDS = 100
_MAX_CHANGES = 20  # of a threshold's state that are told
_MAX_RECEIPTS = 50
_MAX_VARIED = 10  # parameters of a variation


class Threshold(Struct):
    """A threshold of a run: its last verdict, and when its state changed."""

    last: Verdict
    changes: list[tuple[int, str]]


class Account(Struct, frozen=True):
    """A receipt in a line."""

    consumer: str
    whole: bool
    published: int | None
    handled: int
    failed: int
    missed: int
    worst_lag_s: float
    lost: int


class SavedRun(Struct):
    """The content of :class:`Run`, for msgpack."""

    run_id: str
    began_ns: int
    state: dict[str, Any] | None
    start: RunStart | None
    end: RunComplete | None
    plans: list[PhasePlan]
    stats: list[tuple[PhaseRef, PhaseStats]]
    cut: list[PhaseRef]
    thresholds: list[Threshold]
    receipts: list[Account]
    dropped: tuple[int, int]


class Run:
    """A run, as far as its events have told.

    Attributes:
        began_ns: Unix time in ns of its start, or of its first event.
        result: its records' statistics; None once they are let go of.
        changed: whether these have changed since :attr:`changed` was set to False.
    """

    def __init__(self, run_id: str, began_ns: int) -> None:
        self.run_id, self.began_ns = run_id, began_ns
        self.start: RunStart | None = None
        self.end: RunComplete | None = None
        self.result: RunResult | None = RunResult(RunState(run_id, OPTIONS))
        self.changed = True
        self._plans: dict[PhaseRef, PhasePlan] = {}
        self._stats: dict[PhaseRef, PhaseStats] = {}
        self._cut: dict[PhaseRef, None] = {}  # phases of which requests were cut
        self._thresholds: dict[tuple[str, str, str], Threshold] = {}
        self._receipts: dict[str, Account] = {}
        self._dropped = (0, 0)  # events and records, until the run's end says how many

    @property
    def status(self) -> str:
        """How it ended, or ``running``."""
        return "running" if self.end is None else self.end.status

    def take(self, event: EventBase) -> None:
        """Add an event."""
        if self.result is not None and isinstance(event, Records | PhaseEvent | RunComplete):
            self.result.take(event)
            self.end, self.changed = self.result.end, True
        match event:
            case RunStart():
                self.start, self.began_ns = event, event.ts_ns
            case PhasesConfigured():
                self._plans = {plan.phase: plan for plan in event.phases[:_MAX_PHASES]}
            case PhaseEvent():
                if event.phase in self._stats or len(self._stats) < _MAX_PHASES:
                    self._stats[event.phase] = event.stats
                    if isinstance(event, PhaseTimeout):
                        self._cut[event.phase] = None
            case RunComplete():
                self.end = None if event.running else event
            case Verdict():
                self._judge(event)
            case Receipt():
                if event.consumer in self._receipts or len(self._receipts) < _MAX_RECEIPTS:
                    self._receipts[event.consumer] = _account(event)
            case Drop():
                events, records = self._dropped
                self._dropped = (events + sum(event.events.values()), records + event.records)

    def replace_parts(self, state: RunState) -> None:
        """Take over the partitions that were counted elsewhere."""
        if self.result is not None:
            self.result.state.replace_parts(state)
            self.result.check_end()
            self.changed = True

    def brief(self, now_ns: int) -> dict[str, Any]:
        """Return its line in the list of runs."""
        states = [threshold.last.state for threshold in self._thresholds.values()]
        return {
            "id": self.run_id,
            "status": self.status,
            "began_ns": self.began_ns,
            "ended_ns": None if self.end is None else self.end.ts_ns,
            "model": shown(", ".join(self.start.models)) if self.start else "",
            "label": _label(self.start),
            "requests": sum(stats.completed for stats in self._stats.values()),
            "errors": sum(stats.errors for stats in self._stats.values()),
            "phase": shown(next(reversed(self._stats)).name) if self._stats else "",
            "progress": self._progress(now_ns),
            "thresholds": {state: states.count(state) for state in ("passed", "failed", "unknown")},
        }

    def document(self, now_ns: int) -> dict[str, Any]:
        """Return what is known of it from other events than records."""
        start, end = self.start or RunStart(run_id=self.run_id), self.end
        dropped = self._dropped if end is None else (sum(end.dropped.values()), end.dropped_records)
        return {
            **self.brief(now_ns),
            "reason": "" if end is None else shown(end.reason),
            "producer": shown(start.producer),
            "urls": shown(", ".join(start.urls)),
            "sweep": shown(start.sweep_id or ""),
            "trial": start.trial,
            "dropped_events": dropped[0],
            "dropped_records": dropped[1],
            "phases": [self._phase(ref, now_ns) for ref in self._phases()],
            "judged": [_threshold(each) for each in self._thresholds.values()],
            "receipts": [_receipt(each) for _, each in sorted(self._receipts.items())],
        }

    def saved(self, grouped: bool) -> SavedRun:
        """Return the content; in a group without what the partitions keep."""
        state = None
        if self.result is not None:
            state = (self.result.state.without_parts() if grouped else self.result.state).to_dict()
        return SavedRun(
            self.run_id,
            self.began_ns,
            state,
            self.start,
            self.end,
            list(self._plans.values()),
            list(self._stats.items()),
            list(self._cut),
            list(self._thresholds.values()),
            list(self._receipts.values()),
            self._dropped,
        )

    @classmethod
    def restored(cls, saved: SavedRun) -> Run:
        """Return the run that :meth:`saved` gave."""
        run = cls(saved.run_id, saved.began_ns)
        run.start, run.end = saved.start, saved.end
        run.result = None if saved.state is None else RunResult(RunState.from_dict(saved.state))
        if run.result is not None:
            run.result.end = saved.end
        run._plans = {plan.phase: plan for plan in saved.plans}
        run._stats, run._cut = dict(saved.stats), dict.fromkeys(saved.cut)
        run._thresholds = {_key(each.last): each for each in saved.thresholds}
        run._receipts = {each.consumer: each for each in saved.receipts}
        run._dropped = saved.dropped
        return run

    def _judge(self, event: Verdict) -> None:
        key = _key(event)
        known = self._thresholds.get(key)
        if known is None:
            if len(self._thresholds) < _MAX_THRESHOLDS:
                self._thresholds[key] = Threshold(event, [(event.ts_ns, event.state)])
            return
        if event.state != known.last.state:
            known.changes = [*known.changes, (event.ts_ns, event.state)][-_MAX_CHANGES:]
        known.last = event

    def _phases(self) -> list[PhaseRef]:
        refs = dict.fromkeys([*self._plans, *self._stats])
        return sorted(refs, key=lambda ref: (ref.index, ref.name))

    def _phase(self, ref: PhaseRef, now_ns: int) -> dict[str, Any]:
        stats, plan = self._stats.get(ref), self._plans.get(ref)
        return {
            "name": shown(ref.name),
            "kind": ref.kind,
            "index": ref.index,
            "state": self._state(ref, stats),
            "progress": None if stats is None else stats.progress(now_ns),
            "start_ns": None if stats is None else stats.start_ns,
            "end_ns": None if stats is None else stats.end_ns,
            "sent": stats.sent if stats else 0,
            "completed": stats.completed if stats else 0,
            "errors": stats.errors if stats else 0,
            "in_flight": stats.in_flight if stats else 0,
            "requests": _first(stats and stats.expected_requests, plan and plan.expected_requests),
            "duration_s": _first(stats and stats.expected_duration_s, plan and plan.expected_duration_s),
        }

    def _state(self, ref: PhaseRef, stats: PhaseStats | None) -> str:
        if stats is None or stats.start_ns is None:
            return "planned"
        if stats.was_cancelled:
            return "cancelled"
        if stats.end_ns is not None:
            return "cut" if ref in self._cut else "done"
        if self.end is not None:
            return self.end.status
        return "sending" if stats.sent_end_ns is None else "waiting"

    def _progress(self, now_ns: int) -> float | None:
        """Return how far the phase is that goes on, or all of it; None if nobody knows."""
        if self.end is not None:
            return 1.0
        stats = next(reversed(self._stats.values()), None)
        return None if stats is None else stats.progress(now_ns)


def _key(event: Verdict) -> tuple[str, str, str]:
    return event.producer, event.threshold, event.phase


def _threshold(threshold: Threshold) -> dict[str, Any]:
    last = threshold.last
    return {
        "threshold": shown(last.threshold),
        "phase": shown(last.phase),
        "by": shown(last.producer),
        "state": last.state,
        "final": last.final,
        "abort": last.abort,
        "value": shown(readable(last.value, last.unit)),
        "limit": shown(readable(last.limit, last.unit)),
        "samples": last.samples,
        "reason": shown(last.reason),
        "changes": threshold.changes,
    }


def _receipt(account: Account) -> dict[str, Any]:
    return {
        "consumer": shown(account.consumer),
        "whole": account.whole,
        "published": account.published,
        "handled": account.handled,
        "failed": account.failed,
        "missed": account.missed,
        "worst_lag_s": account.worst_lag_s,
        "lost": account.lost,
    }


def _account(receipt: Receipt) -> Account:
    topics = receipt.topics.values()
    said = [topic.published for topic in topics if topic.published is not None]
    return Account(
        consumer=receipt.consumer,
        whole=receipt.complete,
        published=sum(said) if said else None,
        handled=sum(topic.handled for topic in topics),
        failed=sum(topic.failed for topic in topics),
        missed=sum(topic.missed for topic in topics),
        worst_lag_s=receipt.worst_lag_s,
        lost=sum(loss.events for loss in receipt.lost),
    )


def _label(start: RunStart | None) -> str:
    if start is None:
        return ""
    varied = list(start.variation.items())[:_MAX_VARIED]
    parameters = ", ".join(f"{key}={value}" for key, value in varied if key != "label")
    return shown(" · ".join(part for part in (start.label or "", parameters) if part))


def shown(text: str) -> str:
    """Return a text from elsewhere, short and without what would not be seen."""
    whole = printable(text[: _LONGEST + 1])
    return whole if len(whole) <= _LONGEST else whole[: _LONGEST - 1] + "…"


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
