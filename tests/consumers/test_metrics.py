"""The ``metrics`` consumer and ExampleMetricsCollectorHook."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from phase_bus.consumer.consumer import handlers_of
from phase_bus.consumer.options import build_consumer
from phase_bus.errors import ConfigError
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseProgress,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    RunComplete,
    RunStart,
)
from phase_bus.publisher.hooks import PhaseLifecycleHook
from phase_bus_consumers import ExampleMetricsCollectorHook
from phase_bus_consumers.metrics import PhaseMetrics

WARMUP = PhaseRef("warmup", "warmup", 0)
PROFILING = PhaseRef("profiling", "profiling", 1)
SENT_ALL = PhaseStats(sent=10, completed=4, in_flight=6, start_ns=0, sent_end_ns=2_000_000_000)
DONE = PhaseStats(
    sent=10, completed=9, cancelled=1, errors=2, start_ns=0, sent_end_ns=2 * 10**9, end_ns=3 * 10**9
)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "metrics.json"


def read(path: Path) -> Any:
    """Return what a reader of the file sees."""
    return json.loads(path.read_text())


async def give(consumer: PhaseMetrics, *events: EventBase) -> None:
    """Let a consumer handle events, as its process would."""
    for event in events:
        await handlers_of(consumer)[event.kind](event)
    await consumer.flush()


async def test_a_run_from_start_to_end(output: Path) -> None:
    """The file has events, counts and durations per phase, and how the run ended."""
    consumer = PhaseMetrics(output)
    await consumer.start()
    await give(
        consumer,
        RunStart(run_id="r1", ts_ns=1, producer="aiperf", models=("m",)),
        PhaseStart(run_id="r1", ts_ns=2, phase=WARMUP, stats=PhaseStats(start_ns=0)),
        PhaseComplete(run_id="r1", ts_ns=3, phase=WARMUP, stats=DONE),
        PhaseStart(run_id="r1", ts_ns=4, phase=PROFILING, stats=PhaseStats(start_ns=0)),
        PhaseSendingComplete(run_id="r1", ts_ns=5, phase=PROFILING, stats=SENT_ALL),
        PhaseTimeout(run_id="r1", ts_ns=6, phase=PROFILING, stats=DONE, requests_cut=1),
        PhaseComplete(run_id="r1", ts_ns=7, phase=PROFILING, stats=DONE),
        RunComplete(run_id="r1", ts_ns=8, status="completed", records=9),
    )
    await consumer.flush()
    run = read(output)["runs"]["r1"]
    assert (run["status"], run["producer"], run["records"]) == ("completed", "aiperf", 9)
    assert list(run["phases"]) == ["warmup", "profiling"]
    phase = run["phases"]["profiling"]
    assert [(e["kind"], e["ts_ns"]) for e in phase["events"]] == [
        ("phase_start", 4),
        ("phase_sending_complete", 5),
        ("phase_timeout", 6),
        ("phase_complete", 7),
    ]
    assert (phase["state"], phase["timed_out"], phase["requests_cut"]) == ("complete", True, 1)
    assert (phase["sending_duration_s"], phase["duration_s"]) == (2.0, 3.0)
    assert phase["counts"]["completed"] == 9
    assert phase["counts"]["errors"] == 2
    assert run["phases"]["warmup"]["timed_out"] is False


async def test_readable_while_the_run_goes_on(output: Path) -> None:
    """After each flush the file is up to date and whole, with nothing left beside it."""
    consumer = PhaseMetrics(output)
    await consumer.start()
    assert read(output) == {"runs": {}, "runs_left_out": 0}
    await give(consumer, PhaseStart(run_id="r1", phase=PROFILING, stats=PhaseStats(start_ns=0)))
    assert read(output)["runs"]["r1"]["phases"]["profiling"]["state"] == "sending"
    progress = PhaseStats(sent=5, completed=3, start_ns=0)
    await give(consumer, PhaseProgress(run_id="r1", phase=PROFILING, stats=progress))
    phase = read(output)["runs"]["r1"]["phases"]["profiling"]
    assert phase["counts"]["completed"] == 3
    assert phase["duration_s"] is None
    assert len(phase["events"]) == 1
    await give(consumer, PhaseSendingComplete(run_id="r1", phase=PROFILING, stats=SENT_ALL))
    phase = read(output)["runs"]["r1"]["phases"]["profiling"]
    assert (phase["state"], phase["sending_duration_s"]) == ("waiting", 2.0)
    assert sorted(path.name for path in output.parent.iterdir()) == [f".{output.name}.lock", output.name]


async def test_an_open_reader_keeps_a_whole_file(output: Path) -> None:
    """A reader that opened the file before an update still reads all of the old content."""
    consumer = PhaseMetrics(output)
    await consumer.start()
    with output.open() as file:
        await give(consumer, RunStart(run_id="r1"))
        assert json.load(file) == {"runs": {}, "runs_left_out": 0}


async def test_runs_are_kept_apart(output: Path) -> None:
    """Two runs at once, with phases of the same name, do not mix."""
    consumer = PhaseMetrics(output)
    await consumer.start()
    await give(
        consumer,
        PhaseStart(run_id="a", phase=PROFILING, stats=PhaseStats(sent=1)),
        PhaseStart(run_id="b", phase=PROFILING, stats=PhaseStats(sent=2)),
        PhaseComplete(run_id="a", phase=PROFILING, stats=DONE),
        RunComplete(run_id="a", status="cancelled", reason="SIGINT"),
    )
    runs = read(output)["runs"]
    assert runs["a"]["phases"]["profiling"]["state"] == "complete"
    assert (runs["a"]["status"], runs["a"]["reason"]) == ("cancelled", "SIGINT")
    assert runs["b"]["phases"]["profiling"]["counts"]["sent"] == 2
    assert runs["b"]["status"] == "running"


async def test_the_file_stays_small(output: Path) -> None:
    """On a bus that serves run after run, the oldest runs leave the file, and it says how many did."""
    consumer = PhaseMetrics(output, keep_runs=2)
    await consumer.start()
    await give(consumer, *(RunStart(run_id=run_id) for run_id in "abac"))
    assert list(read(output)["runs"]) == ["a", "c"]
    assert read(output)["runs_left_out"] == 1
    consumer = PhaseMetrics(output, keep_runs=2)
    await consumer.start()
    await give(consumer, RunStart(run_id="d"))
    assert (list(read(output)["runs"]), read(output)["runs_left_out"]) == (["c", "d"], 2)


async def test_a_publisher_that_repeats_itself_does_not_make_it_grow(output: Path) -> None:
    """Of too many events of a phase, and phases of a run, the number is kept."""
    consumer = PhaseMetrics(output)
    await consumer.start()
    await give(consumer, *(PhaseStart(run_id="r1", phase=PROFILING) for _ in range(1_000)))
    await give(consumer, *(PhaseStart(run_id="r1", phase=PhaseRef(f"p{n}")) for n in range(1_000)))
    run = read(output)["runs"]["r1"]
    phase = run["phases"]["profiling"]
    assert len(phase["events"]) + phase["events_left_out"] == 1_000
    assert len(run["phases"]) - 1 + run["phase_events_left_out"] == 1_000
    assert len(output.read_bytes()) < 200_000


async def test_a_file_that_cannot_be_written_is_told_at_start(tmp_path: Path) -> None:
    """One line names the option and the file."""
    with pytest.raises(ConfigError, match=r"output.*cannot be written"):
        await PhaseMetrics(tmp_path).start()


async def test_a_consumer_that_was_restarted_goes_on(output: Path) -> None:
    """What an earlier process wrote stays, and a run that it was in goes on."""
    for event in (
        PhaseStart(run_id="a", phase=PROFILING, stats=PhaseStats(sent=1)),
        PhaseComplete(run_id="a", phase=PROFILING, stats=DONE),
    ):
        consumer = PhaseMetrics(output)
        await consumer.start()
        await give(consumer, event)
    phase = read(output)["runs"]["a"]["phases"]["profiling"]
    assert [moment["kind"] for moment in phase["events"]] == ["phase_start", "phase_complete"]


@pytest.mark.parametrize("content", ['{"other": 1}', "notes", '{"runs": [1]}', "\xff"])
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    """A wrong file name does not cost anybody a file."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="give another file"):
        await PhaseMetrics(path).start()
    assert path.read_bytes() == content.encode("latin-1")


async def test_what_could_not_be_written_is_written_later(output: Path) -> None:
    """A write that fails raises, so that it is counted; the event is in the next write."""
    consumer = PhaseMetrics(output)
    await consumer.start()
    shutil.rmtree(output.parent)
    with pytest.raises(OSError, match="No such file"):
        await give(consumer, RunStart(run_id="r1"))
    output.parent.mkdir()
    await consumer.flush()
    assert "r1" in read(output)["runs"]


def test_options_come_as_text() -> None:
    """The options can be given on the command line."""
    consumer = build_consumer(PhaseMetrics, "metrics", {"output": "~/m.json"})
    assert isinstance(consumer, PhaseMetrics)
    assert consumer.output == Path("~/m.json").expanduser()
    assert "records" not in handlers_of(consumer)


async def test_hook_collects_what_a_tracker_tells(output: Path) -> None:
    """The hook writes the phases of the run it is in."""
    hook = ExampleMetricsCollectorHook(output_file=str(output))
    assert isinstance(hook, PhaseLifecycleHook)
    tracker = MagicMock()
    tracker.create_stats.return_value = MagicMock(sent=100, completed=95, in_flight=5)
    await hook.on_phase_start("warmup", tracker)
    await hook.on_phase_timeout("warmup", tracker)
    tracker.create_stats.return_value = DONE
    await hook.on_phase_complete("profiling", tracker)
    phases = read(output)["phases"]
    assert phases["warmup"]["counts"]["sent"] == 100
    assert (phases["warmup"]["kind"], phases["warmup"]["requests_cut"]) == ("warmup", 5)
    assert phases["profiling"]["duration_s"] == 3.0


async def test_hook_survives_a_file_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook must not disturb the load generator: the error is logged, and nothing is left behind."""
    with caplog.at_level(logging.ERROR):
        await ExampleMetricsCollectorHook(output_file=tmp_path).on_phase_start("x", MagicMock())
    assert "cannot be written" in caplog.text
    assert list(tmp_path.iterdir()) == []
