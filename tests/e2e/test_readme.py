"""Every command and every piece of code in the README is run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from phase_bus.cli import main
from tests.e2e.pages import ROOT, Page, words
from tests.support.workplace import Workplace, wait_for

PAGE = Page("README.md")
README = PAGE.text
starting = PAGE.starting
# What the demo and the tests run AIPerf against.
NOT_EXAMPLES = {"demo.py", "make_tokenizer.py", "mock_llm_server.py", "__pycache__"}


def test_every_command_is_run_by_a_test() -> None:
    """A command that is new in the README needs a test here."""
    known = (
        "make demo",  # these two are run by .ci/run, from a fresh clone
        "make test",
        "phase-bus exec --with aggregator --with logging",
        "phase-bus exec --with logging:log_file=phases.log",
        "phase-bus exec --with metrics --with aggregator -- phase-bus simulate",
        "phase-bus up -c examples/bus.yaml",
        "export PHASE_BUS_ADDRESS=",
        "phase-bus simulate --requests 500",
        "phase-bus status",
        "phase-bus exec --with slow:SlowPhase",
        "phase-bus exec --with hook:example_logging",
        "phase-bus consumers --tag logging",
        "phase-bus runs",
        "phase-bus report latest",
        "phase-bus simulate --sweep-id try",
        "phase-bus report --sweep latest",
        "phase-bus receipts latest",
        "phase-bus new consumer",
        "phase-bus exec --with aggregator:output=shared.json",
        "phase-bus consume aggregator --group team",
    )
    assert [c for c in PAGE.commands() if not c.startswith(known)] == []
    ci = (ROOT / ".ci" / "run").read_text()
    assert "\nmake demo\n" in ci
    assert "\nmake test || " in ci


def test_the_table_names_the_commands_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """The table lists what `phase-bus --help` lists, and each has a --help with an example."""
    listed = re.findall(r"^\| `phase-bus ([\w-]+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(commands_below(capsys))
    for name in listed:
        for group in [[name, below] for below in commands_below(capsys, name)] or [[name]]:
            text = shown(capsys, *group)
            assert "For example:" in text, group
            assert f"phase-bus {' '.join(group)}" in text, group


def shown(capsys: pytest.CaptureFixture[str], *group: str) -> str:
    """Return what a command's --help shows."""
    with pytest.raises(SystemExit, match="0"):
        main([*group, "--help"])
    return capsys.readouterr().out


def commands_below(capsys: pytest.CaptureFixture[str], *group: str) -> list[str]:
    """Return the commands that a --help lists."""
    _, _, commands = shown(capsys, *group).partition("─ Commands ─")
    return re.findall(r"^│ (\w[\w-]+) ", commands, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.aiperf
def test_exec_around_aiperf(workplace: Workplace, mock_llm: Callable[..., str], tokenizer: Path) -> None:
    """The README's line with AIPerf, against a mock server and with a local tokenizer."""
    (workplace.directory / "tok").symlink_to(tokenizer)
    command = starting("phase-bus exec --with logging:log_file=phases.log")
    assert "http://localhost:8000" in command
    line = words(command.replace("http://localhost:8000", mock_llm()))
    line[line.index("aiperf")] = str(Path(sys.executable).with_name("aiperf"))
    done = workplace.finish(workplace.start(*line, "--tokenizer", "./tok", "--request-count", "20"))
    assert done.returncode == 0, done.stderr
    (run,) = workplace.json("summary.json")["runs"].values()
    assert run["complete"]
    assert "PHASE_COMPLETE: PROFILING | Completed: 20" in (workplace.directory / "phases.log").read_text()


def test_exec_around_a_synthetic_run(workplace: Workplace) -> None:
    """The README's line without AIPerf."""
    line = words(starting("phase-bus exec --with metrics --with aggregator"))
    done = workplace.finish(workplace.start(*line))
    assert done.returncode == 0, done.stderr
    assert "== profiling ==" in done.stderr


def test_a_run_that_may_pass(workplace: Workplace) -> None:
    """The README's first line: every threshold passes, below the table of results."""
    done = workplace.finish(
        workplace.start(*words(starting("phase-bus exec --with aggregator --with logging")))
    )
    assert done.returncode == 0, done.stderr
    assert "both thresholds passed" in done.stderr
    assert "== profiling ==" in done.stderr


@pytest.mark.slow
def test_a_bus_that_stays(workplace: Workplace) -> None:
    """`up` with the example's YAML, and the commands beside it with the address in the environment."""
    (workplace.directory / "examples").mkdir()
    text = (ROOT / "examples" / "bus.yaml").read_text()
    given = starting("export PHASE_BUS_ADDRESS=").partition("=")[2]
    assert f"address: {given}" in text
    address = f"ipc://{workplace.directory}/bus"  # not the example's, so that tests do not meet
    (workplace.directory / "examples" / "bus.yaml").write_text(text.replace(given, address))
    said: list[str] = []
    up = workplace.start(*words(starting("phase-bus up -c examples/bus.yaml")))
    wait_for(lambda: "consumers ready" in workplace.stderr(up), "the bus")
    for start in (
        *("simulate --requests 500", "status", "runs", "report latest", "receipts latest"),
        *("report latest --format html", "simulate --sweep-id try", "report --sweep latest"),
    ):
        command = starting(f"phase-bus {start}")
        done = workplace.finish(workplace.start(*words(command), PHASE_BUS_ADDRESS=address))
        if start.startswith("simulate --requests"):
            wait_for(lambda: handled(workplace, address) >= 4, "all four consumers")
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "slow-phases" in said[1]
    assert "completed" in said[2]
    assert "Request Latency" in said[3]
    assert "records" in said[4]
    assert "distribution" in (workplace.directory / "report.html").read_text("utf-8")
    assert "== concurrency=8: 3 complete trials ==" in said[7]
    os.kill(up.pid, signal.SIGTERM)
    assert workplace.finish(up).returncode == 0


def handled(workplace: Workplace, address: str) -> int:
    """Return how many consumers have handled a run."""
    status = workplace.run("status", "--json", "--address", address)
    return sum(bool(client["handled_runs"]) for client in json.loads(status.stdout)["clients"])


@pytest.mark.slow
def test_the_consumer_in_ten_lines(workplace: Workplace) -> None:
    """The README's class, in a file of that name, warns when it should."""
    code = PAGE.files()["slow.py"]
    (workplace.directory / "slow.py").write_text(code)
    done = workplace.finish(workplace.start(*words(starting("phase-bus exec --with slow:SlowPhase"))))
    assert done.returncode == 0, done.stderr
    assert "slow phase" in done.stderr
    assert "profiling" in done.stderr


@pytest.mark.slow
def test_workers_that_share_the_work(workplace: Workplace) -> None:
    """Four within `exec`; and a group of two on a bus that stays, of which one is killed and replaced."""
    command = words(starting("phase-bus exec --with aggregator:output=shared.json"))
    done = workplace.finish(workplace.start(*command))
    assert done.returncode == 0, done.stderr
    (run,) = workplace.json("shared.json")["runs"].values()
    assert (run["final"], run["records"]) == (True, 2050)
    place = {"PHASE_BUS_ADDRESS": f"ipc://{workplace.directory}/bus"}
    bus = workplace.phase_bus("bus", "--data", str(workplace.directory / "journal"), **place)
    team = workplace.start(*words(starting("phase-bus consume aggregator --group team")), **place)
    members = wait_for(lambda: ready_members(workplace, place, 2), "the group")
    os.kill(members[0], signal.SIGKILL)
    wait_for(lambda: members[0] not in (now := ready_members(workplace, place, 2)) and now, "another one")
    assert "was ended by SIGKILL; starting another in its place" in workplace.stdout(team)
    workplace.finish(workplace.phase_bus("simulate", "--requests", "500", "--rate", "0", **place))
    wait_for(lambda: team_is_done(workplace, place), "the group's result")
    team.terminate()
    assert workplace.finish(team).returncode == 0
    bus.terminate()
    workplace.finish(bus)


def bus_status(workplace: Workplace, place: dict[str, str]) -> dict[str, Any]:
    """Return what `phase-bus status --json` says, nothing while there is no bus."""
    done = workplace.finish(workplace.phase_bus("status", "--json", **place))
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"clients": [], "groups": []}


def ready_members(workplace: Workplace, place: dict[str, str], count: int) -> list[int]:
    """Return the process ids of a group's members, once there are so many that have shares."""
    clients = bus_status(workplace, place)["clients"]
    pids = [c["pid"] for c in clients if c["group"] == "team" and c["state"] == "ready" and c["shares"]]
    return pids if len(pids) == count else []


def team_is_done(workplace: Workplace, place: dict[str, str]) -> bool:
    """Whether the group has handled a run, and all of it."""
    (group,) = bus_status(workplace, place)["groups"]
    return bool(group["handled_runs"]) and not group["incomplete_runs"]


@pytest.mark.slow
def test_hooks_and_processors(workplace: Workplace) -> None:
    """The README's hook writes its lines, the processor's result is logged, and both are listed."""
    done = workplace.finish(workplace.start(*words(starting("phase-bus exec --with hook:example_logging"))))
    assert done.returncode == 0, done.stderr
    assert "PHASE_COMPLETE: PROFILING" in (workplace.directory / "phases.log").read_text()
    assert "processor=example_metrics record_count=2000" in done.stderr
    listed = workplace.finish(workplace.start(*words(starting("phase-bus consumers --tag logging"))))
    assert "hook:example_logging" in listed.stdout
    assert "aggregator" not in listed.stdout


def test_a_package_of_ones_own(workplace: Workplace) -> None:
    """The README's command writes it; tests/e2e/test_scaffold.py tests what it writes."""
    done = workplace.finish(workplace.start(*words(starting("phase-bus new consumer"))))
    assert done.returncode == 0, done.stderr
    assert (workplace.directory / "slow-requests" / "pyproject.toml").exists()


def test_the_files_it_names_are_there() -> None:
    """Examples, guides and decisions."""
    named = re.findall(r"`((?:examples|docs|src|schemas)/[\w./-]*)`|\]\((docs/[\w./-]+)\)", README)
    assert len(named) > 6
    assert [name for pair in named for name in pair if name and not (ROOT / name).exists()] == []
    for path in (ROOT / "examples").glob("*"):
        assert f"examples/{path.name}" in README or path.name in NOT_EXAMPLES


@pytest.mark.aiperf
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_demos_at_a_time(tmp_path: Path) -> None:
    """What `make demo` runs, twice at once: both succeed, each in a directory of its own."""
    with ExitStack() as files:
        demos = [
            subprocess.Popen(
                [sys.executable, str(ROOT / "examples" / "demo.py")],
                stdout=files.enter_context((tmp_path / f"{number}.out").open("w")),
                stderr=subprocess.STDOUT,
            )
            for number in range(2)
        ]
        assert [demo.wait(180) for demo in demos] == [0, 0]
    summaries = set()
    for number in range(2):
        said = (tmp_path / f"{number}.out").read_text()
        (summary,) = re.findall(r"(demo-output/run-\S+/summary\.json) ", said)
        summaries.add(summary)
        assert "more than 8 s" in said  # the alert
    assert len(summaries) == 2
