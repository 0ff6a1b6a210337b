"""The summary document and its text."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from phase_bus.aggregation.log_bins import WINDOW_ERROR
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.state import RunState, Span
from phase_bus.aggregation.summary import PERCENTILES, summarize
from phase_bus.aggregation.text import render_text
from phase_bus.aggregation.units import METRICS, describe
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef, Records, RunComplete, Table
from phase_bus.publisher.record_builder import RecordBuilder

WARMUP, PROFILING = PhaseRef("warmup", "warmup", 0), PhaseRef("profiling", "profiling", 1)
T0 = 1_795_354_391_000_000_000


def run_of(phases: dict[PhaseRef, list[Any]], options: Options = Options()) -> RunState:  # noqa: B008 - frozen
    """A run with requests of these latencies in ns; None is one that failed."""
    run = RunState("run-1", options)
    for phase, latencies in phases.items():
        builder = RecordBuilder()
        for number, latency in enumerate(latencies):
            fields = {
                "request_start_ns": T0 + number,
                "request_end_ns": None if math.isnan(latency or 0) else T0 + number + (latency or 0),
                "was_cancelled": False,
            }
            if latency is None:
                builder.add({"error_isl": 32}, fields, ("TimeoutError", "too late", None))
                continue
            metrics = {
                "request_latency": latency,
                "input_sequence_length": 32,
                "output_sequence_length": 10,
                "min_request_timestamp": T0 + number,
                "max_response_timestamp": T0 + number + latency,
            }
            builder.add(metrics, fields)
        tables, fields_tables, errors, _ = builder.build()
        run.update(
            RecordBatch(
                Records(
                    run_id="run-1",
                    phase=phase,
                    count=len(latencies),
                    metrics=tables,
                    fields=fields_tables,
                    errors=errors,
                )
            )
        )
    return run


def test_the_numbers_of_a_phase() -> None:
    latencies = [int(v) for v in np.random.default_rng(3).lognormal(17, 1, 90)]
    run = run_of({PROFILING: [*latencies, *[None] * 10]})
    run.spans[PROFILING] = Span(T0, T0 + 2_000_000_000)
    phase = summarize(run, final=True)["phases"][0]
    assert (phase["name"], phase["kind"], phase["index"]) == ("profiling", "profiling", 1)
    assert (phase["requests"], phase["successful"], phase["failed"]) == (100, 90, 10)
    assert (phase["success_rate"], phase["error_rate"]) == (0.9, 0.1)
    assert phase["errors"] == [{"type": "TimeoutError", "code": None, "count": 10}]
    assert (phase["duration_s"], phase["duration_from"]) == (2.0, "phase")
    assert phase["request_throughput"] == 45.0
    assert phase["output_token_throughput"] == 450.0
    assert phase["total_token_throughput"] == 90 * 42 / 2.0
    metric = phase["metrics"]["request_latency"]
    values = np.array(latencies)
    assert metric["unit"] == "ns"
    assert metric["exact"]
    assert metric["count"] == 90
    assert metric["sum"] == values.sum()
    assert metric["mean"] == pytest.approx(values.mean(), rel=1e-14)
    assert metric["std"] == pytest.approx(values.std(), rel=1e-12)
    assert (metric["min"], metric["max"]) == (values.min(), values.max())
    for p in PERCENTILES:
        assert metric[f"p{p}"] == pytest.approx(np.percentile(values, p), rel=1e-12)


def test_without_the_phases_times_the_records_tell_the_duration() -> None:
    phase = summarize(run_of({PROFILING: [999_999_999, 500_000_000, None]}))["phases"][0]
    assert phase["duration_from"] == "records"
    assert phase["duration_s"] == phase["benchmark_duration_s"] == 0.999999999
    assert phase["request_throughput"] == 2 / 0.999999999


def test_overall_is_over_all_phases() -> None:
    run = run_of({WARMUP: [100, None], PROFILING: [300, 500]})
    run.spans[WARMUP] = Span(T0, T0 + 10**9)
    run.spans[PROFILING] = Span(T0 + 3 * 10**9, T0 + 4 * 10**9)
    summary = summarize(run)
    overall = summary["overall"]
    assert [p["name"] for p in summary["phases"]] == ["warmup", "profiling"]
    assert (overall["requests"], overall["failed"], overall["duration_s"]) == (4, 1, 4.0)
    assert overall["metrics"]["request_latency"]["mean"] == 300.0


def test_windows_are_of_each_phase_and_of_all() -> None:
    summary = summarize(run_of({WARMUP: [5 * 10**8, None], PROFILING: [10**9, 3 * 10**9, 3 * 10**9]}))
    warmup, profiling = (phase["windows"] for phase in summary["phases"])
    assert (warmup["start_ns"], warmup["requests"], warmup["failed"]) == (T0, [2], [1])
    assert profiling["start_ns"] == T0 + 10**9
    assert profiling["requests"] == [1, 0, 2]
    latency = profiling["metrics"]["request_latency"]
    assert latency["unit"] == "ns"
    near = {second: pytest.approx(second * 1e9, rel=WINDOW_ERROR + 1e-9) for second in (1, 3)}
    assert latency["p99"] == [near[1], None, near[3]]
    overall = summary["overall"]["windows"]
    assert (overall["requests"], overall["throughput"]) == ([2, 1, 0, 2], [1.0, 1.0, 0.0, 2.0])
    recent = summarize(run_of({PROFILING: [10**9, 3 * 10**9]}), recent_windows=2)
    assert recent["phases"][0]["windows"]["requests"] == recent["overall"]["windows"]["requests"] == [0, 1]


def test_without_the_requests_end_there_are_no_windows() -> None:
    builder = RecordBuilder()
    builder.add({"request_latency": 5}, {})
    tables = builder.build()[0]
    run = RunState("run-1")
    run.update(RecordBatch(Records(run_id="run-1", phase=PROFILING, count=1, metrics=tables)))
    summary = summarize(run)
    assert (summary["phases"][0]["windows"], summary["overall"]["windows"]) == (None, None)


def test_missing_records_are_told() -> None:
    end = RunComplete(run_id="run-1", status="completed", records=5, dropped={"records.00.run-1$": 1})
    summary = summarize(run_of({PROFILING: [100, 200]}), end=end)
    assert (summary["final"], summary["complete"], summary["status"]) == (False, False, "completed")
    assert (summary["records"], summary["expected_records"], summary["missing_records"]) == (2, 5, 3)
    text = render_text(summary)
    assert "INCOMPLETE: 3 of 5" in text
    assert "drop 1 events" in text


def test_a_run_without_records_has_a_summary() -> None:
    run = RunState("run-1")
    run.span(PROFILING)
    summary = summarize(run)
    assert summary["phases"][0]["success_rate"] is None
    assert summary["phases"][0]["request_throughput"] is None
    assert "Requests: 0" in render_text(summary)
    assert "0 records" in render_text(summarize(RunState("run-1")))


def test_only_strange_values_leave_a_metric_without_statistics() -> None:
    summary = summarize(run_of({PROFILING: [math.nan]}))
    metric = summary["phases"][0]["metrics"]["request_latency"]
    assert (metric["count"], metric["set_aside"], metric["mean"], metric["p99"]) == (0, 1, None, None)
    assert "Request Latency (ms)" in render_text(summary)


def test_it_survives_json_and_msgpack() -> None:
    summary = summarize(run_of({PROFILING: [100, 200, None]}), final=True)
    assert msgspec.json.decode(msgspec.json.encode(summary)) == summary
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(summary)) == summary


def test_the_text_is_at_most_100_columns_and_in_ms() -> None:
    run = run_of({WARMUP: [10**6] * 30, PROFILING: [123_456_789, 10**15, None]}, Options(exact_limit=5))
    text = render_text(summarize(run, final=True))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in text
    assert lines[0] == "Run run-1: running, 33 records (final)"
    assert "Request Latency (ms)" in text
    assert "123.46" in text
    assert "1.00e+09" in text
    assert "== all phases ==" in text
    assert "~1.00" in text
    assert "percentiles within 0.27%" in text
    # A summary of an older phase-bus, from a file or a journal, says what it had.
    assert "percentiles within 0.50%" in render_text({**summarize(run), "relative_error": 0.005})
    assert "1 x TimeoutError" in text


def test_marks_in_names_are_no_markup() -> None:
    run = RunState("run-1")
    run.update(
        RecordBatch(
            Records(
                run_id="run-1",
                phase=PhaseRef("a [bold]phase", index=0),
                count=1,
                metrics=_one_value("my[red]metric"),
            )
        )
    )
    text = render_text(summarize(run))
    assert "a [bold]phase" in text
    assert "my[red]metric" in text


def _one_value(name: str) -> tuple[Table, ...]:
    builder = RecordBuilder()
    builder.add({name: 1}, {})
    return builder.build()[0]


def test_units_and_titles() -> None:
    assert describe("request_latency").unit == "ns"
    assert describe("inter_chunk_latency.mean").unit == "ns"
    assert describe("inter_chunk_latency.count").unit == "count"
    assert describe("inter_chunk_latency.mean").title == "Inter Chunk Latency, mean"
    assert (describe("mine").title, describe("mine").unit) == ("mine", "")
    assert len(METRICS) > 60
