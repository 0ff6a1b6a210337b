"""The aggregator's numbers held against AIPerf's own."""

from __future__ import annotations

from typing import Any

import pytest

METRICS = ("request_latency", "time_to_first_token", "inter_token_latency", "output_sequence_length")
STATISTICS = {"avg": "mean", "min": "min", "max": "max", "std": "std"}
PERCENTILES = ("p50", "p90", "p95", "p99")


def phase_of(run: dict[str, Any], kind: str = "profiling") -> dict[str, Any]:
    """Return the aggregator's only phase of a kind."""
    (phase,) = (phase for phase in run["phases"] if phase["kind"] == kind)
    return dict(phase)


def assert_same_numbers(phase: dict[str, Any], export: dict[str, Any]) -> None:
    """Hold the aggregator's phase against AIPerf's own export."""
    assert phase["successful"] == export["request_count"]["avg"]
    assert phase["failed"] == (export.get("error_request_count") or {"avg": 0})["avg"]
    for name in METRICS:
        ours, theirs = phase["metrics"][name], export[name]
        scale = 1e6 if theirs["unit"] == "ms" else 1.0
        for their_name, our_name in STATISTICS.items():
            assert ours[our_name] / scale == pytest.approx(theirs[their_name], rel=1e-9), (name, our_name)
        for percentile in PERCENTILES:
            assert ours[percentile] / scale == pytest.approx(theirs[percentile], rel=2.8e-3), (
                name,
                percentile,
            )
    assert phase["request_throughput"] == pytest.approx(export["request_throughput"]["avg"], rel=1e-9)
