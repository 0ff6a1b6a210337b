"""The example plugin's processors, as the developer guide shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phase_bus_consumers.processors import (
    ExampleMetricsProcessor,
    ExampleResultsAggregator,
    ProcessingResult,
    nearest_rank,
)


async def test_the_guides_example() -> None:
    processor = ExampleMetricsProcessor()
    results = [{"latency_ms": 50.0, "status": "success"} for _ in range(100)]
    result = await processor.process(results)
    assert result.success
    assert result.record_count == 100
    assert result.metrics is not None
    assert result.metrics["request_counts"]["total"] == 100
    assert result.metrics["success_rate"] == 1.0
    assert result.metrics["latency_ms"]["p99"] == 50.0


async def test_percentiles_and_rates_with_errors() -> None:
    results: list[dict[str, Any]] = [
        *({"latency_ms": float(n), "status": "success"} for n in range(1, 101)),
        *({"latency_ms": 9_999.0, "error": "TimeoutError"} for _ in range(20)),
        *({"status": "failed"} for _ in range(4)),
        {"error": {"type": "HTTP", "code": 500}},
    ]
    metrics = (await ExampleMetricsProcessor().process(results)).metrics
    assert metrics is not None
    assert metrics["request_counts"] == {"total": 125, "successful": 100, "failed": 25}
    assert (metrics["success_rate"], metrics["error_rate"]) == (0.8, pytest.approx(0.2))
    assert metrics["errors"] == {"TimeoutError": 20, "failed": 4, "HTTP": 1}
    latency = metrics["latency_ms"]
    assert (latency["min"], latency["mean"], latency["max"]) == (1.0, 50.5, 100.0)
    assert [latency[p] for p in ("p50", "p90", "p95", "p99")] == [50.0, 90.0, 95.0, 99.0]


@pytest.mark.parametrize(("p", "value"), [(1, 10), (20, 10), (21, 20), (50, 30), (100, 50)])
def test_nearest_rank_is_the_guides_formula(p: float, value: int) -> None:
    assert nearest_rank([10, 20, 30, 40, 50], p) == value


async def test_no_results_and_missing_latencies_are_fine() -> None:
    empty = await ExampleMetricsProcessor().process([])
    assert empty.success
    assert empty.metrics is not None
    assert (empty.metrics["success_rate"], empty.metrics["latency_ms"]) == (0.0, {})
    metrics = (await ExampleMetricsProcessor().process([{"latency_ms": None}, {}])).metrics
    assert metrics is not None
    assert metrics["request_counts"]["successful"] == 2


async def test_what_is_no_result_is_an_unsuccessful_one() -> None:
    result = await ExampleMetricsProcessor().process([{"latency_ms": "slow"}])
    assert not result.success
    assert result.error is not None
    assert "bad result" in result.error


def test_percentiles_are_checked() -> None:
    with pytest.raises(ValueError, match="percentiles"):
        ExampleMetricsProcessor([0])


def test_a_result_is_frozen() -> None:
    with pytest.raises(AttributeError):
        ProcessingResult(True).success = False  # type: ignore[misc]


async def test_phases_are_aggregated_and_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    aggregator = ExampleResultsAggregator(output_file=str(path))
    result = await aggregator.process(
        {"warmup": [{"latency_ms": 10.0}], "profiling": [{"latency_ms": 20.0}, {"error": "boom"}]}
    )
    assert result.success
    assert (result.record_count, result.output_file) == (3, str(path))
    assert result.metrics is not None
    assert result.metrics["phases"]["profiling"]["success_rate"] == 0.5
    assert result.metrics["overall"]["request_counts"] == {"total": 3, "successful": 2, "failed": 1}
    assert json.loads(path.read_text()) == result.metrics
    assert sorted(p.name for p in path.parent.iterdir()) == [".results.json.lock", "results.json"]


async def test_phases_may_come_one_after_another(tmp_path: Path) -> None:
    """As they do on the bus; the same phase again takes the place of what it was."""
    path = tmp_path / "results.json"
    aggregator = ExampleResultsAggregator(output_file=path)
    warmup = [{"phase": "warmup", "latency_ms": 10.0}]
    profiling: list[dict[str, Any]] = [
        {"phase": "profiling", "latency_ms": 20.0},
        {"phase": "profiling", "error": "boom"},
    ]
    await aggregator.process(warmup)
    await aggregator.process(profiling)
    result = await aggregator.process(iter(warmup))  # type: ignore[arg-type]  # anything to go through
    at_once = await ExampleResultsAggregator().process({"warmup": warmup, "profiling": profiling})
    assert result.success
    assert result.metrics == at_once.metrics == json.loads(path.read_text())
    assert result.record_count == 3
    bad = await aggregator.process([{"phase": "warmup", "latency_ms": "x"}])
    assert "bad result" in str(bad.error)


async def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    aggregator = ExampleResultsAggregator(output_file=tmp_path / "file" / "results.json")
    result = await aggregator.process({"profiling": [{"latency_ms": 20.0}]})
    assert not result.success
    assert result.metrics is not None
    assert "cannot write" in str(result.error)
    assert (await ExampleResultsAggregator().process({"p": [{"latency_ms": "x"}]})).error is not None


async def test_many_kinds_of_failures_are_counted_together() -> None:
    results = [{"phase": "p", "error": f"odd {n} " + "x" * 1_000} for n in range(1_000)]
    found = await ExampleResultsAggregator().process(results)
    assert found.metrics is not None
    overall = found.metrics["overall"]
    assert overall["request_counts"]["failed"] == sum(overall["errors"].values()) == 1_000
    assert len(overall["errors"]) == 101
    assert max(map(len, overall["errors"])) == 200
