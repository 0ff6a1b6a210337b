"""The block at the foot of a terminal: what it shows, and that it is in nobody's way."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from phase_bus.aiperf.environment import leaves_terminal_alone
from phase_bus.core.control import ClientInfo, Status
from phase_bus.core.position import Position
from phase_bus.events import PhaseStats
from phase_bus.harness.course import Course, curve
from phase_bus.harness.foot import Foot
from phase_bus.harness.live import Live, _lags, is_free
from phase_bus.harness.progress import Phase, Progress
from tests.support.screen import Screen


def terminal(width: int = 40, height: int = 12) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, width=width, height=height, force_terminal=True), out


@pytest.fixture
def suspension() -> Iterator[None]:
    """Whatever a test leaves undone, Ctrl-Z is as it was."""
    before = signal.getsignal(signal.SIGTSTP)
    yield
    signal.signal(signal.SIGTSTP, before)


@pytest.mark.usefixtures("suspension")
def test_others_need_not_know_of_the_foot() -> None:
    """A command writes as it likes, also while lines are drawn and in the middle of one of its own."""
    console, out = terminal()
    foot, screen = Foot(console), Screen(40, 12)

    def shown() -> list[str]:
        screen.feed(out.getvalue())
        out.seek(0)
        out.truncate()
        return screen.rows

    out.write("before\n")
    foot.show([Text("----"), Text("one")])
    assert shown() == ["before", *[""] * 9, "----", "one"]
    for number in range(20):
        out.write(f"line {number}, begun")
        foot.show([Text("----"), Text(f"{number} " * 40)])
        out.write(" and ended\n")
    assert shown()[-2:] == ["----", ("19 " * 40)[:40].rstrip()]
    out.write("working ...")
    foot.show([Text("----"), Text("one"), Text("two"), Text("three")])
    out.write(" done\n")
    assert shown()[-4:] == ["----", "one", "two", "three"]
    foot.show([])
    out.write("after\n")
    shown()
    expected = ["before", *(f"line {n}, begun and ended" for n in range(20)), "working ... done", "after"]
    assert screen.lines == expected


@pytest.mark.usefixtures("suspension")
def test_what_has_not_changed_is_not_drawn() -> None:
    console, out = terminal()
    foot = Foot(console)
    foot.show([Text("one")])
    size = len(out.getvalue())
    foot.show([Text("one")])
    assert len(out.getvalue()) == size
    foot.clear()


@pytest.mark.usefixtures("suspension")
def test_a_terminal_that_changes_its_size() -> None:
    """The rows are those of the new one."""
    console, out = terminal(40, 12)
    foot = Foot(console)
    foot.show([Text("one")])
    console.size = (50, 20)
    foot.show([Text("one")])
    foot.clear()
    assert "\x1b[1;11r" in out.getvalue()
    assert "\x1b[1;19r" in out.getvalue()
    assert out.getvalue().endswith("\x1b[r\x1b8\x1b[J")


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_what_is_shown_of_a_phase(width: int) -> None:
    """Bar, rate, percentiles and curves, as wide as the terminal and no wider."""
    progress = Progress(terminal(width)[0])
    live = Live(progress, terminal(width)[0], lambda: pytest.fail("nobody is asked"))
    assert live.lines(width) == []
    phase = progress.phases["r", 0] = Phase("profiling")
    phase.stats = PhaseStats(start_ns=time.time_ns(), expected_requests=100, completed=50, errors=1)
    for _ in range(3):
        phase.course.add(10, 1.0, {"request_latency": [np.array([5e6, 7e6])], "time_to_first_token": []})
    lines = [line.plain for line in live.lines(width)]
    assert lines[0] == "─" * width
    assert lines[1].startswith("profiling  ")
    assert lines[1].endswith(" 50%  50 requests  1 error")
    assert len(lines[1]) == width
    assert lines[2].split() == ["requests/s", "10.0", "███"]
    assert lines[3].split() == ["latency", "p50", "6.0", "p99", "7.0", "ms", "███"]
    assert len(lines) == 4


def test_a_phase_without_an_end_in_sight() -> None:
    """It has a time instead of a bar; a long name is cut, as is a number of phases."""
    progress = Progress(terminal(80)[0])
    live = Live(progress, terminal(80)[0], lambda: pytest.fail("nobody is asked"))
    for number in range(5):
        progress.phases["r", number] = Phase(f"a-phase-with-a-very-long-name-{number}")
    lines = [line.plain for line in live.lines(80)]
    assert lines[1].startswith("a-phase-with-a-ver… 0 s  0 requests")
    assert lines[-1] == "and 2 more phases"


def test_a_curve() -> None:
    assert curve([0, 1, 4, math.nan, 8], 10) == "▁▂▅ █"
    assert curve([1, 2, 3], 2) == "▆█"
    assert curve([], 10) == curve([1.0], 0) == ""
    assert curve([0, 0], 5) == "▁▁"


def test_percentiles_are_those_of_late() -> None:
    course = Course(["x"])
    assert course.rate() is None
    assert course.percentiles("x") is None
    for step in range(30):
        course.add(step, 2.0, {"x": [np.full(4, float(step))]})
    assert course.percentiles("x") == (24.5, 29.0)
    assert course.rate() == 13.5
    assert len(course.medians["x"]) == 30


def test_who_is_behind() -> None:
    """The slowest member stands for its group."""

    def client(name: str, offset: int, group: str = "") -> ClientInfo:
        position = Position("s" * 32, offset)
        return ClientInfo(
            client_id=name,
            role="consumer",
            name=name,
            pid=1,
            host="h",
            state="ready",
            position=position,
            group=group,
        )

    clients = (client("a", 90), client("w1", 80, "team"), client("w2", 70, "team"))
    assert _lags(Status(bus_id="b", pid=1, addresses=(), uptime_s=1.0, offset=100, clients=clients)) == {
        "a": 10,
        "team": 30,
    }


@pytest.mark.parametrize(
    ("command", "alone"),
    [
        ("aiperf profile --ui none -m x", True),
        ("aiperf profile --ui=none", True),
        ("aiperf profile --ui none -v", False),
        ("aiperf profile --ui simple", False),
        ("aiperf profile", False),
        ("python3 -m aiperf profile --ui none", True),
        ("phase-bus simulate", True),
        ("python3.11 -m phase_bus simulate -n 5", True),
        ("phase-bus attach", False),
        ("./bench.sh --ui none", False),
    ],
)
def test_who_leaves_the_terminal_alone(command: str, alone: bool) -> None:
    assert leaves_terminal_alone(command.split()) is alone


def test_where_there_is_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a pipe, nor in CI, nor where there is no room."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_free(terminal(80, 24)[0])
    assert not is_free(terminal(80, 10)[0])
    assert not is_free(Console(file=StringIO(), width=80, height=24))
    monkeypatch.setenv("CI", "true")
    assert not is_free(terminal(80, 24)[0])
