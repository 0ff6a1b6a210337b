"""Thresholds around real AIPerf: its own results are the truth that the verdicts are held against."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.workplace import Workplace

pytestmark = [pytest.mark.aiperf, pytest.mark.slow, pytest.mark.timeout(240)]

PASSES = "profiling request_latency p99 < 60000 ms"
FAILS = "profiling error_rate < 1 %"
UNKNOWN = "warmup request_latency p50 < 60000 ms"
EXPORT = "aiperf-out/profile_export_aiperf.json"


def exec_with(workplace: Workplace, *thresholds: str) -> list[str]:
    """Return the command that writes the verdicts to a file, and has time on a busy machine."""
    (workplace.directory / "bus.yaml").write_text("ready_timeout_s: 100\n")
    options = (word for threshold in thresholds for word in ("--threshold", threshold))
    return ["exec", "-c", "bus.yaml", "--json", "v.json", *options]


def verdicts(workplace: Workplace) -> dict[str, dict[str, Any]]:
    """Return the final verdicts by threshold."""
    return {verdict["threshold"]: verdict for verdict in workplace.json("v.json")["verdicts"]}


def test_passed_failed_and_unknown(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """What was measured is what AIPerf itself says of the run."""
    url = mock_llm("--tokens", "16", "--fail-every", "10")
    command = aiperf(url, "--request-count", "200")
    done = workplace.run(*exec_with(workplace, PASSES, FAILS, UNKNOWN), "--", *command, timeout_s=200.0)
    assert done.returncode == 4, done.stderr
    found, export = verdicts(workplace), workplace.json(EXPORT)
    assert {name: verdict["state"] for name, verdict in found.items()} == {
        PASSES: "passed",
        FAILS: "failed",
        UNKNOWN: "unknown",
    }
    assert found[PASSES]["samples"] == export["request_count"]["avg"] == 180
    assert found[PASSES]["value"] / 1e6 == pytest.approx(export["request_latency"]["p99"], rel=0.0027)
    assert (found[FAILS]["value"], found[FAILS]["samples"]) == (0.1, 200)
    assert "1 of 3 thresholds passed, 1 failed, 1 unknown" in done.stderr


def test_all_passed(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    command = aiperf(mock_llm("--tokens", "8"), "--request-count", "50")
    exec_ = (*exec_with(workplace, PASSES, FAILS), "--workers", "thresholds=4")
    done = workplace.run(*exec_, "--", *command, timeout_s=200.0)
    assert done.returncode == 0, done.stderr
    assert "both thresholds passed" in done.stderr


def test_a_failure_ends_aiperf_in_time(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """It writes out what it has, as after Ctrl-C, and says that it was cancelled; so does the run."""
    url = mock_llm("--tokens", "16", "--fail-every", "10")
    command = aiperf(url, "--benchmark-duration", "300")
    limits = (f"{FAILS} at least 100 samples abort", PASSES)
    aggregator = ("--with", "aggregator:output=summary.json")
    done = workplace.run(*exec_with(workplace, *limits), *aggregator, "--", *command, timeout_s=200.0)
    assert done.returncode == 4, done.stderr
    assert "the command is interrupted by SIGINT" in done.stderr
    found, export = verdicts(workplace), workplace.json(EXPORT)
    assert [verdict["state"] for verdict in found.values()] == ["failed", "unknown"]
    assert export["was_cancelled"] is True
    (run,) = workplace.json("summary.json")["runs"].values()
    (phase,) = run["phases"]
    assert run["status"] == "cancelled"
    assert run["complete"]
    # A run that was cancelled ends AIPerf before it has counted the last records, which we have.
    assert 50 < export["request_count"]["avg"] <= phase["successful"]
    assert phase["requests"] >= 100
    assert phase["duration_s"] < 60
    assert found[PASSES]["samples"] == phase["successful"]

    (listed,) = json.loads(workplace.run("runs", "--json").stdout)
    assert listed["status"] == "cancelled"
    assert listed["ended_because"].startswith(f"ended because '{next(iter(found))}' failed: ")
    page = workplace.run("report", "latest", "--format", "html").stdout
    assert "It ended because &#39;profiling error_rate &lt; 1 %" in page
