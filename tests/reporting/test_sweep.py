"""The runs of a sweep taken together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event
from phase_bus.errors import ConfigError
from phase_bus.events import Records, RunStart
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.sweep import Sweep, _over_trials, identify
from phase_bus.reporting.sweep_text import sweep_text
from tests.support.journals import Phase, sweep_of
from tests.support.sweeps import sweep_document


def latencies(journal: Path, run_id: str) -> np.ndarray[Any, Any]:
    """Return the latencies of a run's profiling phase, from its records."""
    values = []
    with JournalReader(journal) as reader:
        for entry in reader.entries(run_id):
            event = decode_event(entry.topic, entry.payload)
            if isinstance(event, Records) and event.phase.name == "profiling":
                values.append(RecordBatch(event).values("request_latency"))
    return np.concatenate(values)


def test_mean_and_interval_over_trials_and_all_requests_pooled(tmp_path: Path) -> None:
    """Each number is that of numpy and of scipy's own interval."""
    document = sweep_document(tmp_path, *sweep_of("s", [2], trials=4))
    (variation,) = document["variations"]
    assert (variation["name"], variation["variation"]) == ("concurrency=2", {"concurrency": 2})
    assert (variation["trials"], variation["left_out"]) == (4, 0)
    (phase,) = variation["phases"]
    assert phase["name"] == "profiling"
    trials = [latencies(tmp_path, f"s-2-{trial}") for trial in range(4)]
    metric = phase["metrics"]["request_latency"]
    for name, of in (
        ("mean", np.mean),
        ("p50", lambda v: np.percentile(v, 50)),
        ("p99", lambda v: np.percentile(v, 99)),
    ):
        found, values = metric["statistics"][name], [of(trial) for trial in trials]
        assert found["n"] == 4
        assert found["values"] == pytest.approx(values)
        assert found["mean"] == pytest.approx(np.mean(values))
        low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
        assert (found["ci95_low"], found["ci95_high"]) == pytest.approx((low, high))
        assert metric["pooled"][name] == pytest.approx(of(np.concatenate(trials)))
    assert metric["pooled"]["count"] == sum(map(len, trials))
    rate = phase["metrics"]["request_throughput"]
    assert rate["pooled"] is None
    expected = [len(trial) / (10 + number / 10) for number, trial in enumerate(trials)]
    assert rate["statistics"]["value"]["values"] == pytest.approx(expected)


def test_one_trial_has_no_interval(tmp_path: Path) -> None:
    document = sweep_document(tmp_path, *sweep_of("s", [1], trials=1))
    found = document["variations"][0]["phases"][0]["metrics"]["request_latency"]["statistics"]["p99"]
    assert (found["n"], found["std"], found["ci95_low"], found["ci95_high"]) == (1, None, None, None)
    assert "n=1" in sweep_text(document)


def test_equal_trials_have_an_interval_without_width(tmp_path: Path) -> None:
    runs = sweep_of("s", [1], trials=2)
    for run in runs:
        run.seed = 5
    document = sweep_document(tmp_path, *runs)
    found = document["variations"][0]["phases"][0]["metrics"]["request_latency"]["statistics"]["p50"]
    assert found["ci95_low"] == found["mean"] == found["ci95_high"]


def test_what_is_not_complete_is_listed_and_counts_for_nothing(tmp_path: Path) -> None:
    runs = sweep_of("s", [1], trials=6)
    runs[1].status, runs[1].reason = "lost", "no sign of life"
    runs[2].missing = 7
    runs[3].dropped = {"records.00.x$": 2}
    runs[4].status = None
    document = sweep_document(tmp_path, *runs)
    assert [run["left_out"] for run in document["runs"]] == [
        None,
        "lost: no sign of life",
        "7 of 327 records missing",
        "2 events dropped by the publisher",
        "still running",
        None,
    ]
    (variation,) = document["variations"]
    assert (variation["trials"], variation["left_out"]) == (2, 4)
    metric = variation["phases"][0]["metrics"]["request_latency"]
    assert metric["statistics"]["mean"]["n"] == 2
    assert metric["pooled"]["count"] == sum(len(latencies(tmp_path, f"s-1-{trial}")) for trial in (0, 5))
    text = sweep_text(document)
    assert "\\n" not in text
    assert "\n\n== concurrency=1" in text
    assert "LEFT OUT: run s-1-1 (concurrency=1, trial 1): lost: no sign of life" in text
    assert "== concurrency=1: 2 complete trials, 4 left out ==" in text


def test_a_variation_without_a_complete_trial_is_there(tmp_path: Path) -> None:
    runs = sweep_of("s", [1], trials=1)
    runs[0].status = "failed"
    document = sweep_document(tmp_path, *runs)
    (variation,) = document["variations"]
    assert (variation["trials"], variation["left_out"], variation["phases"]) == (0, 1, [])
    assert "== concurrency=1: 0 complete trials, 1 left out ==" in sweep_text(document)


def test_warm_up_counts_only_if_asked_for(tmp_path: Path) -> None:
    document = sweep_document(tmp_path, *sweep_of("s", [1], trials=2), warmup=True)
    assert [phase["name"] for phase in document["variations"][0]["phases"]] == ["warmup", "profiling"]


def test_numbers_are_put_in_order(tmp_path: Path) -> None:
    """By number, neither as text nor in the order of the runs."""
    document = sweep_document(tmp_path, *sweep_of("s", [16, 2, 8], trials=1))
    assert [v["variation"]["concurrency"] for v in document["variations"]] == [2, 8, 16]


def test_failed_trials_have_no_latency_but_an_error_rate(tmp_path: Path) -> None:
    runs = sweep_of("s", [1], trials=2)
    for run in runs:
        run.phases = [Phase("profiling", 5, 50, error_rate=1.0)]
    document = sweep_document(tmp_path, *runs)
    metrics = document["variations"][0]["phases"][0]["metrics"]
    assert metrics["error_rate"]["statistics"]["value"]["mean"] == 1.0
    assert "request_latency" not in metrics


def test_what_tells_variations_apart() -> None:
    def name_and_key(**of: Any) -> tuple[bytes, str]:
        return identify(RunStart(run_id="r", **of))

    # AIPerf's label tells the trial, so parameters are what counts where there are any.
    first = name_and_key(label="run_0001", variation={"a": 1, "b": 2})
    second = name_and_key(label="run_0002", variation={"b": 2, "a": 1})
    assert first[0] == second[0]
    assert first[1] == "a=1, b=2"
    assert name_and_key(variation={"label": "base", "a": 1})[1] == "base"
    assert name_and_key(variation={"a": 1})[0] != name_and_key(variation={"a": 2})[0]
    assert name_and_key(label="one")[0] != name_and_key(label="two")[0]
    assert name_and_key(label="one")[1] == "one"
    assert name_and_key()[1] == "no variation"


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ConfigError, match=r"scipy.*pip install 'phase-bus\[report\]'"):
        Sweep("s")


def test_an_interval_ends_where_its_quantity_does() -> None:
    """Few errors in a few trials are no negative rate of errors, and many are not more than all."""
    few = _over_trials([0.0, 0.0, 0.02], "fraction")
    many = _over_trials([1.0, 0.98, 1.0], "fraction")
    assert (few["ci95_low"], few["ci95_high"]) == (0.0, pytest.approx(0.0353, abs=1e-4))
    assert (many["ci95_low"], many["ci95_high"]) == (pytest.approx(0.9647, abs=1e-4), 1.0)
    assert _over_trials([1e6, 9e6], "ns")["ci95_low"] == 0.0
    assert _over_trials([1e6, 9e6], "ns")["ci95_high"] > 50e6
