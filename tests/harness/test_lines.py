"""Lines that are held back while a program has the screen."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest
from rich.text import Text

from phase_bus.core.console import PlainConsole
from phase_bus.harness import lines as module
from phase_bus.harness.lines import Lines
from tests.support.screen import Screen


@pytest.fixture
def out() -> StringIO:
    return StringIO()


@pytest.fixture
def lines(out: StringIO) -> Lines:
    return Lines(PlainConsole(file=out, width=200))


def test_they_come_at_the_end_in_order(
    lines: Lines, out: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With those of the log, also if the program could not be run at all."""
    monkeypatch.setattr(sys, "stderr", out)
    handler = logging.StreamHandler(out)
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        lines.show(Text("before"))
        with suppress(FileNotFoundError), lines.held():
            lines.show(Text("one"))
            logging.getLogger("test").warning("two")
            lines.show(Text("three"))
            assert out.getvalue() == "before\n"
            Path("/no/such/program").stat()
        logging.getLogger("test").warning("after")
    finally:
        logger.removeHandler(handler)
    assert out.getvalue() == "before\none\ntwo\nthree\nafter\n"


def test_those_that_are_too_many_are_counted(
    lines: Lines, out: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest are kept."""
    with lines.held():
        for number in range(module.MOST_HELD + 5):
            lines.show(Text(f"line {number}"))
    shown = out.getvalue().splitlines()
    assert shown[0] == "(5 earlier lines are left out)"
    assert shown[1] == "line 5"
    assert len(shown) == module.MOST_HELD + 1


def test_a_line_that_a_command_has_begun_is_left(out: StringIO) -> None:
    """Ours begins at the next one, and nothing of it is lost; where none is begun it begins there."""
    lines = Lines(PlainConsole(file=out, width=40, force_terminal=True, color_system=None))
    out.write("41% |####")
    lines.show(Text("ours"))
    lines.show(Text("more"))
    out.write("x" * 40)
    lines.show(Text("again"))
    screen = Screen(width=40)
    screen.feed(out.getvalue())
    assert screen.lines == ["41% |####", "ours", "more", "x" * 40, "again"]


def test_alerts_are_repeated(lines: Lines, out: StringIO) -> None:
    """All there were, or the last ones with their number."""
    lines.repeat_alerts()
    assert out.getvalue() == ""
    for number in range(30):
        lines.show(Text(f"[warning] number {number} alert=slow_phase"))
    lines.show(Text("no more"))
    lines.repeat_alerts()
    shown = out.getvalue().splitlines()[31:]
    assert shown[:2] == ["", "Alerts (30, the last 20):"]
    assert shown[2] == "[warning] number 10 alert=slow_phase"
    assert len(shown) == 22
