"""Which verdict interrupts a command, and what stands for one that nobody gave."""

from __future__ import annotations

from typing import Any

import pytest

from phase_bus.events import RunComplete, Verdict
from phase_bus.harness.verdicts import VerdictWatch, are_final, final_verdicts
from phase_bus.reporting.verdicts import NO_FINAL, all_passed


def verdict(run_id: str = "now", state: str = "failed", **fields: Any) -> Verdict:
    """Return a verdict of the consumer that exec starts, which ends the run."""
    given = {"producer": "thresholds", "threshold": "a < 1", "abort": True} | fields
    return Verdict(run_id=run_id, state=state, **given)  # type: ignore[arg-type]


def watch() -> VerdictWatch:
    """Return a watch over a command that has begun."""
    watching = VerdictWatch(["thresholds"])
    watching.begin(["before"])
    return watching


async def test_the_first_failure_that_is_to_end_the_run_does() -> None:
    watching = watch()
    first, second = verdict(), verdict(threshold="b < 1")
    for event in (first, second):
        await watching.on_verdict(event)
    assert watching.aborting.is_set()
    assert watching.cause is first
    assert watching.end()


@pytest.mark.parametrize(
    "other",
    [
        verdict(abort=False),
        verdict(state="passed"),
        verdict(state="unknown"),
        verdict(final=True),  # the run is over
        verdict("before"),  # told again of a run of an earlier command, in the same journal
        verdict("over"),
        verdict(producer="somebody"),
    ],
)
async def test_no_other_verdict_does(other: Verdict) -> None:
    watching = watch()
    await watching.on_run_complete(RunComplete(run_id="over", status="completed"))
    await watching.on_verdict(other)
    assert not watching.aborting.is_set()
    assert not watching.end()


async def test_nothing_is_ended_without_a_command() -> None:
    watching = VerdictWatch(["thresholds"])
    await watching.on_verdict(verdict())
    watching.begin(())
    assert not watching.end()
    await watching.on_verdict(verdict())
    assert watching.cause is None


def final(run_id: str, threshold: str, producer: str = "thresholds") -> Verdict:
    """Return a final verdict that is a pass."""
    return verdict(run_id, "passed", threshold=threshold, producer=producer, final=True)


def test_verdicts_are_by_run_and_in_the_order_of_the_thresholds() -> None:
    found = [final("2", "b"), final("2", "c", "mine"), final("2", "a"), final("1", "a"), final("1", "b")]
    found.append(final("1", "c", "mine"))
    judged = {"thresholds": ["a", "b"], "mine": ()}
    verdicts = final_verdicts(found, ["1", "2"], judged)
    assert [v.run_id + v.threshold for v in verdicts] == ["1a", "1b", "1c", "2a", "2b", "2c"]
    assert all_passed(verdicts)
    assert are_final(found, ["1", "2"], judged)


def test_what_nobody_judged_is_unknown() -> None:
    """A consumer that died before the end, or before the run."""
    found = [verdict("1", "passed", threshold="a")]
    judged = {"thresholds": ["a"]}
    assert not are_final(found, ["1"], judged)
    verdicts = final_verdicts(found, ["1", "2"], judged)
    assert [v.state for v in verdicts] == ["unknown"] * 2
    assert [v.reason for v in verdicts] == [NO_FINAL, "consumer thresholds gave no verdict"]
    (no_run,) = final_verdicts([], [], judged)
    assert (no_run.run_id, no_run.state, no_run.reason) == ("", "unknown", "no run was seen")
    (silent,) = final_verdicts([], ["1"], {"mine": ()})
    assert (silent.threshold, silent.state) == ("what mine was to judge", "unknown")
