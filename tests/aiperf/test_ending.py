"""When a run is over: the orders of things that were measured on AIPerf."""

from __future__ import annotations

from phase_bus.aiperf.ending import QUIET_S, RunEnd
from phase_bus.aiperf.mapping import Outcome

DONE = Outcome("completed")
CANCELLED = Outcome("cancelled", "on request")


def test_a_natural_end_is_told_with_the_results() -> None:
    end = RunEnd()
    assert end.take(0.0) is None
    end.all_records_in()
    assert end.take(1.0) is None
    end.results(DONE, 1.0)
    assert end.take(1.0) == DONE


def test_an_interrupted_run_waits_until_no_record_came_for_a_while() -> None:
    end = RunEnd()
    end.results(CANCELLED, 1.0)
    assert end.record(1.0 + 0.9 * QUIET_S)
    assert end.take(1.0 + 1.8 * QUIET_S) is None
    assert end.take(1.0 + 2.0 * QUIET_S) == CANCELLED


def test_stop_ends_it_with_the_results_or_with_a_guess() -> None:
    guess = Outcome("failed", "guessed")
    assert RunEnd().take(1.0, guess) == guess
    end = RunEnd()
    end.results(CANCELLED, 1.0)
    assert end.take(1.0, guess) == CANCELLED


def test_the_end_is_told_once_and_late_records_are_counted() -> None:
    end = RunEnd()
    end.results(DONE, 1.0)
    assert end.take(2.0) == DONE
    assert end.take(3.0) is None
    assert end.take(3.0, DONE) is None
    assert not end.record(3.0)
    assert not end.record(3.1)
    assert end.late == 2
