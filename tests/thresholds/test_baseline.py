"""Limits that are a baseline's value, against numbers computed apart from it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phase_bus import RecordBatch
from phase_bus.errors import ConfigError, JournalError
from phase_bus.events import Records
from phase_bus.journal.baselines import RunSource, set_baseline
from phase_bus.journal.reader import JournalReader
from phase_bus.thresholds import Threshold, judge_journal, resolve, resolve_all
from phase_bus.thresholds.threshold import BaselineLimit, Metric, Quantity, Rate
from tests.support.journals import Made, Phase, write_journal

TTFT = Metric("time_to_first_token", "p90")
RUNS = [
    Made("a", [Phase("warmup", 1.0, 50, 900.0, kind="warmup"), Phase("main", 10.0, 1000, 100.0)], seed=1),
    Made("b", [Phase("main", 10.0, 1500, 110.0, error_rate=0.2)], seed=2),
    Made("c", [Phase("main", 10.0, 2000, 150.0)], seed=3),
]


@pytest.fixture(autouse=True)
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The baseline `v1` of the three runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    journal = write_journal(tmp_path / "runs", *RUNS)
    return set_baseline("v1", [RunSource(journal, run.run_id) for run in RUNS])


def held(quantity: Quantity, limit: float | BaselineLimit, **more: Any) -> Threshold:
    return Threshold(text="t", quantity=quantity, operator="<", limit=limit, **more)


def p90_ns(run: Made) -> float:
    """Return a run's, from what was published."""
    batches = [e for e in run.events() if isinstance(e, Records) and e.phase.kind == "profiling"]
    values = np.concatenate([RecordBatch(each).values("time_to_first_token") for each in batches])
    return float(np.percentile(values, 90))


def test_the_mean_over_the_runs_times_a_factor_plus_an_amount() -> None:
    """Of the phase as a whole, whatever window and time the threshold has."""
    limit = BaselineLimit("v1", factor=1.05, plus=1e6)
    given = held(TTFT, limit, over_s=3.0, for_s=2.0, at_least=10_000, abort=True)
    resolved = resolve(given)
    expected = np.mean([p90_ns(run) for run in RUNS]) * 1.05 + 1e6
    assert isinstance(resolved.limit, float)
    assert resolved.limit == pytest.approx(expected, rel=0.006)  # half the width of a bin, twice over
    assert resolved == held(TTFT, resolved.limit, over_s=3.0, for_s=2.0, at_least=10_000, abort=True)


def test_rates_and_phases() -> None:
    """Each threshold's own; numbers stay as they are, and so does the order."""
    rate, number = held(Rate("request_throughput"), BaselineLimit("v1")), held(TTFT, 5.0)
    in_warmup = held(Rate("requests"), BaselineLimit("v1"), phase="warmup")
    throughput, same, warmed = resolve_all([rate, number, in_warmup])
    successes = [1000, 1500 - sum(len(e.errors) for e in RUNS[1].events() if isinstance(e, Records)), 2000]
    assert throughput.limit == pytest.approx(np.mean(successes) / 10.0, rel=1e-6)
    assert same == number
    assert warmed.limit == 50, "the only run that has such a phase"


def test_what_a_baseline_is_held_to_itself(baseline: Path) -> None:
    """Its slowest run fails at its mean, its fastest one passes."""
    threshold = resolve(held(TTFT, BaselineLimit("v1")))
    with JournalReader(baseline) as reader:
        states = [judge_journal(reader, run.run_id, [threshold])[-1].state for run in RUNS]
    assert (states[0], states[-1]) == ("passed", "failed")


def test_what_there_is_not() -> None:
    """Said in one line."""
    with pytest.raises(ConfigError, match="no baseline 'v2'; known: v1"):
        resolve(held(TTFT, BaselineLimit("v2")))
    for nothing in (
        held(Metric("none", "p50"), BaselineLimit("v1")),
        held(TTFT, BaselineLimit("v1"), phase="x"),
    ):
        with pytest.raises(ConfigError, match="no run of baseline 'v1' has data for it in phase"):
            resolve(nothing)


def test_a_baseline_that_was_damaged(baseline: Path) -> None:
    """What is left of it is no limit to hold a build against."""
    with closing(sqlite3.connect(baseline)) as db, db:
        damaged = "UPDATE events SET payload = zeroblob(length(payload)) WHERE offset = 10"
        assert db.execute(damaged).rowcount == 1
    with pytest.raises(JournalError, match=r"1 event is damaged and left out \(offset 10\)"):
        resolve(held(TTFT, BaselineLimit("v1")))
