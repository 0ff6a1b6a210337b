"""Each phase event exactly once, whatever is lost, doubled or late."""

from __future__ import annotations

from phase_bus.aiperf.mapping import CreditStats
from phase_bus.aiperf.phase_log import PhaseLog

BEFORE = CreditStats(phase_index=1, phase_name="profiling", phase_kind="profiling")


def stats(sent: int = 0, done: int = 0, cut: int = 0, *, step: int = 0, late: bool = False) -> CreditStats:
    return CreditStats(
        phase_index=1,
        phase_name="profiling",
        phase_kind="profiling",
        start_ns=10 if step >= 1 else None,
        sent_end_ns=20 if step >= 2 else None,
        requests_end_ns=30 if step >= 3 else None,
        requests_sent=sent,
        requests_completed=done,
        requests_cancelled=cut,
        grace_period_timeout_triggered=late,
    )


def kinds(log: PhaseLog, *sources: CreditStats) -> list[str]:
    return [event.kind for source in sources for event in log.update(source)]


def test_transitions_come_once_although_aiperf_tells_each_twice() -> None:
    start, sent, end = stats(step=1), stats(5, 3, step=2), stats(5, 5, step=3)
    log = PhaseLog("r")
    assert kinds(log, start, start, sent, sent, end, end) == [
        "phase_start",
        "phase_sending_complete",
        "phase_complete",
    ]


def test_what_was_missed_is_made_up_for_with_the_time_it_happened() -> None:
    events = PhaseLog("r").update(stats(5, 5, step=3))
    assert [(event.kind, event.ts_ns) for event in events] == [
        ("phase_start", 10),
        ("phase_sending_complete", 20),
        ("phase_complete", 30),
    ]


def test_higher_counts_are_progress_and_overtaken_ones_are_not() -> None:
    log = PhaseLog("r")
    assert kinds(log, stats(step=1), stats(9, 5, step=1), stats(3, 1, step=1)) == [
        "phase_start",
        "phase_progress",
    ]


def test_a_phase_that_hangs_goes_on_telling_its_progress() -> None:
    hanging = stats(8, 0, step=1)
    assert kinds(PhaseLog("r"), stats(step=1), hanging, hanging)[1:] == ["phase_progress"] * 2


def test_a_timeout_is_told_once_before_the_end_with_the_number_cut() -> None:
    log = PhaseLog("r")
    end = stats(10, 7, 3, step=3, late=True)
    events = [*log.update(end), *log.update(end)]
    assert [event.kind for event in events][-2:] == ["phase_timeout", "phase_complete"]
    assert events[-2].requests_cut == 3  # type: ignore[attr-defined]


def test_stats_of_a_phase_not_begun_are_told_as_progress_only() -> None:
    assert kinds(PhaseLog("r"), BEFORE) == ["phase_progress"]


def test_ended_wants_every_phase_begun_and_over() -> None:
    log = PhaseLog("r")
    assert not log.ended(0)
    log.update(stats(step=1))
    assert not log.ended(1)
    log.update(stats(1, 1, step=3))
    assert log.ended(1)
    assert not log.ended(2)
