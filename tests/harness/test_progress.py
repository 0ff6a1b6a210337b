"""What is shown while runs go on: odd values spoil nothing, and run after run costs no memory."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

import msgspec
from rich.console import Console

from phase_bus.events import PhaseRef, PhaseStart, Records, RunComplete, RunStart, Summary, Verdict
from phase_bus.harness.progress import KEPT_RUNS, Progress
from phase_bus.publisher.record_builder import RecordBuilder

PHASE = PhaseRef("profiling")


def progress() -> tuple[Progress, StringIO]:
    out = StringIO()
    return Progress(Console(file=out, width=200)), out


def records(*latencies: Any) -> Records:
    builder = RecordBuilder()
    for latency in latencies:
        builder.add({"request_latency": latency}, {})
    metrics, fields, errors, _ = builder.build()
    return Records(
        run_id="r", phase=PHASE, count=len(latencies), metrics=metrics, fields=fields, errors=errors
    )


async def test_odd_latencies_spoil_no_others() -> None:
    shown, out = progress()
    await shown.on_phase_start(PhaseStart(run_id="r", phase=PHASE))
    await shown.on_records(records("text", "more"))
    await shown.on_records(records(math.nan, math.inf, "text", [1, 2], None, 5e6))
    shown._shown_s = -math.inf
    await shown.on_records(records(5_000_000, 5_000_000))
    assert "latency p50 5.0 p99 5.0 ms" in out.getvalue()


async def test_only_odd_latencies_are_no_latencies() -> None:
    shown, out = progress()
    await shown.on_phase_start(PhaseStart(run_id="r", phase=PHASE))
    shown._shown_s = -math.inf
    await shown.on_records(records("text", math.nan))
    assert "2 requests" in out.getvalue()
    assert "latency" not in out.getvalue()


async def test_run_after_run_costs_no_memory() -> None:
    shown, _ = progress()
    for n in range(KEPT_RUNS + 20):
        await shown.on_run_start(RunStart(run_id=f"r{n}"))
        await shown.on_summary(Summary(run_id=f"r{n}", producer="a", result={"phases": []}))
        await shown.on_run_complete(RunComplete(run_id=f"r{n}", status="completed"))
    assert len(shown.ended) == len(shown.results) == KEPT_RUNS
    assert shown.left_out == 20
    assert next(iter(shown.ended)) == "r20"


async def test_a_change_of_a_threshold_is_a_line() -> None:
    """The same state told again is none: a consumer that was started anew, or the final verdict."""
    shown, out = progress()
    told = Verdict(run_id="r", producer="thresholds", threshold="a < 1 ms", state="passed", samples=3)
    failed = msgspec.structs.replace(told, state="failed", value=2e6, limit=1e6, unit="ns")
    for event in (told, told, failed, msgspec.structs.replace(failed, final=True), told):
        await shown.on_verdict(event)
    assert out.getvalue().splitlines() == [
        "phase-bus | 'a < 1 ms' passed: nothing measured, 3 samples",
        "phase-bus | 'a < 1 ms' failed: 2.00 ms measured, limit 1 ms, 3 samples",
        "phase-bus | 'a < 1 ms' passed: nothing measured, 3 samples",
    ]


def test_a_process_is_named_once() -> None:
    """Its line begins with its name; others that it names stay."""
    shown, out = progress()
    shown.say("bus", "17:36:58 [\x1b[33mwarning  \x1b[0m] phase-bus bus: consumer 'a' has left")
    shown.say(
        "dashboard",
        "17:36:58 [info     ] http://127.0.0.1:9470/ shows the runs \x1b[36mconsumer\x1b[0m=dashboard n=1",
    )
    shown.say("a", "[info     ] said consumer=ab")
    assert out.getvalue().splitlines() == [
        "bus | 17:36:58 [warning  ] consumer 'a' has left",
        "dashboard | 17:36:58 [info     ] http://127.0.0.1:9470/ shows the runs n=1",
        "a | [info     ] said consumer=ab",
    ]
