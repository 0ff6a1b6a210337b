"""A server that became 5 % slower is found with real AIPerf, and nothing where nothing is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.support.workplace import Workplace

RUNS = 5
BUSY_S = 900.0  # for a machine with a lot else to do: ten times AIPerf's own start

pytestmark = [pytest.mark.aiperf, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(BUSY_S + 60)]


def test_five_percent_are_found_and_nothing_where_nothing_is(
    workplace: Workplace, aiperf: Callable[..., list[str]], mock_llm: Callable[..., str]
) -> None:
    """By the exit code, the words, and the intervals, which have the true difference in them."""

    def command(pace: float) -> list[str]:
        # So slow that what the client and a busy machine add is little beside 5 % of it.
        url = mock_llm("--ttft-ms", f"{600 * pace}", "--itl-ms", f"{30 * pace}", "--tokens", "16")
        return aiperf(
            *(url, "--benchmark-duration", "3", "--concurrency", "32", "--num-dataset-entries", "10"),
            *("--output-tokens-stddev", "0", "--workers-max", "1", "--record-processors", "1"),
            "--no-server-metrics",
        )

    base, slower = command(1.0), command(1.05)
    times = ("--repeat", str(RUNS), "--interleave", shlex.join(base))
    done = workplace.run("exec", *times, "--", *slower, timeout_s=BUSY_S)
    assert done.returncode == 1, done.stderr
    assert "REGRESSED" in done.stderr
    found = compared(workplace, "base", "candidate")
    # The time between tokens is the server's alone; to the whole a busy machine adds something.
    between = found["inter_token_latency", "p50"]
    assert between["verdict"] == "regressed"
    for metric in (between, found["request_latency", "p50"]):
        assert metric["low_pct"] < 5.0
        assert metric["high_pct"] > 4.0, "the client's own share does not slow down"

    runs = [run["run_id"] for run in json.loads(workplace.run("runs", "--json").stdout)]
    same = [run for number, run in enumerate(runs) if number % 4 in (0, 3)]  # the base's turns
    assert len(same) == RUNS
    found = compared(workplace, ",".join(same[::2]), ",".join(same[1::2]))
    # One comparison in twenty may raise a false alarm, and just so; none is told of 2 % or more.
    told = [each for each in found.values() if each["verdict"] in ("regressed", "improved")]
    assert not [each for each in told if min(abs(each["low_pct"]), abs(each["high_pct"])) >= 2.0]


def compared(workplace: Workplace, base: str, candidate: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the metrics of a comparison by name and statistic."""
    told = json.loads(workplace.run("compare", base, candidate, "--json").stdout)
    metrics: Iterable[dict[str, Any]] = told["metrics"]
    return {(each["metric"], each["statistic"]): each for each in metrics}
