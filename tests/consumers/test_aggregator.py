"""The aggregator consumer, its handlers called one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phase_bus.consumer.options import build_consumer
from phase_bus.errors import ConfigError, OptionError
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseProgress,
    PhaseStart,
    PhaseStats,
    Records,
    RunComplete,
    RunStart,
    Summary,
)
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus.testing import PROFILING
from phase_bus_consumers.aggregator import ResultsAggregator

T0 = 1_795_354_391_000_000_000


def records(run_id: str, latencies: list[int]) -> Records:
    builder = RecordBuilder()
    for latency in latencies:
        builder.add({"request_latency": latency}, {"was_cancelled": False, "request_end_ns": T0 + latency})
    count = len(builder)
    metrics, fields, errors, _ = builder.build()
    return Records(
        run_id=run_id, phase=PROFILING, count=count, metrics=metrics, fields=fields, errors=errors
    )


def aggregator(tmp_path: Path, **options: Any) -> tuple[ResultsAggregator, list[Summary]]:
    consumer = build_consumer(
        ResultsAggregator, "aggregator", {"output": str(tmp_path / "summary.json"), **options}
    )
    assert isinstance(consumer, ResultsAggregator)
    told: list[Summary] = []

    def publish(event: EventBase) -> None:
        assert isinstance(event, Summary)
        told.append(event)

    consumer.context.publish = publish
    return consumer, told


def written(tmp_path: Path) -> dict[str, Any]:
    runs: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())["runs"]
    return runs


async def whole_run(consumer: ResultsAggregator, run_id: str, announced: int = 4) -> None:
    await consumer.on_run_start(RunStart(run_id=run_id))
    stats = PhaseStats(start_ns=T0)
    await consumer.on_phase_start(PhaseStart(run_id=run_id, phase=PROFILING, stats=stats))
    await consumer.on_records(records(run_id, [10, 20, 30]))
    await consumer.on_records(records(run_id, [40]))
    stats = PhaseStats(start_ns=T0, end_ns=T0 + 2_000_000_000)
    await consumer.on_phase_complete(PhaseComplete(run_id=run_id, phase=PROFILING, stats=stats))
    await consumer.on_run_complete(RunComplete(run_id=run_id, status="completed", records=announced))
    await consumer.flush()


async def test_a_whole_run_ends_in_one_final_summary(tmp_path: Path) -> None:
    text = tmp_path / "reports" / "report.txt"
    consumer, told = aggregator(tmp_path, interval_s=60, text=str(text))
    await consumer.start()
    await whole_run(consumer, "a")
    await consumer.stop()
    assert [event.final for event in told] == [True]
    assert told[0].producer == "aggregator"
    summary = written(tmp_path)["a"]
    assert summary == told[0].result
    assert (summary["complete"], summary["missing_records"]) == (True, 0)
    phase = summary["phases"][0]
    assert (phase["duration_s"], phase["request_throughput"]) == (2.0, 2.0)
    assert phase["metrics"]["request_latency"]["p50"] == 25.0
    assert "Run a: completed, 4 records (final)" in text.read_text()


async def test_summaries_come_while_the_run_goes_on(tmp_path: Path) -> None:
    consumer, told = aggregator(tmp_path, interval_s=0)
    await consumer.start()
    await consumer.on_records(records("a", [10]))
    await consumer.on_phase_progress(PhaseProgress(run_id="a", phase=PROFILING))
    assert [(event.final, event.result["status"]) for event in told] == [(False, "running")] * 2
    await consumer.flush()
    assert written(tmp_path)["a"]["records"] == 1


async def test_records_that_are_missing_are_told_and_late_ones_complete_it(tmp_path: Path) -> None:
    consumer, told = aggregator(tmp_path, interval_s=60)
    await consumer.start()
    await whole_run(consumer, "a", announced=6)
    assert [event.final for event in told] == [False]
    summary = written(tmp_path)["a"]
    assert (summary["complete"], summary["missing_records"]) == (False, 2)
    await consumer.on_records(records("a", [50, 60]))
    assert [event.final for event in told] == [False, True]
    await consumer.flush()
    assert written(tmp_path)["a"]["records"] == 6


async def test_the_files_stay_small(tmp_path: Path) -> None:
    """On a bus that serves run after run, the oldest runs leave the files, which say how many did."""
    text = tmp_path / "report.txt"
    consumer, _ = aggregator(tmp_path, keep_runs=3, text=str(text))
    await consumer.start()
    await consumer.on_run_start(RunStart(run_id="going on"))
    await consumer.on_records(records("going on", [10]))
    for n in range(10):
        await whole_run(consumer, f"run {n}")
    await consumer.stop()
    document = json.loads((tmp_path / "summary.json").read_text())
    assert list(document["runs"]) == ["run 8", "run 9", "going on"]
    assert document["runs_left_out"] == 8
    assert text.read_text().startswith("8 earlier runs are left out\n")
    again, _ = aggregator(tmp_path, keep_runs=3)
    await again.start()
    await whole_run(again, "another")
    await again.stop()
    document = json.loads((tmp_path / "summary.json").read_text())
    assert (len(document["runs"]), document["runs_left_out"]) == (3, 9)


async def test_a_full_disk_counts_no_record_twice(tmp_path: Path) -> None:
    """What cannot be written fails the flush, and no handler, which would take the records once more."""
    consumer, told = aggregator(tmp_path, interval_s=0, output="/dev/full")
    await consumer.start()
    await consumer.on_records(records("a", [10, 20]))
    await consumer.on_run_complete(RunComplete(run_id="a", status="completed", records=2))
    with pytest.raises(OSError, match="No space left"):
        await consumer.flush()
    assert (told[-1].result["records"], told[-1].final) == (2, True)
    with pytest.raises(OSError, match="No space left"):
        await consumer.stop()


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_run_that_goes_on_after_its_end_ends_once_more(tmp_path: Path, restarted: bool) -> None:
    """Until another one begins, its statistics are there to go on with."""
    consumer, told = aggregator(tmp_path, interval_s=0)
    await consumer.start()
    await whole_run(consumer, "a")
    if restarted:
        state = consumer.state()
        consumer, told = aggregator(tmp_path, interval_s=0)
        await consumer.start()
        consumer.restore(state)
    await consumer.on_records(records("a", [1]))
    assert (told[-1].result["status"], told[-1].final) == ("running", False)
    await consumer.on_run_complete(RunComplete(run_id="a", status="completed", records=5))
    await consumer.flush()
    summary = written(tmp_path)["a"]
    assert (summary["status"], summary["records"], summary["complete"]) == ("completed", 5, True)


async def test_a_run_that_goes_on_when_its_statistics_are_gone_is_not_complete(tmp_path: Path) -> None:
    """What was told of it is no longer the whole truth, and says so."""
    consumer, told = aggregator(tmp_path, interval_s=60)
    await consumer.start()
    await whole_run(consumer, "a")
    await whole_run(consumer, "b")
    before, count = written(tmp_path), len(told)
    await consumer.on_run_complete(RunComplete(run_id="a", status="completed", records=4))
    assert (written(tmp_path), len(told)) == (before, count), "nothing new"
    await consumer.on_records(records("a", [1]))
    await consumer.on_run_complete(RunComplete(run_id="a", status="completed", records=5))
    await consumer.flush()
    assert written(tmp_path)["b"] == before["b"]
    summary = written(tmp_path)["a"]
    assert told[-1].result == summary
    assert (summary["records"], summary["missing_records"], summary["final"]) == (4, 1, False)
    assert summary["phases"] == before["a"]["phases"]


async def test_several_runs_at_once_and_one_after_another_are_kept_apart(tmp_path: Path) -> None:
    consumer, _ = aggregator(tmp_path)
    await consumer.start()
    await consumer.on_records(records("b", [7]))
    await whole_run(consumer, "a")
    await consumer.stop()
    assert {run: s["records"] for run, s in written(tmp_path).items()} == {"a": 4, "b": 1}
    later, _ = aggregator(tmp_path)
    await later.start()
    await whole_run(later, "c")
    assert set(written(tmp_path)) == {"a", "b", "c"}


async def test_a_run_cut_short_is_written_at_the_stop(tmp_path: Path) -> None:
    consumer, _ = aggregator(tmp_path, interval_s=60)
    await consumer.start()
    await consumer.on_records(records("a", [10, 20]))
    await consumer.flush()
    await consumer.stop()
    assert (written(tmp_path)["a"]["records"], written(tmp_path)["a"]["status"]) == (2, "running")


async def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("my notes")
    consumer, _ = aggregator(tmp_path)
    with pytest.raises(ConfigError, match=r"summary\.json.*output="):
        await consumer.start()
    assert (tmp_path / "summary.json").read_text() == "my notes"


async def test_no_files_are_written_when_none_are_wanted(tmp_path: Path) -> None:
    consumer, told = aggregator(tmp_path, output=None)
    await consumer.start()
    await whole_run(consumer, "a")
    assert told[-1].final
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("request_latency, other", ["request_latency"]), ("*", ["request_latency"]), ("other", []), ("", [])],
)
async def test_which_metrics_have_windows_is_an_option(
    tmp_path: Path, wanted: str, found: list[str]
) -> None:
    consumer, told = aggregator(tmp_path, window_metrics=wanted)
    await consumer.start()
    await whole_run(consumer, "a")
    windows = told[-1].result["overall"]["windows"]
    assert (windows["requests"], windows["width_s"], windows["start_ns"]) == ([4], 1.0, T0)
    assert list(windows["metrics"]) == found


async def test_a_run_goes_on_from_a_kept_state(tmp_path: Path) -> None:
    consumer, _ = aggregator(tmp_path, interval_s=60)
    await consumer.start()
    await consumer.on_records(records("a", [10, 20, 30]))
    later, told = aggregator(tmp_path, interval_s=60)
    await later.start()
    later.restore(consumer.state())
    await later.on_records(records("a", [40]))
    await later.on_run_complete(RunComplete(run_id="a", status="completed", records=4))
    assert told[-1].final
    assert told[-1].result["overall"]["metrics"]["request_latency"]["sum"] == 100.0


@pytest.mark.parametrize(
    ("option", "value"),
    [("interval_s", -1), ("exact_limit", -1)],
)
def test_options_out_of_range_are_refused(tmp_path: Path, option: str, value: float) -> None:
    with pytest.raises(OptionError, match=option):
        aggregator(tmp_path, **{option: value})
