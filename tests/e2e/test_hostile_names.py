"""Names with control characters and markup: every command works, and nothing of them reaches a terminal."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import pytest
from plotly.offline import get_plotlyjs

from phase_bus import Consumer, RunComplete
from phase_bus.testing import LiveBus
from tests.support.hostile import HOSTILE, RUN, harmful, publish_hostile_run
from tests.support.processes import ROOT
from tests.support.workplace import Workplace

# Several commands in one process, since they take longer to load than to run.
COMMANDS = """
import json, sys
from phase_bus.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as exit:
        print("== exit code", exit.code, flush=True)
"""
PUBLISH = """
import os
from phase_bus import Publisher
from tests.support.hostile import HOSTILE, publish_hostile_run
with Publisher(os.environ["PHASE_BUS_ADDRESS"], name=f"publisher {HOSTILE}") as publisher:
    publish_hostile_run(publisher)
"""


class Failing(Consumer):
    """Fails with what it is given."""

    async def on_run_complete(self, event: RunComplete) -> None:
        raise ValueError(event.run_id)


def commands_on(bus: LiveBus) -> list[list[str]]:
    """Return what is asked of a bus and its journal."""
    at, data = ["--address", bus.address], ["--data", str(bus.directory / "journal")]
    return [
        ["status", *at],
        ["status", *at, "--json"],
        ["tail", *at, "--from", "start", "--count", "6"],
        ["tail", *at, "--from", "start", "--count", "6", "--json"],
        ["runs", *data],
        ["runs", *data, "--json"],
        ["receipts", RUN, *data],
        ["receipts", f"not {HOSTILE}", *data],
        *(["report", RUN, *data, "--format", form] for form in ("text", "csv", "html", "json")),
        *(["report", "--sweep", "s", *data, "--format", form] for form in ("text", "csv")),
        ["journal", "info", *data],
        ["journal", "verify", *data],
        ["journal", "export", *data],
        ["dead-letters", "list", *data],
        ["dead-letters", "show", "1", *data],
        ["consume", f"module{HOSTILE}:Class"],
        [f"command{HOSTILE}"],
    ]


async def test_no_command_lets_anything_through(workplace: Workplace) -> None:
    """Of a run and a consumer that failed on it, with hostile names."""
    with LiveBus() as bus:
        with bus.publisher(f"publisher {HOSTILE}") as publisher:
            publish_hostile_run(publisher)
        await bus.run_consumer(Failing, name=f"consumer {HOSTILE}")
        commands = commands_on(bus)
        process = workplace.start(sys.executable, "-c", COMMANDS, json.dumps(commands))
        done = await asyncio.to_thread(workplace.finish, process)
    assert "Traceback (most recent call last)" not in done.stderr, done.stderr
    codes = re.findall(r"== exit code (\d+)\n", done.stdout)
    assert codes == [*"000000", "3", "2", *"00000000000", "2", "2"], done
    assert harmful(done.stdout.replace(get_plotlyjs(), "")) == set()
    assert harmful(done.stderr) == set()
    assert "\nphase-bus: all is well" not in done.stdout + done.stderr
    assert r"run x[/bold][red]:warning:\x1b[31m" in done.stdout


@pytest.mark.slow
def test_exec_and_its_consumers_let_nothing_through(workplace: Workplace) -> None:
    """What `exec` shows of such a run, and the files that its consumers write."""
    name = json.dumps(f"consumer {HOSTILE}".replace("/", "").replace("\x00", ""))
    (workplace.directory / "bus.yaml").write_text(
        f"consumers: [{{use: alerting, name: {name}}}, {{use: metrics}}, "
        "{use: logging, set: {log_file: phases.log, verbose: true}}, "
        "{use: aggregator, set: {output: summary.json, text: summary.txt}}]"
    )
    done = workplace.run(
        "exec", "-c", "bus.yaml", "--", sys.executable, "-c", PUBLISH, PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    texts = {name: (workplace.directory / name).read_text() for name in ("phases.log", "summary.txt")}
    texts |= {
        name: (workplace.directory / name).read_text()
        for name in ("summary.json", "phase-bus-metrics.json")
    }
    for where, text in {**texts, "the terminal": done.stderr}.items():
        assert harmful(text) == set(), where
        assert "\nphase-bus: all is well" not in text, where
    assert all(line.startswith("[") for line in texts["phases.log"].splitlines())
    assert RUN in workplace.json("summary.json")["runs"]
