"""The ``logging`` consumer and ExampleLoggingHook."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from phase_bus.consumer.consumer import handlers_of
from phase_bus.consumer.options import build_consumer
from phase_bus.errors import ConfigError
from phase_bus.events import (
    Drop,
    PhaseComplete,
    PhaseProgress,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    RunComplete,
    RunStart,
    TopicReceipt,
)
from phase_bus.publisher.hooks import PhaseLifecycleHook
from phase_bus.testing import PROFILING, run_consumer
from phase_bus_consumers import ExampleLoggingHook
from phase_bus_consumers.logging import PhaseLogger, clock

T0_NS = 1_769_860_810_250_000_000
STATS = PhaseStats(
    sent=100,
    completed=97,
    cancelled=3,
    errors=2,
    sent_sessions=10,
    completed_sessions=9,
    cancelled_sessions=1,
    start_ns=T0_NS,
    sent_end_ns=T0_NS + 8_000_000_000,
    end_ns=T0_NS + 9_810_000_000,
    expected_requests=100,
)
RUN = [
    RunStart(run_id="r1", ts_ns=T0_NS, producer="aiperf 0.13.0", models=("m",)),
    PhaseStart(
        run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=PhaseStats(start_ns=T0_NS, expected_requests=100)
    ),
    PhaseProgress(
        run_id="r1",
        ts_ns=T0_NS,
        phase=PROFILING,
        stats=PhaseStats(sent=60, completed=50, in_flight=10, expected_requests=100),
    ),
    PhaseSendingComplete(run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=STATS),
    PhaseTimeout(run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=STATS, requests_cut=3),
    PhaseComplete(run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=STATS),
    Drop(run_id="r1", ts_ns=T0_NS, source="aiperf", reason="buffer full", events={"records.00.r1$": 2}),
    RunComplete(run_id="r1", ts_ns=T0_NS, status="failed", reason="first\nsecond", records=97),
    Receipt(
        run_id="r1",
        ts_ns=T0_NS,
        consumer="metrics",
        topics={"phase_start.r1$": TopicReceipt(published=2, received=2, handled=2, written=2)},
    ),
]


async def test_writes_the_lines_of_the_guide(tmp_path: Path) -> None:
    """Each event is one line: time, kind, phase, and the numbers that matter."""
    path = tmp_path / "new" / "phases.log"
    await run_consumer(PhaseLogger, *RUN, log_file=path)
    at = f"[{clock(T0_NS)}] "
    assert path.read_text().splitlines() == [
        at + "RUN_START: r1 | Producer: aiperf 0.13.0, Models: m",
        at + "PHASE_START: PROFILING | Expected: 100 requests",
        at + "PHASE_SENDING_COMPLETE: PROFILING | Sent: 100, Sending: 8.00s",
        at + "PHASE_TIMEOUT: PROFILING | Completed: 97, Cut: 3",
        at + "PHASE_COMPLETE: PROFILING | Completed: 97, Cancelled: 3, Duration: 9.81s",
        at + "DROP: aiperf | Events: 2, Records: 0, Reason: buffer full",
        at + "RUN_COMPLETE: r1 | Status: failed, Reason: first second, Records: 97",
    ]


async def test_verbose_adds_details_progress_and_receipts(tmp_path: Path) -> None:
    """With ``verbose`` lines carry all counts and the run, and there are more of them."""
    path = tmp_path / "phases.log"
    await run_consumer(PhaseLogger, *RUN, log_file=path, verbose=True)
    lines = {line.split("] ")[1].split(":")[0]: line for line in path.read_text().splitlines()}
    assert len(lines) == len(RUN)
    assert "Progress: 50%, Completed: 50, In flight: 10" in lines["PHASE_PROGRESS"]
    receipt = "RECEIPT: metrics | Complete: yes, Handled: 2, Failed: 0, Missed: 0, Run: r1"
    assert receipt in path.read_text()
    assert "Errors: 2" in lines["PHASE_COMPLETE"]
    assert "Sessions: 10/9/1" in lines["PHASE_COMPLETE"]
    assert "Run: r1" in lines["PHASE_COMPLETE"]


async def test_json_lines_hold_all_stats(tmp_path: Path) -> None:
    """With ``json`` each event is an object with everything it holds."""
    path = tmp_path / "phases.jsonl"
    await run_consumer(PhaseLogger, *RUN, log_file=path, json=True)
    objects = [json.loads(line) for line in path.read_text().splitlines()]
    complete = next(o for o in objects if o["event"] == "phase_complete")
    assert complete["run_id"] == "r1"
    assert complete["phase"] == {"name": "profiling", "kind": "profiling", "index": 1}
    assert complete["stats"]["completed"] == 97
    assert set(complete["stats"]) == set(PhaseStats.__struct_fields__)
    assert complete["timestamp"] == clock(T0_NS)
    assert "phase_progress" not in [o["event"] for o in objects]


async def test_lines_can_be_followed_and_are_added(tmp_path: Path) -> None:
    """A line is in the file when its handler returns, behind what was there before."""
    path = tmp_path / "phases.log"
    path.write_text("before\n")
    consumer = PhaseLogger(log_file=path)
    await consumer.start()
    await handlers_of(consumer)["phase_complete"](RUN[5])
    before, line = path.read_text().splitlines()
    assert before == "before"
    assert "PHASE_COMPLETE" in line
    await consumer.stop()


async def test_without_a_file_lines_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the default, and is left open at the end."""
    await run_consumer(PhaseLogger, *RUN)
    print("still open")
    out = capsys.readouterr().out
    assert "PHASE_COMPLETE: PROFILING" in out
    assert out.endswith("still open\n")


async def test_a_file_that_cannot_be_written_is_told_at_start(tmp_path: Path) -> None:
    """One line names the option and the file."""
    consumer = PhaseLogger(log_file=tmp_path)
    with pytest.raises(ConfigError, match=r"log_file.*cannot be written"):
        await consumer.start()
    await consumer.stop()


def test_options_come_as_text() -> None:
    """The options can be given on the command line."""
    values = {"log_file": "x.log", "verbose": "true", "json": "false"}
    consumer = build_consumer(PhaseLogger, "logging", values)
    assert isinstance(consumer, PhaseLogger)
    assert (consumer.log_file, consumer.verbose, consumer.json) == (Path("x.log"), True, False)
    assert "records" not in handlers_of(consumer)


async def test_hook_takes_a_mock_tracker(tmp_path: Path) -> None:
    """The hook writes what a tracker reports, and copes with one that reports little."""
    path = tmp_path / "deep" / "test.log"
    hook = ExampleLoggingHook(log_file=str(path), verbose=True)
    assert isinstance(hook, PhaseLifecycleHook)
    tracker = MagicMock()
    tracker.create_stats.return_value = MagicMock(sent=100)
    await hook.on_phase_start("warmup", tracker)
    await hook.on_phase_sending_complete("warmup", tracker)
    await hook.on_phase_timeout("warmup", tracker)
    await hook.on_phase_complete("warmup", tracker)
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    assert all("WARMUP" in line and "Sent: 100" in line for line in lines)


async def test_hook_writes_the_consumers_line(tmp_path: Path) -> None:
    """Hook and consumer write the same line for the same counts."""
    path = tmp_path / "test.log"
    tracker = MagicMock()
    tracker.create_stats.return_value = STATS
    await ExampleLoggingHook(log_file=path).on_phase_complete(PROFILING, tracker)
    line = path.read_text()
    assert line.endswith("] PHASE_COMPLETE: PROFILING | Completed: 97, Cancelled: 3, Duration: 9.81s\n")


async def test_hook_survives_a_file_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook must not disturb the load generator: the error is logged."""
    with caplog.at_level(logging.ERROR):
        await ExampleLoggingHook(log_file=tmp_path).on_phase_start(PROFILING, MagicMock())
    assert "cannot be written" in caplog.text
