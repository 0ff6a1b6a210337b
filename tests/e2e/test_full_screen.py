"""``exec`` beside a program that takes the whole screen: nothing is over it, nothing vanishes with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.terminal import ENTER, LEAVE, Terminal
from tests.support.workplace import Workplace

EXEC = (sys.executable, "-m", "phase_bus", "exec")
ALERTING = ("--with", "alerting:threshold_s=0")
# AIPerf as far as the terminal is concerned.
DASHBOARD = f"""#!{sys.executable}
import subprocess, sys
print("{ENTER!s}", end="", flush=True)
subprocess.run([sys.executable, "-m", "phase_bus", "simulate", "-n", "60", "-r", "100", "--warmup", "0"],
               check=True, stderr=subprocess.DEVNULL)
print("{LEAVE!s}results", flush=True)
sys.exit(5)
"""


@pytest.fixture
def dashboard(workplace: Workplace) -> Path:
    """A program called aiperf."""
    path = workplace.directory / "aiperf"
    path.write_text(DASHBOARD)
    path.chmod(0o755)
    return path


def test_what_there_is_to_say_comes_after_the_screen(workplace: Workplace, dashboard: Path) -> None:
    """All of it, in order, the alert twice; the exit code is the command's."""
    with Terminal(workplace.directory, *EXEC, *ALERTING, "--", str(dashboard), "profile") as terminal:
        code = terminal.finish()
    assert code == 5, terminal.said
    before, during, after = re.split(r"\x1b\[\?1049[hl]", terminal.said)
    assert "comes after its end" in before
    assert during == ""
    assert after.startswith("results\r\n")
    places = [after.find(word) for word in ("profiling started", "profiling complete", "Alerts (1)")]
    assert -1 not in places, after
    assert places == sorted(places)
    assert after.count("alert=") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hold", "arguments", "held"),
    [
        ("never", ("profile",), False),
        ("auto", ("profile", "--ui", "none"), False),
        ("always", ("x",), True),
    ],
)
def test_who_wants_it_otherwise(
    workplace: Workplace, dashboard: Path, hold: str, arguments: tuple[str, ...], held: bool
) -> None:
    command = (*EXEC, *ALERTING, "--hold-output", hold, "--", str(dashboard), *arguments)
    with Terminal(workplace.directory, *command) as terminal:
        assert terminal.finish() == 5, terminal.said
    _, during, after = re.split(r"\x1b\[\?1049[hl]", terminal.said)
    assert ("profiling started" in during) is not held
    assert ("profiling started" in after) is held
    assert "Alerts (1)" in after


@pytest.mark.slow
@pytest.mark.aiperf
def test_the_real_dashboard(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]]
) -> None:
    """AIPerf as it is without --ui in a terminal: its screen is its own."""
    command = aiperf(mock_llm("--tokens", "16"), "--request-count", "40")
    del command[command.index("--ui") : command.index("--ui") + 2]
    with Terminal(workplace.directory, *EXEC, *ALERTING, "--", *command, PYTHONPATH=str(ROOT)) as terminal:
        assert terminal.finish(100.0) == 0, terminal.said[-4000:]
    _, *rest = terminal.said.split(ENTER)
    assert rest, "no full screen was seen"
    during, _, after = rest[-1].rpartition(LEAVE)
    assert "phase-bus" not in during.replace("phase-bus-", "")
    assert "profiling started" in after
    assert "Alerts (" in after
