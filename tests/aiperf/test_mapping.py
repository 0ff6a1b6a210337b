"""From AIPerf's messages and objects, captured from real runs of 0.13.0, to our events."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from phase_bus.aiperf.mapping import (
    RECORD_FIELDS,
    CreditConfig,
    CreditStats,
    ErrorNote,
    Outcome,
    PhaseMessage,
    ProfileResults,
    Results,
    ResultsMessage,
    decode,
    decode_summary,
    outcome,
    phase_ref,
    phase_stats,
    plan_of_credit_config,
    plans_of_run,
    record_error,
    record_fields,
    run_start,
)
from phase_bus.aiperf.phase_log import PhaseLog
from phase_bus.events import PhasePlan, PhaseRef, PhaseStats

DATA = Path(__file__).parent / "data"
MESSAGES: list[dict[str, Any]] = json.loads((DATA / "messages_hang.json").read_text())
RESULTS: dict[str, Any] = json.loads((DATA / "results.json").read_text())
RECORDS: dict[str, Any] = json.loads((DATA / "records.json").read_text())
PHASE_MESSAGES = [m for m in MESSAGES if m["message_type"].startswith("credit_phase_")]


def stats_in(message: dict[str, Any]) -> CreditStats:
    decoded = decode(json.dumps(message).encode(), PhaseMessage)
    assert decoded is not None
    assert decoded.stats is not None
    return decoded.stats


def test_a_run_that_hangs_past_its_grace_period() -> None:
    log = PhaseLog("r")
    events = [event for message in PHASE_MESSAGES for event in log.update(stats_in(message))]
    told = [(event.kind, str(event.phase)) for event in events if event.kind != "phase_progress"]
    assert told == [
        ("phase_start", "warmup"),
        ("phase_sending_complete", "warmup"),
        ("phase_complete", "warmup"),
        ("phase_start", "profiling"),
        ("phase_sending_complete", "profiling"),
        ("phase_timeout", "profiling"),
        ("phase_complete", "profiling"),
    ]
    timeout, complete = events[-2:]
    assert timeout.requests_cut == 4  # type: ignore[attr-defined]
    assert complete.phase == PhaseRef("profiling", "profiling", 1)
    stats = complete.stats
    assert (stats.sent, stats.completed, stats.cancelled, stats.in_flight) == (29, 25, 4, 0)
    assert stats.expected_duration_s == 1.0
    assert stats.grace_period_s == 0.5
    assert stats.grace_period_timeout_triggered
    assert complete.ts_ns == stats.end_ns


@pytest.mark.parametrize("number", range(len(PHASE_MESSAGES)))
def test_objects_and_json_mean_the_same(number: int) -> None:
    from_json = stats_in(PHASE_MESSAGES[number])
    as_object = SimpleNamespace(**msgspec.structs.asdict(from_json))
    assert phase_stats(as_object) == phase_stats(from_json)
    assert phase_ref(as_object) == phase_ref(from_json)


def test_every_transition_is_told_by_the_stats_alone() -> None:
    for message in PHASE_MESSAGES:
        stats = stats_in(message)
        assert stats.start_ns is not None
        if message["message_type"] == "credit_phase_sending_complete":
            assert stats.sent_end_ns is not None
        if message["message_type"] == "credit_phase_complete":
            assert stats.requests_end_ns is not None


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b'{"stats": 3}', b'{"stats": {"phase_index": "x"}}', b"\xff\xfe", b"[" * 100_000],
)
def test_what_is_not_understood_is_none(payload: bytes) -> None:
    assert decode(payload, PhaseMessage) is None
    assert decode_summary(payload) is None


def test_unknown_and_missing_fields_do_no_harm() -> None:
    message = decode(b'{"stats": {"new": [1], "requests_sent": 3}, "more": {}}', PhaseMessage)
    assert message is not None
    assert phase_stats(message.stats) == PhaseStats(sent=3, in_flight=3)
    assert phase_stats(SimpleNamespace(requests_sent=3)) == PhaseStats(sent=3, in_flight=3)
    assert phase_ref(SimpleNamespace()) == PhaseRef("profiling", "profiling", 1)


def test_counts_are_final_as_soon_as_they_are() -> None:
    stats = phase_stats(CreditStats(requests_sent=5, final_requests_sent=7, requests_completed=4))
    assert (stats.sent, stats.completed, stats.in_flight) == (7, 4, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hang", Outcome("completed", "")),
        ("allfail", Outcome("failed", "all 10 requests failed")),
        ("sigint", Outcome("cancelled", "Run cancelled before all records were processed.")),
    ],
)
def test_outcomes_of_real_runs(name: str, expected: Outcome) -> None:
    payload = json.dumps(RESULTS[name]).encode()
    message = decode(payload, ResultsMessage)
    assert message is not None
    assert outcome(message.results) == expected
    assert decode_summary(payload) == RESULTS[name]["results"]["results"]


def test_outcomes_that_are_rare() -> None:
    good = ProfileResults(records=[msgspec.Raw(b"{}")], successful_request_count=1)
    assert outcome(None).status == "failed"
    assert outcome(Results(results=ProfileResults())).status == "failed"
    stalled = msgspec.structs.replace(good, incomplete_reason="stalled")
    assert outcome(Results(results=stalled)) == Outcome("completed", "stalled")
    fatal = ErrorNote(message="disk full", details={"fatal": True})
    assert outcome(Results(results=good, errors=[fatal])) == Outcome("failed", "disk full")
    advisory = ErrorNote(message="gpu", details={"fatal": False})
    assert outcome(Results(results=good, errors=[advisory])) == Outcome("completed")


@pytest.mark.parametrize("name", RECORDS)
def test_records(name: str) -> None:
    sample = RECORDS[name]
    metadata = SimpleNamespace(**sample["metadata"])
    fields = record_fields(metadata)
    wanted = {name: sample["metadata"][name] for name in RECORD_FIELDS}
    assert {name: fields[name] for name in RECORD_FIELDS} == wanted
    kind = sample["metadata"]["benchmark_phase"]
    assert phase_ref(metadata) == PhaseRef(kind, kind, sample["metadata"]["phase_index"])
    given = sample["error"]
    error = record_error(None if given is None else SimpleNamespace(**given))
    assert error == (None if given is None else (given["type"], given["message"], given["code"]))


def test_records_of_an_aiperf_that_has_less() -> None:
    assert record_fields(SimpleNamespace(session_num=1)) == {"session_num": 1}
    assert phase_ref(SimpleNamespace(benchmark_phase="warmup")) == PhaseRef("warmup", "warmup", 0)
    assert record_error(SimpleNamespace(code="x", type=None)) == ("Error", "", None)


def test_plans() -> None:
    config = next(m["config"] for m in MESSAGES if m["message_type"] == "credit_phase_start")
    warmup = PhaseRef("warmup", "warmup", 0)
    expected = PhasePlan(phase=warmup, expected_requests=5, concurrency=4)
    assert plan_of_credit_config(msgspec.convert(config, CreditConfig)) == expected
    phases = [
        SimpleNamespace(name="warmup", kind=None, requests=5, concurrency=4),
        SimpleNamespace(name="p", kind="profiling", duration=1, concurrency=[1, 2], rate=2.5),
    ]
    run = SimpleNamespace(cfg=SimpleNamespace(phases=phases))
    assert plans_of_run(run) == (
        expected,
        PhasePlan(phase=PhaseRef("p", "profiling", 1), expected_duration_s=1.0, request_rate=2.5),
    )


def test_a_run_that_tells_little_starts_all_the_same() -> None:
    start = run_start(SimpleNamespace(benchmark_id="x"), "")
    assert (start.run_id, start.producer, start.models, start.variation) == ("x", "aiperf", (), {})
