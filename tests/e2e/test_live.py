"""The live block in a real terminal: there where it is wanted, gone at the end, and nowhere else."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from phase_bus.harness.label import as_variable
from tests.support.screen import Screen
from tests.support.terminal import Terminal
from tests.support.workplace import Workplace, wait_for

OURS = (sys.executable, "-m", "phase_bus")
EXEC = (*OURS, "exec", "--with", "aggregator", "--")
RESERVED, GIVEN_BACK = "\x1bD", "\x1b[r"  # rows at the foot of the terminal
SIMULATE = (*OURS, "simulate", "-n", "800", "-r", "200", "--warmup", "0")


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def test_a_block_while_the_run_goes_on(workplace: Workplace) -> None:
    """It moves, and is gone at the end, with all rows given back; the result is below what was before."""
    with Terminal(workplace.directory, *EXEC, *SIMULATE) as terminal:
        assert terminal.finish() == 0, terminal.said
    shares = sorted({int(share) for share in re.findall(r" (\d+)%", terminal.said.split("Ledger")[0])})
    assert len(shares) > 2, terminal.said
    assert "p99" in terminal.said
    assert terminal.said.rindex(GIVEN_BACK) > terminal.said.rindex(RESERVED)
    screen = Screen(80, 24)
    screen.feed(re.sub(r"\x1b\[[?0-9;]*[hlm]", "", terminal.said.replace("\r\n", "\n")))
    shown = "\n".join(screen.lines)
    assert "━━" not in shown.split("== profiling ==")[0]
    assert (
        shown.index("profiling started") < shown.index("profiling complete") < shown.index("Ledger of run")
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["beside a program that may draw", "in CI", "never"])
def test_no_block(workplace: Workplace, where: str) -> None:
    """There are lines instead."""
    script = workplace.directory / "bench.sh"
    script.write_text(f"#!/bin/sh\nexec {' '.join(SIMULATE)}\n")
    script.chmod(0o755)
    command: tuple[str, ...] = (*EXEC, *SIMULATE)
    environment = {}
    match where:
        case "in CI":
            environment["CI"] = "true"
        case "never":
            command = (*OURS, "exec", "--live", "never", "--with", "aggregator", "--", *SIMULATE)
        case _:
            command = (*EXEC, str(script))
    with Terminal(workplace.directory, *command, **environment) as terminal:
        assert terminal.finish() == 0, terminal.said
    assert RESERVED not in terminal.said
    assert "req/s" in terminal.said


@pytest.mark.slow
@pytest.mark.parametrize("word", ["one-", "nightly"])
def test_watch_follows_a_run_from_another_terminal(workplace: Workplace, word: str) -> None:
    """By its first letters or its label, though it has begun before; it ends with the run."""
    bus = f"ipc://{workplace.directory}/bus"
    up = workplace.phase_bus("up", "--address", bus)
    wait_for(lambda: "consumers ready" in workplace.stderr(up), "the bus")
    simulate = workplace.start(*SIMULATE, "--run-id", "one-run", "--address", bus, **as_variable("nightly"))
    wait_for(lambda: "profiling started" in workplace.stderr(up), "the run")
    with Terminal(workplace.directory, *OURS, "watch", word, "--address", bus) as terminal:
        assert terminal.finish() == 0, terminal.said
    assert workplace.finish(simulate).returncode == 0
    assert "watching run one-run" in terminal.said
    assert "━" in terminal.said
    assert "phase-bus report one-run" in terminal.said
    os.kill(up.pid, signal.SIGTERM)
    assert workplace.finish(up).returncode == 0
