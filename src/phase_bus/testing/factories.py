"""Events and records for tests: sensible values, each of which can be given instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import msgspec
import numpy as np

from phase_bus.core.records import RecordBatch
from phase_bus.events import (
    Drop,
    Event,
    PhaseComplete,
    PhaseEvent,
    PhasePlan,
    PhaseProgress,
    PhaseRef,
    PhasesConfigured,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Records,
    RunComplete,
    RunStart,
    RunStatus,
    Summary,
)
from phase_bus.harness.simulation import draw_records
from phase_bus.publisher.batcher import RawRecord
from phase_bus.publisher.hooks import to_ref
from phase_bus.testing.store import MessageStore

RUN_ID = "run-1"
T0_NS = 1_800_000_000_000_000_000
"""When the runs of tests begin: Unix time in ns, a moment in January 2027."""
WARMUP = PhaseRef("warmup", "warmup", 0)
PROFILING = PhaseRef("profiling", "profiling", 1)

_STEP_NS = 10_000_000  # between the ends of two requests
_SECOND_NS = 1_000_000_000
_E = TypeVar("_E", bound=PhaseEvent)


def make_stats(**values: Any) -> PhaseStats:
    """Return the counts of a phase that has run for ten seconds and is over; give others by name."""
    defaults: dict[str, Any] = {
        "sent": 100,
        "completed": 100,
        "start_ns": T0_NS,
        "sent_end_ns": T0_NS + 9 * _SECOND_NS,
        "end_ns": T0_NS + 10 * _SECOND_NS,
        "expected_requests": 100,
    }
    return PhaseStats(**(defaults | values))


def make_run_start(**values: Any) -> RunStart:
    """Return the begin of a run; give other values by name."""
    defaults: dict[str, Any] = {"producer": "test 1.0", "models": ("test-model",)}
    return RunStart(**(_common() | defaults | values))


def make_phases_configured(*phases: PhaseRef | str, **values: Any) -> PhasesConfigured:
    """Return the plan of a run with these phases, by default a warm-up and a profiling phase."""
    plans = tuple(PhasePlan(phase=ref, expected_requests=100) for ref in _refs(phases))
    return PhasesConfigured(**(_common() | {"phases": plans} | values))


def make_phase_start(phase: PhaseRef | str = PROFILING, **values: Any) -> PhaseStart:
    """Return the begin of a phase."""
    stats = PhaseStats(start_ns=T0_NS, expected_requests=100)
    return _phase_event(PhaseStart, phase, stats, values)


def make_phase_progress(phase: PhaseRef | str = PROFILING, **values: Any) -> PhaseProgress:
    """Return the progress of a phase that is half done."""
    stats = make_stats(sent=60, completed=50, in_flight=10, sent_end_ns=None, end_ns=None)
    return _phase_event(PhaseProgress, phase, stats, values)


def make_phase_sending_complete(phase: PhaseRef | str = PROFILING, **values: Any) -> PhaseSendingComplete:
    """Return what a phase says when it has sent everything and waits for ten answers."""
    stats = make_stats(completed=90, in_flight=10, end_ns=None)
    return _phase_event(PhaseSendingComplete, phase, stats, values)


def make_phase_timeout(phase: PhaseRef | str = PROFILING, **values: Any) -> PhaseTimeout:
    """Return the time-out of a phase that cut two requests off."""
    stats = make_stats(completed=98, cancelled=2, grace_period_timeout_triggered=True)
    return _phase_event(PhaseTimeout, phase, stats, {"requests_cut": 2} | values)


def make_phase_complete(phase: PhaseRef | str = PROFILING, **values: Any) -> PhaseComplete:
    """Return the end of a phase; ``stats=make_stats(...)`` gives it other counts."""
    return _phase_event(PhaseComplete, phase, make_stats(), values)


def make_run_complete(**values: Any) -> RunComplete:
    """Return the end of a run, which says nothing of what was published; :func:`make_run` does."""
    return RunComplete(**(_common() | {"status": "completed"} | values))


def make_summary(**values: Any) -> Summary:
    """Return a final summary."""
    return Summary(**(_common() | {"producer": "test", "final": True, "result": {}} | values))


def make_drop(**values: Any) -> Drop:
    """Return the news of one batch of records that was dropped."""
    events = {f"records.00.{values.get('run_id', RUN_ID)}$": 1}
    defaults = {"source": "test", "reason": "full", "events": events, "records": 100}
    return Drop(**(_common() | defaults | values))


def make_records(
    records: int | Sequence[Mapping[str, Any]] = 10,
    *,
    run_id: str = RUN_ID,
    phase: PhaseRef | str = PROFILING,
    error_rate: float = 0.0,
    seed: int = 0,
    ts_ns: int = T0_NS,
    **values: Any,
) -> Records:
    """Return a batch of request records.

    Args:
        records: how many to make up, the same ones for the same seed; or the metrics of each.
        run_id: the run they belong to.
        phase: the phase they belong to.
        error_rate: the share of the made-up ones that fail, 0 to 1.
        seed: what the made-up ones are drawn from.
        ts_ns: Unix time in ns when the batch was closed.
        values: other fields of the event.
    """
    ref = to_ref(phase, 1)
    if isinstance(records, int):
        rows: Sequence[RawRecord] = tuple(
            draw_records(
                np.random.default_rng(seed), run_id, ref, 0, records, error_rate=error_rate, clock=_clock()
            )
        )
    else:
        rows = [(run_id, ref, metrics, {}, None) for metrics in records]
    store = MessageStore(batch_records=max(len(rows), 1))
    publisher = store.publisher("factory")
    for row in rows:
        publisher.record(*row)
    publisher.flush()
    made = store.events(Records) or [Records(run_id=run_id, phase=ref, count=0)]
    return msgspec.structs.replace(made[0], ts_ns=ts_ns, **values)


def make_run(
    records: int | Mapping[str, int] = 100,
    *,
    phases: Sequence[PhaseRef | str] = (WARMUP, PROFILING),
    run_id: str = RUN_ID,
    status: RunStatus = "completed",
    error_rate: float = 0.0,
    batch_records: int = 32,
    seed: int = 0,
) -> list[Event]:
    """Return a whole plausible run, in order, its end with the counts of all that is in it.

    Args:
        records: how many request records each phase has, or how many by the phase's name.
        phases: the phases, in order.
        run_id: its id.
        status: how it ends.
        error_rate: the share of requests that fail, 0 to 1.
        batch_records: how many records a batch has at most.
        seed: what the requests are drawn from: the same run for the same seed.
    """
    random, clock = np.random.default_rng(seed), _clock()
    store = MessageStore(batch_records=batch_records)
    publisher = store.publisher("factory")
    refs = _refs(phases)
    wanted = {ref.name: records if isinstance(records, int) else records.get(ref.name, 0) for ref in refs}
    plans = tuple(PhasePlan(phase=ref, expected_requests=wanted[ref.name] or None) for ref in refs)
    publisher.publish(make_run_start(run_id=run_id, ts_ns=clock()))
    publisher.publish(make_phases_configured(run_id=run_id, phases=plans, ts_ns=clock()))
    for ref in refs:
        total = wanted[ref.name]
        stats = PhaseStats(start_ns=clock(), expected_requests=total or None)
        publisher.publish(make_phase_start(ref, run_id=run_id, stats=stats, ts_ns=clock()))
        errors = 0
        for row in draw_records(random, run_id, ref, 0, total, error_rate=error_rate, clock=clock):
            publisher.record(*row)
            errors += row[-1] is not None
        stats = msgspec.structs.replace(
            stats, sent=total, completed=total, errors=errors, sent_end_ns=clock()
        )
        publisher.publish(make_phase_progress(ref, run_id=run_id, stats=stats, ts_ns=clock()))
        publisher.publish(make_phase_sending_complete(ref, run_id=run_id, stats=stats, ts_ns=clock()))
        stats = msgspec.structs.replace(stats, end_ns=clock())
        publisher.publish(make_phase_complete(ref, run_id=run_id, stats=stats, ts_ns=clock()))
    publisher.complete_run(run_id, status)
    return [_at_fixed_time(event, clock) for event in store.events()]


def _common() -> dict[str, Any]:
    return {"run_id": RUN_ID, "ts_ns": T0_NS}


def _phase_event(cls: type[_E], phase: PhaseRef | str, stats: PhaseStats, values: dict[str, Any]) -> _E:
    defaults = {"phase": _refs([phase])[0], "stats": stats}
    return cls(**(_common() | defaults | values))


def _refs(phases: Sequence[PhaseRef | str]) -> list[PhaseRef]:
    known = {ref.name: ref for ref in (WARMUP, PROFILING)} if len(phases) < 2 else {}
    chosen = phases or (WARMUP, PROFILING)
    return [
        known[phase] if isinstance(phase, str) and phase in known else to_ref(phase, index)
        for index, phase in enumerate(chosen)
    ]


def _at_fixed_time(event: Event, clock: Callable[[], int]) -> Event:
    """Return an event that the publisher made, and gave the time of now, as of the run's own time."""
    if isinstance(event, Records):
        ts_ns = int(RecordBatch(event).values("request_end_ns").max())
        return msgspec.structs.replace(event, ts_ns=ts_ns)
    return msgspec.structs.replace(event, ts_ns=clock()) if isinstance(event, RunComplete) else event


def _clock() -> Callable[[], int]:
    """Return a clock that ticks with each look at it."""
    ticks = count(T0_NS, _STEP_NS)
    return lambda: next(ticks)
