"""``phase-bus exec`` with thresholds, around synthetic runs: verdicts, exit codes, files, interruptions."""

from __future__ import annotations

import json
import os
import signal
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import Finished, Workplace, assert_one_line, child_of, wait_for

SIMULATE = (sys.executable, "-m", "phase_bus", "simulate", "--warmup", "0")
QUICK = (*SIMULATE, "-n", "400", "-r", "0")
# In what is simulated one request of a hundred fails, and TTFT is some 30 ms.
PASSES = "profiling time_to_first_token p50 < 1000 ms"
FAILS = "profiling time_to_first_token p50 < 1 ms"
UNKNOWN = "profiling time_to_second_token p50 < 1000 ms"
FILES = ("--junit", "v.xml", "--markdown", "v.md", "--json", "v.json")


def held_to(*thresholds: str) -> list[str]:
    """Return the options for thresholds."""
    return [word for threshold in thresholds for word in ("--threshold", threshold)]


def states(workplace: Workplace) -> dict[str, str]:
    """Return the final states by threshold, on which all files have to agree."""
    document = workplace.json("v.json")
    found = {verdict["threshold"]: verdict["state"] for verdict in document["verdicts"]}
    assert document["passed"] == all(verdict["state"] == "passed" for verdict in document["verdicts"])
    assert not any(verdict["final"] for verdict in document["changes"])
    junit = ET.parse(workplace.directory / "v.xml")  # noqa: S314 - it is our own
    cases = junit.findall(".//testcase")
    failures = {
        case.get("name"): failure.get("type") for case in cases for failure in case.findall("failure")
    }
    assert len(cases) == len(document["verdicts"])
    if len(cases) == len(found):
        assert failures == {name: state for name, state in found.items() if state != "passed"}
    table = (workplace.directory / "v.md").read_text()
    for threshold in found:
        assert f"`{threshold}`" in table
    return found


def test_passed_failed_and_unknown(workplace: Workplace) -> None:
    """By options and a YAML file together: a line for each change, a table, files, and exit code 4."""
    (workplace.directory / "bus.yaml").write_text(f"thresholds: ['{FAILS}', {{threshold: '{UNKNOWN}'}}]\n")
    done = workplace.run("exec", "-c", "bus.yaml", *held_to(PASSES), *FILES, "--", *QUICK)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert states(workplace) == {FAILS: "failed", UNKNOWN: "unknown", PASSES: "passed"}
    assert f"phase-bus | '{FAILS}' failed: " in done.stderr
    result, _, table = done.stderr.partition("Thresholds of run ")
    assert "Ledger of run" in result
    for threshold, state in states(workplace).items():
        assert any(state in line and threshold in line for line in table.splitlines())
    assert "1 of 3 thresholds passed, 1 failed, 1 unknown" in table


def test_a_failure_ends_the_run(workplace: Workplace) -> None:
    """By SIGINT, whatever the command's exit code; everything that shows the run says why it ended."""
    arguments = (*held_to(FAILS, PASSES), "--abort-on-failure", *FILES)
    simulate = (*SIMULATE, "-n", "1000000", "-r", "500", "--run-id", "long")
    done = workplace.run("exec", *arguments, "--", *simulate)
    assert done.returncode == 4, done.stderr
    assert states(workplace) == {f"{FAILS}, abort": "failed", f"{PASSES}, abort": "unknown"}
    assert "threshold failed, aborting run long: " in done.stderr
    assert "run long cancelled (interrupted)" in done.stderr

    because = f"ended because '{FAILS}, abort' failed: "
    assert f"run long {because}" in workplace.run("runs").stdout
    (run,) = json.loads(workplace.run("runs", "--json").stdout)
    assert (run["status"], run["ended_because"][: len(because)]) == ("cancelled", because)
    assert f"The run {because}" in " ".join(workplace.run("report", "long").stdout.split())
    receipts = workplace.run("receipts", "long")
    assert receipts.returncode == 0  # what was published was handled
    assert f"the run {because}" in receipts.stdout


SLOW = """
import asyncio
from phase_bus import Consumer, Verdict

class Slow(Consumer):
    async def on_verdict(self, event: Verdict) -> None:
        await asyncio.sleep(0.5)
        with open("told.txt", "a") as file:
            file.write(f"{event.final} {event.threshold}\\n")
"""


def test_slow_consumers_get_the_final_verdicts(workplace: Workplace) -> None:
    """They come after the run's end, and are waited for all the same."""
    (workplace.directory / "slow.py").write_text(SLOW)
    limits = (PASSES, "requests > 1", "failed < 400", "success_rate > 1 %")
    done = workplace.run("exec", *held_to(*limits), "--with", "slow:Slow", "--", *QUICK)
    assert done.returncode == 0, done.stderr
    told = (workplace.directory / "told.txt").read_text().splitlines()
    assert len([line for line in told if line.startswith("True ")]) == 4


@pytest.mark.slow
def test_what_passes_is_no_failure(workplace: Workplace) -> None:
    """With workers, quiet, without a journal, over several runs."""
    (workplace.directory / "slow.yaml").write_text("ready_timeout_s: 100\n")
    for more in (("--workers", "thresholds=3", "-c", "slow.yaml"), ("--quiet",)):
        done = workplace.run("exec", *held_to(PASSES), *more, *FILES, "--", *QUICK)
        assert done.returncode == 0, done.stderr
        assert states(workplace) == {PASSES: "passed"}
    assert "Thresholds of" not in done.stderr
    (workplace.directory / "bus.yaml").write_text("journal: false\n")
    done = workplace.run("exec", "-c", "bus.yaml", *held_to(PASSES), *FILES, "--", *QUICK, "--runs", "3")
    assert done.returncode == 0, done.stderr
    assert len(workplace.json("v.json")["verdicts"]) == 3
    assert "all 3 thresholds passed in 3 runs" in done.stderr


@pytest.mark.slow
def test_each_of_several_runs_counts(workplace: Workplace) -> None:
    """The one that fails is the first; all verdicts are in the files."""
    runs = " && ".join(f"{' '.join(QUICK)} --run-id r{ms} --ttft-ms {ms}" for ms in (50, 20, 10))
    threshold = "profiling time_to_first_token p50 < 40 ms"
    done = workplace.run("exec", "--quiet", *held_to(threshold), *FILES, "--", "sh", "-c", runs)
    assert done.returncode == 4, done.stderr
    states(workplace)
    found = {v["run_id"]: v["state"] for v in workplace.json("v.json")["verdicts"]}
    assert found == {"r50": "failed", "r20": "passed", "r10": "passed"}
    assert "2 of 3 thresholds passed, 1 failed in 3 runs" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "code", "state"),
    [
        ("{run}; exit 7", (), 7, "failed"),  # the command's own
        ("exit 7", (), 7, "unknown"),
        ("true", (), 3, "unknown"),
        ("true", ("--allow-no-run",), 4, "unknown"),
    ],
)
def test_exit_codes(
    workplace: Workplace, script: str, options: tuple[str, ...], code: int, state: str
) -> None:
    script = script.format(run=" ".join(QUICK))
    done = workplace.run("exec", *options, *held_to(FAILS), *FILES, "--", "sh", "-c", script)
    assert done.returncode == code, done.stderr
    assert states(workplace) == {FAILS: state}


def killed_judge(workplace: Workplace, *options: str) -> Finished:
    """Run a benchmark whose judge is killed in its midst, after a verdict that it passes."""
    run = (*SIMULATE, "-n", "3000", "-r", "1000")
    process = workplace.phase_bus("exec", *options, *held_to(PASSES), *FILES, "--", *run)
    wait_for(lambda: f"'{PASSES}' passed" in workplace.stderr(process), "a verdict")
    child_of(process.pid, "consume thresholds").kill()
    return workplace.finish(process)


@pytest.mark.slow
def test_who_judges_and_is_killed_changes_nothing_but_the_verdict(workplace: Workplace) -> None:
    """No pass without a verdict at the end, though it had passed before."""
    done = killed_judge(workplace, "--restart", "0")
    assert done.returncode == 4, done.stderr
    assert "completed: 3,000 records" in done.stderr
    assert states(workplace) == {PASSES: "unknown"}
    assert "whoever judged did not live to give one" in (workplace.directory / "v.md").read_text()


@pytest.mark.slow
def test_who_judges_is_killed_and_comes_back(workplace: Workplace) -> None:
    """It judges the whole run, as if it had only been slow."""
    done = killed_judge(workplace)
    assert done.returncode == 0, done.stderr
    assert "starting it again (1 of 3)" in done.stderr
    assert states(workplace) == {PASSES: "passed"}


@pytest.mark.slow
def test_who_judges_and_hangs_changes_nothing_but_the_verdict(workplace: Workplace) -> None:
    (workplace.directory / "bus.yaml").write_text("drain_timeout_s: 1\nstop_timeout_s: 1\n")
    script = f"until [ -e go ]; do sleep 0.05; done; {' '.join(QUICK)} --run-id r && touch done"
    command = ("exec", "-c", "bus.yaml", *held_to(f"{FAILS} abort"), *FILES, "--", "sh", "-c", script)
    process = workplace.phase_bus(*command)
    wait_for(lambda: "consumers ready" in workplace.stderr(process), "the consumers")
    child_of(process.pid, "consume thresholds").suspend()
    (workplace.directory / "go").touch()
    done = workplace.finish(process)
    assert (workplace.directory / "done").exists()
    assert done.returncode == 4, done.stderr
    assert "consumer thresholds has not handled the end of run r" in done.stderr
    assert states(workplace) == {f"{FAILS}, abort": "unknown"}


@pytest.mark.slow
def test_a_command_that_ignores_its_interruption_is_left_alone(workplace: Workplace) -> None:
    """It is said; the exit code is 4 all the same, and no other run of the command is interrupted."""
    patience = (
        "import phase_bus.cli.verdicts as v; v.PATIENCE_S = 0.1; from phase_bus.cli import main; main()"
    )
    script = f"trap '' INT; {' '.join((*SIMULATE, '-n', '1500', '-r', '1000'))} --runs 2"
    command = (*held_to(FAILS), "--abort-on-failure", "--", "bash", "-c", script)
    done = workplace.finish(workplace.start(sys.executable, "-c", patience, "exec", *command))
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("the command is interrupted by SIGINT") == 1
    assert "the command goes on 0.1 s after it was interrupted" in done.stderr
    assert done.stderr.count("completed: 1,500 records") == 2


@pytest.mark.slow
def test_earlier_runs_of_the_same_journal_interrupt_nothing(workplace: Workplace) -> None:
    """Though they are judged now, for the first time."""
    (workplace.directory / "bus.yaml").write_text(f"data: {workplace.directory / 'kept'}\n")
    exec_ = ("exec", "-c", "bus.yaml")
    old = workplace.run(*exec_, "--with", "logging", "--", *SIMULATE, "-n", "3000", "-r", "1500")
    assert old.returncode == 0, old.stderr
    limit = "profiling output_sequence_length count < 2500 abort"
    done = workplace.run(*exec_, *held_to(limit), *FILES, "--", *QUICK)
    assert done.returncode == 0, done.stderr
    assert list(states(workplace).values()) == ["passed"]


@pytest.mark.slow
def test_up_tells_each_change(workplace: Workplace) -> None:
    """And ends nothing."""
    address = f"ipc://{workplace.directory}/bus"
    command = ("up", "--address", address, *held_to(f"{FAILS} abort", PASSES))
    process = workplace.phase_bus(*command)
    told = "a threshold with 'abort' ends nothing here"
    wait_for(lambda: told in workplace.stderr(process), "the bus")
    simulated = workplace.finish(workplace.start(*QUICK, "--address", address))
    assert simulated.returncode == 0
    wait_for(lambda: f"'{PASSES}' passed" in workplace.stderr(process), "a verdict")
    wait_for(lambda: f"'{FAILS}, abort' failed" in workplace.stderr(process), "a verdict")
    os.kill(process.pid, signal.SIGTERM)
    assert workplace.finish(process).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (held_to("time_to_first_tokn p99 < 1 s"), ("time_to_first_tokn", "time_to_first_token")),
        (FILES, ("--junit, --markdown, --json", "no thresholds")),
        ((*held_to(PASSES), "--junit", "no/such/v.xml"), ("--junit", "cannot be written")),
        ((*held_to(PASSES), "--junit", "v", "--json", "./v"), ("--json", "--junit too")),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    workplace: Workplace, arguments: list[str], words: tuple[str, ...]
) -> None:
    done = workplace.run("exec", *arguments, "--", "touch", "ran")
    assert_one_line(done.returncode, done.stderr, *words)
    assert not (workplace.directory / "ran").exists()
    assert not Path(workplace.directory / "state" / "phase-bus").exists()


def in_journal(workplace: Workplace, run: str) -> list[dict[str, Any]]:
    """Return the verdicts on a run that its journal has."""
    exported = workplace.run("journal", "export", run).stdout
    return [event for line in exported.splitlines() if (event := json.loads(line))["kind"] == "verdict"]


@pytest.mark.slow
def test_the_files_agree_with_the_journal(workplace: Workplace) -> None:
    done = workplace.run(
        "exec", *held_to(PASSES, FAILS), *FILES, "--", *SIMULATE, "-n", "1500", "-r", "1000"
    )
    assert done.returncode == 4, done.stderr
    document, told = workplace.json("v.json"), in_journal(workplace, "latest")
    assert [v for v in told if v["final"]] == document["verdicts"]
    assert [v for v in told if not v["final"]] == document["changes"]
    assert (
        json.loads(workplace.run("report", "latest", "--json").stdout)["verdicts"] == document["verdicts"]
    )
    assert (
        json.loads(workplace.run("receipts", "latest", "--json").stdout)["verdicts"] == document["verdicts"]
    )
