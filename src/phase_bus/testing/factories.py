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
    EventBase,
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
    Receipt,
    Records,
    RunComplete,
    RunStart,
    RunStatus,
    Summary,
    Verdict,
)
from phase_bus.harness.simulation import draw_records
from phase_bus.publisher.composer import RawRecord
from phase_bus.publisher.hooks import to_ref
from phase_bus.testing.memory import MemoryBus

RUN_ID = "run-1"
T0_NS = 1_800_000_000_000_000_000
"""When the runs of tests begin: Unix time in ns, a moment in January 2027."""
WARMUP = PhaseRef("warmup", "warmup", 0)
PROFILING = PhaseRef("profiling", "profiling", 1)

_STEP_NS = 10_000_000  # between the ends of two requests
_SECOND_NS = 1_000_000_000
_E = TypeVar("_E", bound=EventBase)


def make_stats(**values: Any) -> PhaseStats:
    """Return the counts of a phase that ran for ten seconds and is over; give others by name."""
    defaults: dict[str, Any] = {
        "sent": 100,
        "completed": 100,
        "start_ns": T0_NS,
        "sent_end_ns": T0_NS + 9 * _SECOND_NS,
        "end_ns": T0_NS + 10 * _SECOND_NS,
        "expected_requests": 100,
    }
    return PhaseStats(**(defaults | values))


def make_event(cls: type[_E], *, run_id: str = RUN_ID, ts_ns: int = T0_NS, **values: Any) -> _E:
    """Return an event with sensible values, as ``make_event(PhaseComplete, phase="warmup")``.

    Args:
        cls: its class.
        run_id: the run it belongs to.
        ts_ns: Unix time in ns when it happened.
        values: its other fields, where they matter; ``phase`` may be a phase's name.
    """
    values = _defaults(run_id).get(cls, {}) | values
    if issubclass(cls, PhaseEvent | Records):
        values["phase"] = _refs([values.get("phase", PROFILING)])[0]
    return cls(run_id=run_id, ts_ns=ts_ns, **values)


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
    bus = MemoryBus(batch_records=max(len(rows), 1))
    publisher = bus.publisher("factory")
    for row in rows:
        publisher.record(*row)
    publisher.flush()
    made = bus.events(Records) or [Records(run_id=run_id, phase=ref, count=0)]
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
    bus = MemoryBus(batch_records=batch_records)
    publisher = bus.publisher("factory")
    refs = _refs(phases)
    wanted = {ref.name: records if isinstance(records, int) else records.get(ref.name, 0) for ref in refs}
    plans = tuple(PhasePlan(phase=ref, expected_requests=wanted[ref.name] or None) for ref in refs)

    def publish(cls: type[EventBase], **values: Any) -> None:
        publisher.publish(make_event(cls, run_id=run_id, ts_ns=clock(), **values))

    publish(RunStart)
    publish(PhasesConfigured, phases=plans)
    for ref in refs:
        total = wanted[ref.name]
        stats = PhaseStats(start_ns=clock(), expected_requests=total or None)
        publish(PhaseStart, phase=ref, stats=stats)
        errors = 0
        for row in draw_records(random, run_id, ref, 0, total, error_rate=error_rate, clock=clock):
            publisher.record(*row)
            errors += row[-1] is not None
        stats = msgspec.structs.replace(
            stats, sent=total, completed=total, errors=errors, sent_end_ns=clock()
        )
        publish(PhaseProgress, phase=ref, stats=stats)
        publisher.publish(
            make_event(PhaseSendingComplete, phase=ref, run_id=run_id, stats=stats, ts_ns=clock())
        )
        stats = msgspec.structs.replace(stats, end_ns=clock())
        publish(PhaseComplete, phase=ref, stats=stats)
    publisher.complete_run(run_id, status)
    return [_at_fixed_time(event, clock) for event in bus.events()]


def _defaults(run_id: str) -> dict[type[EventBase], dict[str, Any]]:
    """Return the values that events of each class have where a test gives no others."""
    half_done = make_stats(sent=60, completed=50, in_flight=10, sent_end_ns=None, end_ns=None)
    cut_short = make_stats(completed=98, cancelled=2, grace_period_timeout_triggered=True)
    plans = tuple(PhasePlan(phase=ref, expected_requests=100) for ref in (WARMUP, PROFILING))
    dropped = {f"records.00.{run_id}$": 1}
    return {
        RunStart: {"producer": "test 1.0", "models": ("test-model",)},
        PhasesConfigured: {"phases": plans},
        PhaseStart: {"stats": PhaseStats(start_ns=T0_NS, expected_requests=100)},
        PhaseProgress: {"stats": half_done},
        PhaseSendingComplete: {"stats": make_stats(completed=90, in_flight=10, end_ns=None)},
        PhaseTimeout: {"stats": cut_short, "requests_cut": 2},
        PhaseComplete: {"stats": make_stats()},
        Records: {"count": 0},
        RunComplete: {"status": "completed"},
        Summary: {"producer": "test", "final": True},
        Verdict: {
            "producer": "test",
            "threshold": "profiling error_rate < 1 %",
            "phase": PROFILING.name,
            "state": "passed",
        },
        Receipt: {"consumer": "test"},
        Drop: {"source": "test", "reason": "full", "events": dropped, "records": 100},
    }


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
