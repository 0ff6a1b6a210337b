"""Real AIPerf while the bus is killed, and a bus whose AIPerf is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from tests.e2e.agreement import assert_same_numbers, phase_of
from tests.support.workplace import Workplace, json_lines, wait_for

pytestmark = [pytest.mark.aiperf, pytest.mark.slow]

AGGREGATOR = ("consume", "aggregator", "--set", "output=summary.json")
LOGGING = ("consume", "logging", "--set", "log_file=events.jsonl", "--set", "json=true")
BUS_AWAY_S = 10.0


def kinds(workplace: Workplace) -> list[str]:
    """Return the kinds of events that the logging consumer has written."""
    log = workplace.directory / "events.jsonl"
    return [line["event"] for line in json_lines(log.read_text())] if log.exists() else []


def wait_for_the_end(workplace: Workplace, timeout_s: float) -> None:
    """Wait until both consumers have handled the run's end: one may be behind the other."""
    summary = workplace.directory / "summary.json"

    def over() -> bool:
        runs = workplace.json(summary.name)["runs"].values() if summary.exists() else ()
        return any(run["status"] != "running" for run in runs) and "run_complete" in kinds(workplace)

    wait_for(over, "the end of the run", timeout_s)


def terminate(workplace: Workplace, *pids: int) -> None:
    """End processes in order, each finishing first."""
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        wait_for(
            lambda pid=pid: pid not in [p.pid for p in workplace.left()],  # type: ignore[misc]
            "the process to finish",
            30.0,
        )


def test_a_bus_that_is_away_for_ten_seconds(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """SIGKILL of the bus in the middle of a run: AIPerf is unharmed, and nothing is missing in the end."""
    address = f"ipc://{workplace.directory}/bus"
    bus = workplace.phase_bus("bus", "--address", address)
    aggregator = workplace.phase_bus(*AGGREGATOR, "--address", address)
    logger = workplace.phase_bus(*LOGGING, "--address", address)
    command = aiperf(mock_llm("--tokens", "64"), "--benchmark-duration", "20")
    profile = workplace.start(*command, PHASE_BUS_ADDRESS=address)
    wait_for(lambda: "phase_start" in kinds(workplace), "the phase's start")
    bus.kill()
    away_until_s = time.monotonic() + BUS_AWAY_S
    wait_for(lambda: time.monotonic() >= away_until_s, "ten seconds to pass", 30.0)
    again = workplace.phase_bus("bus", "--address", address)
    done = workplace.finish(profile, 120.0)
    assert done.returncode == 0, done.stdout
    wait_for_the_end(workplace, 60.0)
    terminate(workplace, aggregator.pid, logger.pid, again.pid)
    (run,) = workplace.json("summary.json")["runs"].values()
    assert run["status"] == "completed"
    assert run["complete"]
    assert_same_numbers(phase_of(run), workplace.json("aiperf-out/profile_export_aiperf.json"))
    seen = [kind for kind in kinds(workplace) if kind.startswith(("run_", "phase_"))]
    assert seen.count("phase_start") == seen.count("phase_complete") == 1
    assert seen[0] == "run_start"
    assert seen[-1] == "run_complete"


def test_an_aiperf_that_is_killed(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """SIGKILL of all of AIPerf: in the configured time the run is lost, and every consumer finishes it."""
    address = f"ipc://{workplace.directory}/bus"
    bus = workplace.phase_bus("bus", "--address", address, "--silent-after-s", "2")
    aggregator = workplace.phase_bus(*AGGREGATOR, "--address", address)
    logger = workplace.phase_bus(*LOGGING, "--address", address)
    profile = workplace.start(*aiperf(mock_llm(), "--benchmark-duration", "60"), PHASE_BUS_ADDRESS=address)
    wait_for(lambda: "phase_start" in kinds(workplace), "the phase's start")
    os.killpg(profile.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    wait_for_the_end(workplace, 30.0)
    assert time.monotonic() - killed_s < 10.0
    (end,) = (
        line
        for line in json_lines((workplace.directory / "events.jsonl").read_text())
        if line["event"] == "run_complete"
    )
    assert end["status"] == "lost"
    terminate(workplace, aggregator.pid, logger.pid, bus.pid)
    (run,) = workplace.json("summary.json")["runs"].values()
    assert run["status"] == "lost"
    assert run["missing_records"] == 0, "every record that reached the bus is in the result"
    assert not run["complete"], "nobody knows whether that was all"
    assert profile.wait() == -signal.SIGKILL
    assert not [p for p in workplace.left() if isinstance(p, psutil.Process) and p.pid == profile.pid]
