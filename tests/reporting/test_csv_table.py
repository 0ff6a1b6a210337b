"""Results as CSV."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import pytest

from phase_bus.reporting.csv_table import run_csv, sweep_csv
from phase_bus.reporting.source import compute
from tests.support.journals import Made, Phase, sweep_of, write_journal
from tests.support.sweeps import sweep_document


def rows_of(text: str) -> list[dict[str, str]]:
    """Read CSV back."""
    return list(csv.DictReader(StringIO(text)))


def test_a_row_for_each_phase_and_metric(tmp_path: Path) -> None:
    made = Made("r", [Phase("warmup", 1, 10, kind="warmup"), Phase("profiling", 10, 2000, error_rate=0.1)])
    summary = compute(write_journal(tmp_path, made), "r").summary
    rows = rows_of(run_csv(summary))
    assert [(row["phase"], row["phase_index"], row["metric"]) for row in rows] == [
        (phase["name"], str(phase["index"]), name)
        for phase in [*summary["phases"], summary["overall"]]
        for name in phase["metrics"]
    ]
    (row,) = (r for r in rows if (r["phase"], r["metric"]) == ("profiling", "request_latency"))
    profiling = summary["phases"][1]
    latency = profiling["metrics"]["request_latency"]
    assert float(row["p99"]) == latency["p99"]
    assert float(row["sum"]) == latency["sum"]
    assert int(row["count"]) == latency["count"] == profiling["successful"] < 2000
    assert (row["unit"], row["exact"], row["requests"]) == ("ns", "True", "2000")
    assert int(row["failed"]) == profiling["failed"] > 0
    assert float(row["request_throughput"]) == profiling["request_throughput"]


def test_a_phase_without_metrics_has_a_row(tmp_path: Path) -> None:
    made = Made("r", [Phase("profiling", 10, 20, error_rate=1.0)])
    (row,) = rows_of(run_csv(compute(write_journal(tmp_path, made), "r").summary))
    assert (row["phase"], row["failed"], row["metric"], row["count"]) == ("profiling", "20", "", "")


def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path: Path) -> None:
    made = Made("r", [Phase("=cmd|'/C calc'!A0", 1, 10)])
    (row, *_) = rows_of(run_csv(compute(write_journal(tmp_path, made), "r").summary))
    assert row["phase"] == "'=cmd|'/C calc'!A0"


def test_a_sweep_has_its_parameters_in_columns(tmp_path: Path) -> None:
    document = sweep_document(tmp_path, *sweep_of("s", [1, 4], trials=2))
    rows = rows_of(sweep_csv(document))
    assert {row["variation.concurrency"] for row in rows} == {"1", "4"}
    (row,) = (
        r
        for r in rows
        if (r["name"], r["metric"], r["statistic"]) == ("concurrency=4", "request_latency", "p99")
    )
    metric = document["variations"][1]["phases"][0]["metrics"]["request_latency"]
    assert float(row["mean"]) == metric["statistics"]["p99"]["mean"]
    assert float(row["ci95_high"]) == pytest.approx(metric["statistics"]["p99"]["ci95_high"])
    assert float(row["pooled"]) == metric["pooled"]["p99"]
    assert (row["n"], row["unit"], row["phase"]) == ("2", "ns", "profiling")
