"""Real AIPerf under ``phase-bus exec``: its numbers, its faults, its exit codes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.agreement import assert_same_numbers, phase_of
from tests.support.workplace import Workplace, child_of, json_lines, wait_for

pytestmark = [pytest.mark.aiperf, pytest.mark.timeout(300)]

SINKS = (
    "--with",
    "logging:log_file=events.jsonl,json=true",
    "--with",
    "metrics:output=metrics.json",
    "--with",
    "aggregator:output=summary.json,text=summary.txt",
)


def result_of(workplace: Workplace) -> dict[str, Any]:
    """Return the aggregator's only run."""
    (run,) = workplace.json("summary.json")["runs"].values()
    return dict(run)


def events_of(workplace: Workplace, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind that the logging consumer wrote."""
    lines = json_lines((workplace.directory / "events.jsonl").read_text())
    return [line for line in lines if line["event"] == kind]


@pytest.mark.slow
def test_the_aggregator_agrees_with_aiperf(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """A run with warm-up: counts equal, statistics to 1e-9, percentiles to 0.27 %, nothing missing."""
    url = mock_llm("--tokens", "64")
    command = aiperf(url, "--benchmark-duration", "4", "--warmup-request-count", "10")
    done = workplace.run("exec", *SINKS, "--", *command)
    assert done.returncode == 0, done.stderr
    run = result_of(workplace)
    assert run["status"] == "completed"
    assert run["complete"]
    assert_same_numbers(phase_of(run), workplace.json("aiperf-out/profile_export_aiperf.json"))
    assert phase_of(run, "warmup")["requests"] == 10
    for kind in ("phase_start", "phase_sending_complete", "phase_complete"):
        assert [e["phase"]["name"] for e in events_of(workplace, kind)] == ["warmup", "profiling"]
    assert not events_of(workplace, "phase_timeout")  # reaching the duration is no time-out
    assert "request_latency" in (workplace.directory / "summary.txt").read_text().replace(
        "Request Latency", "request_latency"
    )
    (metrics,) = workplace.json("metrics.json")["runs"].values()
    assert metrics["phases"]["profiling"]["counts"]["completed"] == phase_of(run)["requests"]


@pytest.mark.slow
def test_over_tcp_the_plugin_has_the_key(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """It is handed to the command, which knows nothing of it, and by that to AIPerf's processes."""
    command = aiperf(mock_llm("--tokens", "8"), "--request-count", "30")
    done = workplace.run("exec", "--address", "tcp://*:0", *SINKS, "--", *command)
    assert done.returncode == 0, done.stderr
    assert result_of(workplace)["complete"]
    assert phase_of(result_of(workplace))["requests"] == 30


@pytest.mark.slow
def test_failed_requests_and_a_killed_consumer(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """One request in ten fails: the same counts as AIPerf's, errors by type, other numbers unharmed.

    In the middle one consumer is killed (SIGKILL) and started again, which changes nothing for AIPerf and
    the others.
    """
    url = mock_llm("--tokens", "64", "--fail-every", "10")
    process = workplace.phase_bus("exec", *SINKS, "--", *aiperf(url, "--request-count", "300"))
    wait_for(lambda: "profiling started" in workplace.stderr(process), "the phase's start")
    child_of(process.pid, "consume metrics").kill()
    done = workplace.finish(process)
    assert done.returncode == 0, done.stderr
    assert "consumer metrics was ended by SIGKILL; starting it again" in done.stderr
    assert [end["status"] for end in events_of(workplace, "run_complete")] == ["completed"]
    run = result_of(workplace)
    phase = phase_of(run)
    assert run["status"] == "completed"
    assert phase["failed"] == 30
    assert [(error["code"], error["count"]) for error in phase["errors"]] == [(500, 30)]
    assert_same_numbers(phase, workplace.json("aiperf-out/profile_export_aiperf.json"))


@pytest.mark.slow
def test_four_workers_of_which_one_is_killed(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """Several processes share the aggregation: AIPerf's own numbers all the same, and nobody complains."""
    url = mock_llm("--tokens", "64", "--fail-every", "10")
    command = ("exec", *SINKS, "--workers", "aggregator=4", "--", *aiperf(url, "--request-count", "300"))
    process = workplace.phase_bus(*command)
    wait_for(lambda: "profiling started" in workplace.stderr(process), "the phase's start")
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "--group aggregator" in (line := " ".join(child.cmdline())) and "--workers" not in line
    ]
    assert len(workers) == 4
    workers[1].kill()
    done = workplace.finish(process)
    assert done.returncode == 0, done.stderr
    assert "was ended by SIGKILL; starting another in its place" in done.stderr + done.stdout
    run = result_of(workplace)
    assert run["complete"]
    assert phase_of(run)["failed"] == 30
    assert_same_numbers(phase_of(run), workplace.json("aiperf-out/profile_export_aiperf.json"))


@pytest.mark.slow
def test_requests_cut_at_the_end_of_the_grace_period(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """A server that hangs: one phase_timeout that says how many requests were cut."""
    url = mock_llm("--hang-after", "100")
    command = aiperf(url, "--benchmark-duration", "3", "--benchmark-grace-period", "1")
    done = workplace.run("exec", *SINKS, "--with", "alerting", "--", *command)
    assert done.returncode == 0, done.stderr
    run = result_of(workplace)
    (timeout,) = events_of(workplace, "phase_timeout")
    (complete,) = events_of(workplace, "phase_complete")
    assert timeout["requests_cut"] == 8  # the concurrency: each of them got a request that hangs
    assert timeout["requests_cut"] == complete["stats"]["cancelled"]
    assert timeout["requests_cut"] == complete["stats"]["sent"] - complete["stats"]["completed"]
    assert phase_of(run)["requests"] == 100
    assert run["status"] == "completed"
    assert run["complete"]


@pytest.mark.slow
def test_an_interrupted_run_ends_as_cancelled(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """SIGINT to `phase-bus exec` reaches AIPerf; everybody learns that the run was cancelled."""
    url = mock_llm()
    process = workplace.phase_bus("exec", *SINKS, "--", *aiperf(url, "--benchmark-duration", "60"))
    events = workplace.directory / "events.jsonl"
    wait_for(lambda: events.exists() and events_of(workplace, "phase_start"), "the phase's start", 120.0)
    wait_for(
        lambda: (
            (workplace.directory / "summary.json").exists()
            and result_of(workplace)["phases"]
            and phase_of(result_of(workplace))["requests"] > 100
        ),
        "a hundred records",
    )
    os.kill(process.pid, signal.SIGINT)
    done = workplace.finish(process)
    (end,) = events_of(workplace, "run_complete")
    assert end["status"] == "cancelled"
    run = result_of(workplace)
    assert run["status"] == "cancelled"
    assert run["complete"], "records that came after the cancellation are missing"
    assert "did not" not in done.stderr


@pytest.mark.slow
def test_a_killed_aiperf_leaves_a_lost_run(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """SIGKILL of all of AIPerf in the middle: `exec` ends the run as lost and exits as a shell would."""
    url = mock_llm()
    process = workplace.phase_bus("exec", *SINKS, "--", *aiperf(url, "--benchmark-duration", "60"))
    events = workplace.directory / "events.jsonl"
    wait_for(lambda: events.exists() and events_of(workplace, "phase_start"), "the phase's start", 120.0)
    (command,) = (
        child
        for child in psutil.Process(process.pid).children()
        if "phase_bus" not in " ".join(child.cmdline())
    )
    os.killpg(command.pid, signal.SIGKILL)
    done = workplace.finish(process)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    (end,) = events_of(workplace, "run_complete")
    assert end["status"] == "lost"
    assert "SIGKILL" in end["reason"]
    assert result_of(workplace)["status"] == "lost"


@pytest.mark.slow
def test_several_runs_in_one_command(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """Repeated trials of one command are runs of their own, each complete."""
    url = mock_llm()
    command = aiperf(url, "--request-count", "50", "--num-profile-runs", "3")
    done = workplace.run("exec", *SINKS, "--", *command, timeout_s=150.0)
    assert done.returncode == 0, done.stderr
    runs = workplace.json("summary.json")["runs"]
    assert len(runs) == 3
    assert all(run["complete"] and run["status"] == "completed" for run in runs.values())
    starts = events_of(workplace, "run_start")
    assert len({start["sweep_id"] for start in starts}) == 1
    assert len({start["trial"] for start in starts}) == 3


@pytest.mark.slow
def test_attach_follows_from_outside(
    workplace: Workplace, ipc_dir: Path, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """`phase-bus attach` publishes phases and AIPerf's results without the plugin."""
    url = mock_llm()
    address = f"ipc://{workplace.directory}/bus"
    up = workplace.phase_bus(
        "up", "--address", address, "--with", "logging:log_file=events.jsonl,json=true"
    )
    wait_for(lambda: "consumers ready" in workplace.stderr(up), "the bus", 30.0)
    ipc = ipc_dir / "ipc"  # AIPerf's sockets have long names
    ipc.mkdir()
    attach = workplace.phase_bus("attach", "--ipc-path", str(ipc), "--address", address)
    wait_for(lambda: "phase events and results only" in workplace.stderr(attach), "attach", 30.0)
    command = aiperf(
        url, "--request-count", "100", "--warmup-request-count", "5", "--zmq-ipc-path", str(ipc)
    )
    profile = workplace.finish(workplace.start(*command))
    assert profile.returncode == 0, profile.stdout
    assert workplace.finish(attach).returncode == 0
    for kind in ("phase_start", "phase_sending_complete", "phase_complete"):
        assert [e["phase"]["name"] for e in events_of(workplace, kind)] == ["warmup", "profiling"]
    (end,) = wait_for(lambda: events_of(workplace, "run_complete"), "run_complete")
    assert end["status"] == "completed"
    assert events_of(workplace, "phase_complete")[1]["stats"]["completed"] == 100
    os.kill(up.pid, signal.SIGTERM)
    assert workplace.finish(up).returncode == 0
