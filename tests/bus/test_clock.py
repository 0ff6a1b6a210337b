"""When the system's clock is relied upon for what is old."""

from __future__ import annotations

import time

import pytest

from phase_bus.bus.clock import ClockWatch

_S = 10**9


class Clocks:
    """The system's clock and the one since boot, as a test wants them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.system_s, self.boot_s = 1_000_000.0, 100.0
        monkeypatch.setattr(time, "time_ns", lambda: int(self.system_s * _S))
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _: int(self.boot_s * _S))

    def go_on(self, seconds: float) -> None:
        self.system_s += seconds
        self.boot_s += seconds


def test_it_takes_ten_minutes_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start on, and after each jump ahead or back; a correction by little is none."""
    clocks = Clocks(monkeypatch)
    watch = ClockWatch()
    clocks.go_on(599)
    assert not watch.is_steady()
    clocks.go_on(1)
    assert watch.is_steady()
    for jump_s in (40 * 86400.0, -40 * 86400.0):
        clocks.system_s += jump_s
        assert not watch.is_steady()
        clocks.go_on(599)
        assert not watch.is_steady()
        clocks.go_on(1)
        assert watch.is_steady()
    clocks.system_s += 5
    assert watch.is_steady()


def test_the_clocks_of_this_machine_agree() -> None:
    """What is compared is there."""
    watch = ClockWatch()
    assert not watch.is_steady()
