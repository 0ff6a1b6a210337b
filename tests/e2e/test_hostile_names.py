"""Names with control characters and markup: every command works, and nothing of them reaches a terminal."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from phase_bus import Consumer, Publisher, RunComplete, run_consumer
from phase_bus.bus import limits
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.hostile import HOSTILE, MARKUP, RUN, harmful, publish_hostile_run
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
from tests.support.hostile import MARKUP, publish_hostile_run
with Publisher(os.environ["PHASE_BUS_ADDRESS"], name=f"publisher {MARKUP}") as publisher:
    publish_hostile_run(publisher, f"run {MARKUP}")
"""


class Failing(Consumer):
    """Fails with what it is given."""

    async def on_run_complete(self, event: RunComplete) -> None:
        raise ValueError(event.run_id)


def commands_on(bus: DurableBus) -> list[list[str]]:
    """Return what is asked of a bus and its journal."""
    at, data = ["--address", bus.address], ["--data", str(bus.data)]
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


async def fill(bus: DurableBus) -> None:
    """Have a run in the journal, and a consumer that failed on it, with hostile names."""
    consumer = asyncio.create_task(run_consumer(Failing(), bus.address, name=f"consumer {HOSTILE}"))
    with Publisher(bus.address, name=f"publisher {HOSTILE}") as publisher:
        publish_hostile_run(publisher)
        assert await asyncio.to_thread(publisher.flush, 20)
    await until(lambda: any(client.info.handled_runs for client in bus.bus._clients.by_id.values()))
    consumer.cancel()
    with suppress(asyncio.CancelledError):
        await consumer


async def test_no_command_lets_anything_through(
    workplace: Workplace, ipc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a journal from a time when a bus took any name."""
    with monkeypatch.context() as patch:
        patch.setattr("phase_bus.bus.limits.printable", str)
        with DurableBus(ipc_dir, tmp_path / "journal") as bus:
            await fill(bus)
    limits._problem_of.cache_clear()
    with DurableBus(ipc_dir, tmp_path / "journal") as bus:
        commands = commands_on(bus)
        process = workplace.start(sys.executable, "-c", COMMANDS, json.dumps(commands))
        done = await asyncio.to_thread(workplace.finish, process)
    assert "Traceback (most recent call last)" not in done.stderr, done.stderr
    codes = re.findall(r"== exit code (\d+)\n", done.stdout)
    assert codes == [*"000000", "3", "2", *"00000000000", "2", "2"], done
    assert harmful(done.stdout) == set()
    assert harmful(done.stderr) == set()
    assert "\nphase-bus: all is well" not in done.stdout + done.stderr
    assert r"run x[/bold][red]:warning:\x1b[31m" in done.stdout


@pytest.mark.slow
def test_exec_and_its_consumers_let_nothing_through(workplace: Workplace) -> None:
    """What `exec` shows of such a run, and the files that its consumers write."""
    name = json.dumps(f"consumer {MARKUP}".replace("/", ""))
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
    assert f"run {MARKUP}" in workplace.json("summary.json")["runs"]
