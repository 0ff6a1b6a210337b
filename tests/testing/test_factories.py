"""Made-up events: whole, plausible, the same each time, and as a test wants them."""

from __future__ import annotations

from collections import Counter

import pytest

from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event, encode_event, topic_of
from phase_bus.events import (
    KINDS,
    Drop,
    PhaseEvent,
    PhaseProgress,
    PhaseRef,
    PhasesConfigured,
    PhaseStart,
    Records,
    RunComplete,
)
from phase_bus.testing import (
    PROFILING,
    RUN_ID,
    WARMUP,
    make_event,
    make_records,
    make_run,
    make_stats,
)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_can_be_made(kind: str) -> None:
    """With defaults that travel, and every field to be given by name."""
    cls = KINDS[kind]
    event = make_event(cls)
    assert event.kind == kind
    assert event.run_id == RUN_ID
    assert make_event(cls) == event
    assert decode_event(topic_of(event), encode_event(event)) is not None
    other = make_event(cls, run_id="r2", ts_ns=5)
    assert (other.run_id, other.ts_ns) == ("r2", 5)


def test_a_drop_names_topics_of_its_own_run() -> None:
    """Whatever the run is called."""
    assert make_event(Drop, run_id="r2").events == {"records.00.r2$": 1}


def test_phases_by_name_or_reference() -> None:
    """A phase is given as what a test has."""
    assert make_event(PhaseStart, phase="warmup").phase == WARMUP
    assert make_event(PhaseStart).phase == make_event(PhaseStart, phase="profiling").phase == PROFILING
    assert make_event(PhaseStart, phase="ramp").phase.name == "ramp"
    custom = PhaseRef("x", "warmup", 4)
    assert make_event(PhaseStart, phase=custom, stats=make_stats(sent=3)).stats.sent == 3
    assert make_event(PhaseStart, phase=custom).phase is custom


def test_a_run_is_whole() -> None:
    """Its end announces what is in it, phases are in order, and time never goes back."""
    events = make_run(records={"profiling": 70}, batch_records=32, error_rate=0.2)
    end = events[-1]
    assert isinstance(end, RunComplete)
    topics = Counter(topic_of(event).decode() for event in events[:-1])
    assert (end.published, end.records) == (topics, 70)
    assert [event.count for event in events if isinstance(event, Records)] == [32, 32, 6]
    (plan,) = (event for event in events if isinstance(event, PhasesConfigured))
    assert [p.expected_requests for p in plan.phases] == [None, 70]
    times = [e.ts_ns for e in events if not isinstance(e, PhaseProgress)]
    assert times == sorted(times)
    last = events[-2]
    assert isinstance(last, PhaseEvent)
    assert (last.stats.completed, last.stats.sent) == (70, 70)
    failed = sum(len(e.errors) for e in events if isinstance(e, Records))
    assert last.stats.errors == failed > 0


def test_a_run_is_the_same_for_the_same_seed() -> None:
    """And another one for another seed."""

    def payloads(seed: int) -> list[bytes]:
        return [encode_event(event) for event in make_run(records=20, seed=seed)]

    assert payloads(1) == payloads(1)
    assert payloads(1) != payloads(2)


def test_records_of_chosen_metrics() -> None:
    """A test that needs exact numbers gives them."""
    batch = RecordBatch(make_records([{"request_latency": 10}, {"request_latency": 20}], phase="warmup"))
    assert batch.values("request_latency").tolist() == [10, 20]
    assert batch.phase.name == "warmup"
    assert make_records(0).count == 0
    assert make_records(5, partition=3).partition == 3
    assert len(make_records(1000, error_rate=0.5).errors) > 300
