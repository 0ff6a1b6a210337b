"""`phase-bus verify` as a process, around a stand-in for AIPerf and AIPerf: docs/guide/verify.md."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phase_bus.verification.trial import MODES
from tests.support.servers.nats import NatsServer
from tests.support.workplace import Workplace, wait_for

# Publishes a run as the plugin does, takes a second, and leaves results in AIPerf's form. Its run is called
# as the directory that verify gave it. It counts as an error that no consumer has seen its phase begin.
STAND_IN = """#!{python}
import json, os, sys, time
from pathlib import Path
from phase_bus.events import PhaseComplete, PhaseRef, PhaseStart, PhaseStats, RunStart
from phase_bus.publisher.publisher import Publisher

options = sys.argv[2:]
if "--fail" in options:
    sys.exit("no such model")
results = Path(options[options.index("--artifact-dir") + 1])
results.mkdir()
run_id = results.parent.name
on = "PHASE_BUS_ADDRESS" in os.environ and "--silent" not in options
if on:
    about = dict(run_id=run_id, phase=PhaseRef("profiling"), stats=PhaseStats(start_ns=time.time_ns()))
    publisher = Publisher()
    publisher.publish(RunStart(run_id=run_id))
    publisher.publish(PhaseStart(**about))
time.sleep(1.0)
seen = Path("seen.txt").read_text().splitlines() if Path("seen.txt").exists() else []
if on:
    publisher.publish(PhaseComplete(**about))
    publisher.complete_run(run_id, "completed", "")
    publisher.close()
factor = 1.5 if on and "--slow" in options else 1.0
latency = {{"unit": "ms", "avg": 20 * factor, "p50": 19 * factor, "p99": 40 * factor}}
export = {{
    "request_throughput": {{"unit": "requests/sec", "avg": 50.0}},
    "request_latency": latency,
    "time_to_first_token": {{"unit": "ms", "avg": 10.0, "p50": 9.0, "p99": 20.0}},
    "request_count": {{"avg": 50.0}},
    "error_request_count": {{"avg": float(on and run_id + " start" not in seen)}},
    "benchmark_duration": {{"unit": "sec", "avg": 0.8}},
}}
(results / "profile_export_aiperf.json").write_text(json.dumps(export))
"""
CONSUMER = """
from pathlib import Path
from phase_bus.consumer.consumer import Consumer

class Seen(Consumer):
    def _write(self, event, what):
        with Path("seen.txt").open("a") as file:
            file.write(f"{event.run_id} {what}\\n")

    async def on_phase_start(self, event):
        self._write(event, "start")

    async def on_phase_complete(self, event):
        self._write(event, "complete")
"""
CONSUMERS = ("--with", "mine:Seen", "--with", "logging")


@pytest.fixture
def stand_in(workplace: Workplace) -> Callable[..., tuple[str, ...]]:
    """Return a command line for `verify` with the stand-in as its `aiperf`."""
    program = workplace.directory / "aiperf"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    (workplace.directory / "mine.py").write_text(CONSUMER)

    def command(*options: str, rounds: int = 2) -> tuple[str, ...]:
        given = ("--rounds", str(rounds), "--seed", "3", "--json", "result.json", "-o", "runs", *CONSUMERS)
        return ("verify", *given, "--", "./aiperf", "profile", *options)

    return command


def runs_of(workplace: Workplace, mode: str) -> list[dict[str, Any]]:
    """Return the runs in a mode, the warm-up's first."""
    return [run for run in workplace.json("result.json")["runs"] if run["mode"] == mode]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no command to run"),
        (["--", "./nightly.sh"], "is not 'aiperf profile ...'"),
        (["--", "aiperf-that-is-not-there", "aiperf", "profile"], "not found, or not executable"),
        (["--rounds", "1", "--", "aiperf", "profile"], "--rounds 1: an interval needs two rounds"),
        (["--tolerance", "much", "--", "aiperf", "profile"], "--tolerance 'much': give a percentage"),
        (["--output", ".", "--", "sh", "aiperf", "profile"], "--output '.': is not empty"),
        (["--with", "nobody", "-o", "new", "--", "sh", "aiperf", "profile"], "consumer 'nobody'"),
    ],
)
def test_what_cannot_work_is_said_at_once(workplace: Workplace, arguments: list[str], reason: str) -> None:
    """One line, exit code 2, and no benchmark was run for it."""
    (workplace.directory / "something").write_text("")
    done = workplace.run("verify", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_benchmark_that_fails_by_itself(
    workplace: Workplace, stand_in: Callable[..., tuple[str, ...]]
) -> None:
    """Nothing can be compared: the first run says so, and where its output is."""
    done = workplace.run(*stand_in("--fail"))
    assert done.returncode == 2
    assert "warm-up with the bus off: AIPerf ended with exit code 1; see runs/" in done.stderr
    (log,) = workplace.directory.glob("runs/*/aiperf.log")
    assert "no such model" in log.read_text()


@pytest.mark.slow
def test_a_benchmark_that_publishes_nothing(
    workplace: Workplace, stand_in: Callable[..., tuple[str, ...]]
) -> None:
    """Without the plugin nothing would be felt either; that proves nothing and must not pass."""
    done = workplace.run(*stand_in("--silent"))
    assert done.returncode == 2
    assert "warm-up with the bus on: the command published nothing" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_it_and_shows_what_there_is(
    workplace: Workplace, stand_in: Callable[..., tuple[str, ...]]
) -> None:
    """In the middle of the first run with a bus. (The workplace sees that nothing is left.)"""
    process = workplace.phase_bus(*stand_in(rounds=20))
    wait_for(lambda: list(workplace.directory.glob("runs/*-on/aiperf.log")), "the first run with a bus")
    os.kill(process.pid, signal.SIGINT)
    done = workplace.finish(process)
    assert done.returncode == 130
    assert "warm-up, off: " in done.stderr
    assert "83 runs left" in done.stderr
    assert "interrupted: this is what there is" in done.stdout
    assert workplace.json("result.json")["verdict"] == "not decided"
    assert [run["mode"] for run in workplace.json("result.json")["runs"]] == ["off"]


@pytest.mark.alone
@pytest.mark.slow
def test_a_benchmark_that_feels_it(workplace: Workplace, stand_in: Callable[..., tuple[str, ...]]) -> None:
    """Latencies half as long again with a bus: exit code 1; and each mode was what it says."""
    done = workplace.run(*stand_in("--slow"), timeout_s=110)
    assert done.returncode == 1, done.stderr
    assert "beyond ±5 %: request latency p99 (on, stalled, killed)" in done.stdout
    assert "TTFT p99 (" not in done.stdout
    result = workplace.json("result.json")
    assert result["verdict"] == "felt"
    assert result["problems"] == []
    assert result["consumers"] == ["mine:Seen", "logging"]
    assert sorted(result["cpu_s"]["on"]) == ["aiperf", "bus", "display", "logging", "mine:Seen"]
    assert sorted(result["cpu_s"]["off"]) == ["aiperf", "display"]
    seen = (workplace.directory / "seen.txt").read_text().splitlines()
    for mode in MODES:
        for run in runs_of(workplace, mode):
            name = Path(run["directory"]).name
            # While suspended, or gone, the first consumer saw nothing; then it caught up on everything.
            assert run["errors"] == (mode == "stalled"), name
            assert (f"{name} complete" in seen) == (mode != "off"), name
            assert (run["killed_after_s"] is not None) == (mode == "killed"), name
            assert run["whole"] == {"off": None, "on": True, "stalled": True, "killed": True}[mode], name
            assert (run["events"] or 0) > 0 or mode == "off"


@pytest.mark.alone
@pytest.mark.slow
def test_a_benchmark_that_does_not_feel_it(
    workplace: Workplace, stand_in: Callable[..., tuple[str, ...]]
) -> None:
    """Its own figures are the same in all modes; how long two rounds of a process take may be anything."""
    done = workplace.run(*stand_in(), timeout_s=110)
    compared = workplace.json("result.json")["comparisons"]
    latencies = [c for c in compared if c["metric"] == "request_latency"]
    assert len(latencies) == 9
    assert {c["decision"] for c in latencies} == {"same"}
    assert done.returncode == any(c["decision"] == "felt" for c in compared), done.stdout


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.aiperf
@pytest.mark.timeout(900)
def test_real_aiperf(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]], nats: NatsServer
) -> None:
    """Two short rounds, while the bus forwards: every run counts, all that there is is compared."""
    url = mock_llm("--tokens", "64")
    command = aiperf(url, "--request-rate", "30", "--benchmark-duration", "3")
    consumers = ("--with", "aggregator", "--with", "logging", "--with", f"forward:to={nats.url}")
    options = ("--rounds", "2", "--json", "result.json", *consumers)
    done = workplace.run("verify", *options, "--", *command, timeout_s=850)
    assert done.returncode in (0, 1), done.stderr  # two rounds on a loaded machine decide nothing
    result = workplace.json("result.json")
    assert result["problems"] == []
    assert len(result["runs"]) == 12
    compared = {
        (c["metric"], c["statistic"]) for c in result["comparisons"] if c["difference"]["rounds"] == 2
    }
    for metric in ("time_to_first_token", "inter_token_latency", "request_latency"):
        assert {(metric, "avg"), (metric, "p50"), (metric, "p99")} <= compared
    assert {("request_throughput", "avg"), ("command", "duration"), ("aiperf", "cpu")} <= compared
    for run in result["runs"]:
        assert run["exit_code"] == 0
        assert run["requests"] > 30
        assert run["cpu_s"]["aiperf"] > 1
        assert run["whole"] == (None if run["mode"] == "off" else True)
        if run["mode"] == "killed":
            assert 0 < run["killed_after_s"] < 3
    assert nats.last_offset() > 9 * 30  # a batch of records for each few of the requests
    assert not (workplace.directory / "aiperf-out").exists()
