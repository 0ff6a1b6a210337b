"""What comes from data is bounded, and one odd value spoils nothing else: the truth is computed apart."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.aggregation import state as state_module
from phase_bus.aggregation.extremes import Extremes
from phase_bus.aggregation.limits import (
    LARGEST,
    LISTED_ERRORS,
    LISTED_METRICS,
    LONGEST_NAME,
    MAX_ERROR_TYPES,
    MAX_METRICS,
    MAX_PHASES,
)
from phase_bus.aggregation.state import OTHER_PHASES, RunState
from phase_bus.aggregation.summary import RunResult, summarize
from phase_bus.aggregation.text import render_text
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseComplete, PhaseRef, PhaseStats, Records, RunComplete, RunStart
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus.reporting.csv_table import run_csv, sweep_csv
from phase_bus.reporting.html import run_html, sweep_html
from phase_bus.reporting.source import PastRun
from phase_bus.reporting.sweep import Sweep
from phase_bus.reporting.sweep_text import sweep_text

T0_NS = 1_795_354_391 * 10**9
SECOND = 10**9
Row = tuple[dict[str, Any], dict[str, Any], tuple[str, str, int | None] | None]

repeatable = settings(derandomize=True, deadline=None, max_examples=40, database=None)


def batch_of(rows: list[Row], phase: str = "p", partition: int = 0) -> RecordBatch:
    builder = RecordBuilder("summary")
    for row in rows:
        builder.add(*row)
    metrics, fields, errors, _ = builder.build()
    return RecordBatch(
        Records(
            run_id="r",
            phase=PhaseRef(phase),
            partition=partition,
            count=len(rows),
            metrics=metrics,
            fields=fields,
            errors=errors,
        )
    )


def run_of(*batches: RecordBatch) -> RunState:
    run = RunState("r")
    for batch in batches:
        run.update(batch)
    return run


def ended(n: float, **metrics: Any) -> Row:
    """Return a request that ended n seconds after the beginning."""
    end_ns = T0_NS + round(n * SECOND)
    times = {"request_start_ns": end_ns - SECOND, "request_end_ns": end_ns}
    return {"request_latency": SECOND, **metrics}, times, None


def failed(kind: str, code: int | None = None) -> Row:
    return {}, {}, (kind, "", code)


def encoded(run: RunState) -> bytes:
    return msgspec.msgpack.encode(run.to_dict())


def test_many_types_of_errors_are_counted_and_the_most_frequent_listed() -> None:
    kinds = ["TimeoutError"] * 500 + [f"odd {n}" for n in range(5_000)] + ["TimeoutError"] * 500
    run = run_of(*(batch_of([failed(kind) for kind in kinds[n::16]], partition=n) for n in range(16)))
    document = summarize(run)
    (phase,) = document["phases"]
    assert phase["failed"] == document["overall"]["failed"] == 6_000
    assert phase["errors"][0] == {"type": "TimeoutError", "code": None, "count": 1_000}
    assert len(phase["errors"]) == LISTED_ERRORS
    assert sum(error["count"] for error in phase["errors"]) + phase["other_errors"] == 6_000
    text = render_text(document)
    assert "1,000 x TimeoutError" in text
    assert "4,991 x other types" in text
    assert len(text.splitlines()) < 40
    assert len(encoded(run)) < 16 * MAX_ERROR_TYPES * 40


def test_a_long_type_of_error_is_cut_and_few_types_are_all_listed() -> None:
    run = run_of(batch_of([failed("x" * 10_000), failed("y", 500), failed("y", 500)]))
    (phase,) = summarize(run)["phases"]
    assert [(e["type"], e["code"], e["count"]) for e in phase["errors"]] == [
        ("y", 500, 2),
        ("x" * LONGEST_NAME, None, 1),
    ]
    assert phase["other_errors"] == 0


def test_many_metrics_are_left_out_and_counted() -> None:
    rows: list[Row] = [ended(n / 1000, **{f"mine{n}": 1.0, "common": 2.0}) for n in range(1_200)]
    run = run_of(batch_of(rows))
    document = summarize(run)
    (phase,) = document["phases"]
    assert len(phase["metrics"]) == LISTED_METRICS
    assert (phase["metrics"]["common"]["count"], phase["metrics"]["common"]["sum"]) == (1_200, 2_400.0)
    kept = sum(metric["count"] for metric in phase["metrics"].values())
    assert kept + phase["other_values"] == 3 * 1_200
    assert sum(len(state.metrics) for state in run.parts[0].values()) == MAX_METRICS
    text = render_text(document)
    assert f"{phase['other_values']:,} values of other metrics are left out" in text
    assert len(text.splitlines()) < 200
    assert len(render_text(document, brief=True).splitlines()) < 20


def test_a_metric_with_an_endless_name_is_left_out() -> None:
    (phase,) = summarize(run_of(batch_of([ended(0, **{"x" * 100_000: 1.0})])))["phases"]
    assert (list(phase["metrics"]), phase["other_values"]) == (["request_latency"], 1)


def test_many_phases_are_counted_together() -> None:
    batches = [batch_of([ended(n / 10)], f"p{n}", n % 4) for n in range(1_000)]
    run = run_of(*batches, *(batch_of([ended(0)] * 50, "main", n) for n in range(4)))
    document = summarize(run)
    assert len(document["phases"]) == MAX_PHASES + 1
    assert sum(phase["requests"] for phase in document["phases"]) == 1_200
    assert document["phases"][-1]["name"] == OTHER_PHASES.name
    assert document["overall"]["requests"] == 1_200
    assert document["overall"]["metrics"]["request_latency"]["count"] == 1_200
    assert "more phases" in render_text(document)


def test_ends_of_many_phases_are_bounded_too() -> None:
    result = RunResult(RunState("r"))
    for n in range(1_000):
        result.take(
            PhaseComplete(run_id="r", phase=PhaseRef(f"p{n}"), stats=PhaseStats(start_ns=1, end_ns=2))
        )
    assert len(result.summary()["phases"]) == MAX_PHASES


odd_rows = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()).map(
        lambda n: (
            failed(f"e{n[0]}", n[1] % 2) if n[2] else ended(n[0] / 7, **{f"m{n[0]}": n[1], f"k{n[1]}": 1})
        )
    ),
    max_size=40,
)


@repeatable
@given(odd_rows, st.lists(st.integers(0, 40), max_size=5))
def test_what_is_kept_does_not_depend_on_how_records_were_cut(rows: list[Row], cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "MAX_METRICS", 4)
        patch.setattr(state_module, "MAX_ERROR_TYPES", 2)
        parts = [rows[a:b] for a, b in pairwise([0, *sorted(cuts), len(rows)])]
        cut, whole = run_of(*map(batch_of, parts)), run_of(batch_of(rows))
        assert encoded(cut) == encoded(whole) or not rows
    state = whole.phases()[0]
    truth = Counter(name for metrics, _, _ in rows for name in metrics)
    assert state.failed == sum(error is not None for _, _, error in rows)
    assert all(metric.count == truth[name] for name, metric in state.metrics.items())
    assert sum(m.count for m in state.metrics.values()) + state.other_values == truth.total()


# ---- odd values ----


def test_values_that_cannot_be_summed_are_set_aside() -> None:
    odd = [1.7e308, -1.7e308, math.inf, math.nan, 2 * LARGEST]
    rows = [ended(n / 10, mine=value) for n, value in enumerate([1.0, *odd, 3.0])]
    document = summarize(run_of(batch_of(rows)))
    (phase,) = document["phases"]
    mine = phase["metrics"]["mine"]
    assert "5 values are set aside, as NaN, infinite or beyond 1e250: mine" in render_text(document)
    assert (mine["count"], mine["set_aside"], mine["sum"], mine["max"]) == (2, 5, 4.0, 3.0)
    assert phase["metrics"]["request_latency"]["count"] == 7


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("away_s", [3_600, 86_400, -86_400, 10**9, (2**63 - 1 - T0_NS) / SECOND])
def test_a_time_far_from_all_others_is_set_aside(away_s: float, partitions: int) -> None:
    rows = [ended(n / 100) for n in range(300)]
    rows.insert(150, ended(min(away_s, (2**63 - 1025 - T0_NS) / SECOND)))
    batches = [batch_of(rows[n::partitions], partition=n) for n in range(partitions)]
    for batch in batches, batches[::-1]:
        document = summarize(run_of(*batch))
        for part in (*document["phases"], document["overall"]):
            assert part["windows"]["width_s"] == 1.0
            assert part["windows"]["requests"] == [100, 100, 100]
            assert part["windows"]["unplaced"] == 1
            assert part["requests"] == 301
            assert part["last_request_ns"] == T0_NS + 299 * SECOND // 100
            assert part["first_request_ns"] == T0_NS - SECOND


def test_one_wrong_clock_does_not_change_the_throughput() -> None:
    """Without the phase's events its duration is that of its requests."""

    def request(n: float, start_ns: int = 0) -> Row:
        end_ns = T0_NS + round(n * SECOND)
        times = {"min_request_timestamp": start_ns or end_ns - SECOND, "max_response_timestamp": end_ns}
        return times, {"request_end_ns": end_ns}, None

    rows = [request(n / 100) for n in range(500)]
    right = summarize(run_of(batch_of(rows)))["overall"]
    odd = [request(86_400.0), request(1.0, start_ns=T0_NS - 86_400 * SECOND), request(2.0, start_ns=5)]
    wrong = summarize(run_of(batch_of([*odd, *rows]), batch_of([], partition=1)))["overall"]
    assert right["benchmark_duration_s"] == pytest.approx(5.99)
    assert wrong["benchmark_duration_s"] == right["benchmark_duration_s"]
    assert wrong["request_throughput"] == pytest.approx(right["request_throughput"], rel=0.01)


@repeatable
@given(
    st.lists(st.integers(0, 400), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
    st.booleans(),
)
def test_extremes_are_those_of_all_times(at: list[int], cuts: list[int], latest: bool) -> None:
    times = np.array([T0_NS + n * SECOND // 3 for n in at], dtype=np.int64)
    parts = [Extremes(latest) for _ in range(2)]
    whole = Extremes(latest)
    whole.update(times)
    for number, part in enumerate(np.split(times, sorted(cuts))):
        parts[number % 2].update(part)
    parts[0].merge([Extremes.from_list(latest, parts[1].to_list())])
    assert parts[0].to_list() == whole.to_list()
    assert whole.outermost() == (int(times.max() if latest else times.min()) if at else None)
    assert whole.outermost(10**6) == whole.outermost()


def test_times_that_the_phases_events_span_belong_to_it() -> None:
    rows = [ended(n / 1000) for n in range(1_000)] + [ended(7_200)]
    span = PhaseStats(start_ns=T0_NS - SECOND, end_ns=T0_NS + 7_201 * SECOND)
    result = RunResult(run_of(batch_of(rows)))
    assert result.summary()["phases"][0]["windows"]["unplaced"] == 1
    result.take(PhaseComplete(run_id="r", phase=PhaseRef("p"), stats=span))
    windows = result.summary()["phases"][0]["windows"]
    assert (windows["unplaced"], sum(windows["requests"])) == (0, 1_001)


def test_a_pause_between_phases_is_no_oddity() -> None:
    run = run_of(batch_of([ended(0)] * 4, "warmup"), batch_of([ended(3_000 + n / 100) for n in range(300)]))
    windows = summarize(run)["overall"]["windows"]
    assert (windows["unplaced"], sum(windows["requests"]), windows["width_s"]) == (0, 304, 8.0)


odd_numbers = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.lists(st.one_of(st.floats(), st.integers(-5, 5)), max_size=3),
    st.sampled_from([-0.0, 1.7e308, -1.7e308, 5e-324, 2**63 - 1, -(2**63)]),
)
odd_records = st.lists(
    st.tuples(
        st.dictionaries(
            st.sampled_from(
                ["odd", "min_request_timestamp", "max_response_timestamp", "input_sequence_length"]
            ),
            odd_numbers,
        ),
        st.dictionaries(
            st.sampled_from(["request_end_ns", "request_start_ns", "was_cancelled", "\ud800"]), odd_numbers
        ),
        st.one_of(st.none(), st.tuples(st.text(max_size=5), st.text(max_size=5), st.none())),
    ),
    max_size=8,
)


@settings(repeatable, max_examples=20)
@given(odd_records)
def test_whatever_records_hold_all_reports_work_and_other_metrics_are_right(rows: list[Any]) -> None:
    good: list[Row] = [ended(n / 10, output_sequence_length=n) for n in range(20)]
    whole: list[Row] = [*good[:10], *rows, *good[10:]]
    result = RunResult(run_of(batch_of(whole)))
    start = RunStart(run_id="r", ts_ns=T0_NS, sweep_id="s", trial=1, variation={"rate": 1})
    end = RunComplete(run_id="r", ts_ns=T0_NS + SECOND, status="completed", records=len(whole))
    result.take(end)
    document = result.summary()
    clean = summarize(run_of(batch_of(good)))["phases"][0]["metrics"]
    (phase,) = document["phases"]
    for name in ("request_latency", "output_sequence_length"):
        assert phase["metrics"][name] == clean[name]
    assert phase["requests"] == len(whole)
    assert phase["failed"] == sum(error is not None for _, _, error in rows)
    assert msgspec.json.decode(msgspec.json.encode(document)) is not None
    run = PastRun(summary=document, start=start, end=end, phases=result.state.phases())
    assert "Requests" in render_text(document)
    assert "request_latency" in run_csv(document)
    assert "<html" in run_html(run)
    sweep = Sweep("s")
    sweep.add(Path("journal"), run)
    swept = sweep.document()
    assert "mean of trials" in sweep_text(swept)
    assert "<html" in sweep_html(swept)
    assert sweep_csv(swept)
