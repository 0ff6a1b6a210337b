"""What a comparison says of runs, held against numpy and scipy over the records themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from phase_bus.comparison import (
    DEFAULT_MEASURES,
    Comparison,
    Measure,
    MeasuredRun,
    NotComparableError,
    Side,
    compare,
    parse_measures,
)
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event
from phase_bus.errors import ConfigError
from phase_bus.events import (
    EventBase,
    PhasePlan,
    PhaseRef,
    PhasesConfigured,
    Receipt,
    Records,
    TopicReceipt,
)
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.comparison_text import comparison_text
from phase_bus.reporting.measured import measure_run
from tests.support.journals import T0, Made, Phase, write_journal

PROFILING = PhaseRef("profiling", "profiling", 1)


def made(name: str, slower: float = 1.0, seed: int = 0, **more: Any) -> Made:
    """Return a run with a warm-up that must not count."""
    phases = [
        Phase("warmup", 1.0, 30, 5000.0, kind="warmup"),
        Phase("profiling", 10.0 * slower, 600, 100.0 * slower, 0.1, 0.02),
    ]
    return Made(name, phases, seed=seed, **{"start": {"models": ("m",)}, **more})


def side_of(journal: Path, name: str, runs: Iterable[Made], measures: Sequence[Measure]) -> Side:
    return Side(name, tuple(measure_run(journal, run.run_id, measures, blocks=True) for run in runs))


def compared(
    directory: Path,
    base: Sequence[Made],
    candidate: Sequence[Made],
    measures: Sequence[Measure] = DEFAULT_MEASURES,
    **options: Any,
) -> Comparison:
    journal = write_journal(directory, *base, *candidate)
    sides = (side_of(journal, "base", base, measures), side_of(journal, "candidate", candidate, measures))
    return compare(*sides, measures, **options)


class Truth:
    """What a run's profiling records say, read one by one."""

    def __init__(self, journal: Path, run_id: str) -> None:
        self.columns: dict[str, npt.NDArray[Any]] = {}
        self.requests = self.failed = 0
        values: dict[str, list[npt.NDArray[Any]]] = {}
        with JournalReader(journal) as reader:
            for entry in reader.entries(run_id):
                event = decode_event(entry.topic, entry.payload)
                if isinstance(event, Records) and event.phase.kind == "profiling":
                    batch = RecordBatch(event)
                    self.requests += len(batch)
                    self.failed += len(batch.errors)
                    for name in batch.metrics:
                        values.setdefault(name, []).append(batch.values(name))
        self.columns = {name: np.concatenate(pieces) for name, pieces in values.items()}


def truths(journal: Path, runs: Iterable[Made]) -> list[Truth]:
    return [Truth(journal, run.run_id) for run in runs]


def test_values_and_intervals_are_those_of_numpy_and_scipy(tmp_path: Path) -> None:
    base = [made(f"a{n}", 1 + n / 500, seed=n) for n in range(4)]
    candidate = [made(f"b{n}", 1.05 + n / 500, seed=10 + n) for n in range(4)]
    found = compared(tmp_path, base, candidate)
    ours, theirs = truths(tmp_path, base), truths(tmp_path, candidate)
    by_key = {f"{each.metric}:{each.statistic}": each for each in found.metrics}
    assert len(by_key) == 9
    level = 1 - 0.05 / 9
    for metric in ("request_latency", "time_to_first_token", "inter_token_latency"):
        for p in (50, 99):
            each = by_key[f"{metric}:p{p}"]
            values = [
                [float(np.percentile(run.columns[metric], p)) for run in side] for side in (ours, theirs)
            ]
            assert each.base == pytest.approx(values[0])
            assert each.candidate == pytest.approx(values[1])
            logs = [np.log(side) for side in values]
            interval = stats.ttest_ind(logs[1], logs[0]).confidence_interval(level)
            assert (each.low_pct, each.high_pct) == pytest.approx(
                (100 * np.expm1(interval.low), 100 * np.expm1(interval.high))
            )
            assert each.difference_pct == pytest.approx(100 * np.expm1(logs[1].mean() - logs[0].mean()))
    seconds = [10.0 * (1 + n / 500) for n in range(4)]
    answered = [run.requests - run.failed for run in ours]
    assert by_key["request_throughput:"].base == pytest.approx(
        [count / s for count, s in zip(answered, seconds, strict=True)]
    )
    tokens = [run.columns["output_sequence_length"].sum() for run in ours]
    assert by_key["output_token_throughput:"].base == pytest.approx(
        [count / s for count, s in zip(tokens, seconds, strict=True)]
    )
    rates = by_key["error_rate:"]
    assert rates.base == pytest.approx([run.failed / run.requests for run in ours])
    assert rates.in_points
    assert by_key["request_latency:p50"].verdict == "regressed"
    assert found.verdict == "regressed"


def test_the_same_input_gives_the_same_output(tmp_path: Path) -> None:
    base, candidate = (
        [made(f"a{n}", seed=n) for n in range(3)],
        [made(f"b{n}", seed=9 + n) for n in range(3)],
    )
    assert (
        compared(tmp_path / "1", base, candidate).metrics
        == compared(tmp_path / "2", base, candidate).metrics
    )


def test_the_four_words() -> None:
    def verdict(
        candidate: Sequence[float], measure: str = "request_latency:p50", margin: float = 2.0
    ) -> str:
        (chosen,) = parse_measures([measure])
        one, other = [
            Side(
                name,
                tuple(
                    MeasuredRun(run_id=f"{name}{n}", journal="", values={chosen.key: v})
                    for n, v in enumerate(of)
                ),
            )
            for name, of in (("a", (100.0, 100.1, 99.9)), ("b", candidate))
        ]
        return compare(one, other, [chosen], margins_pct={"": margin}).verdict

    assert verdict((110.0, 110.1, 109.9)) == "regressed"
    assert verdict((90.0, 90.1, 89.9)) == "improved"
    assert verdict((110.0, 110.1, 109.9), "request_throughput") == "improved"
    assert verdict((90.0, 90.1, 89.9), "request_throughput") == "regressed"
    assert verdict((110.0, 110.1, 109.9), "output_sequence_length:p50:higher") == "improved"
    assert verdict((101.0, 101.1, 100.9)) == "equivalent"
    assert verdict((101.0, 101.1, 100.9), margin=0.5) == "regressed"
    assert verdict((90.0, 100.0, 110.0)) == "cannot tell"


def test_percentiles_from_a_sketch_are_as_uncertain_as_that_is() -> None:
    """Bins of 0.54 % make runs alike that are not, and apart what is nearly the same."""
    (chosen,) = parse_measures(["request_latency:p50"])

    def side(name: str, value: float) -> Side:
        runs = (
            MeasuredRun(run_id=f"{name}{n}", journal="", values={chosen.key: value}, inexact=(chosen.key,))
            for n in range(3)
        )
        return Side(name, tuple(runs))

    (found,) = compare(side("a", 100.0), side("b", 100.5), [chosen], margins_pct={"": 0.9}).metrics
    assert found.verdict == "cannot tell"
    assert found.low_pct is not None
    assert found.high_pct is not None
    assert found.low_pct == pytest.approx(0.5 - 0.54, abs=0.01)
    assert found.high_pct == pytest.approx(0.5 + 0.54, abs=0.01)
    assert compare(side("a", 100.0), side("b", 100.0), [chosen]).verdict == "equivalent"
    assert compare(side("a", 100.0), side("b", 103.0), [chosen]).verdict == "regressed"


def test_copies_of_a_run_tell_nothing() -> None:
    (chosen,) = parse_measures(["request_latency:p50"])

    def side(name: str, value: float) -> Side:
        runs = (MeasuredRun(run_id=f"{name}{n}", journal="", values={chosen.key: value}) for n in range(3))
        return Side(name, tuple(runs))

    found = compare(side("a", 100.0), side("b", 150.0), [chosen])
    assert found.verdict == "cannot tell"
    assert "the very same latency p50" in " ".join(comparison_text(found).split())
    assert compare(side("a", 100.0), side("b", 100.0), [chosen]).verdict == "equivalent"


def test_what_cannot_be_told_says_how_many_runs_would(tmp_path: Path) -> None:
    """With so many runs the same difference and spread are told indeed."""
    (chosen,) = parse_measures(["request_latency:p50"])
    random = np.random.default_rng(4)

    def told_by(runs: int) -> Comparison:
        one, other = [
            Side(
                name,
                tuple(
                    MeasuredRun(run_id=f"{name}{n}", journal="", values={chosen.key: float(np.exp(v))})
                    for n, v in enumerate(random.normal(mean, 0.02, runs))
                ),
            )
            for name, mean in (("a", 0.0), ("b", 0.04))
        ]
        return compare(one, other, [chosen])

    needed = []
    for _ in range(200):
        each = told_by(3).metrics[0]
        if each.verdict == "cannot tell" and each.runs_to_tell is not None:
            assert each.runs_to_tell > 3
            needed.append(each.runs_to_tell)
    typical = int(np.median(needed))
    told = [told_by(typical).verdict == "regressed" for _ in range(200)]
    assert np.mean(told) > 0.5


def test_several_profiling_phases_count_together_without_the_pauses(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> Made:
        return Made(name, [Phase("low", 4.0, 100), Phase("high", 6.0, 500, pause_s=100.0)], seed=seed)

    base, candidate = [run("a1", 1), run("a2", 2)], [run("b1", 3)]
    found = compared(tmp_path, base, candidate)
    by_key = {f"{each.metric}:{each.statistic}": each for each in found.metrics}
    assert by_key["request_throughput:"].base == pytest.approx([60.0, 60.0])
    (expected,) = [np.percentile(t.columns["request_latency"], 99) for t in truths(tmp_path, base[:1])]
    assert by_key["request_latency:p99"].base[0] == pytest.approx(expected)


def test_one_run_a_side_cannot_tell_and_has_the_interval_within_the_runs(tmp_path: Path) -> None:
    base, candidate = [made("a", seed=1)], [made("b", 1.5, seed=2)]
    found = compared(tmp_path, base, candidate)
    assert {each.verdict for each in found.metrics} == {"cannot tell"}
    assert all(each.within_runs and each.runs_to_tell is None for each in found.metrics)
    each = found.metrics[0]
    blocks = []
    for run, slower in zip((*base, *candidate), (1.0, 1.5), strict=True):
        (truth,) = truths(tmp_path, [run])
        ends = truth.columns["max_response_timestamp"]
        start, width = T0 + 1_000_000_000, 1e9 * slower
        places = ((ends - start) // width).astype(int).clip(0, 9)
        latency = truth.columns["request_latency"]
        blocks.append([np.log(np.percentile(latency[places == place], 50)) for place in range(10)])
    half = stats.ttest_ind(blocks[1], blocks[0]).confidence_interval(1 - 0.05 / 9)
    width = (half.high - half.low) / 2
    estimate = np.log(each.candidate[0] / each.base[0])
    assert each.low_pct == pytest.approx(100 * np.expm1(estimate - width))
    assert each.high_pct == pytest.approx(100 * np.expm1(estimate + width))


def test_errors_in_each_run_against_none_are_no_sure_difference() -> None:
    """Three times one error in 100 has no spread, and yet one more run may have none."""
    (chosen,) = parse_measures(["error_rate"])
    one, other = [
        Side(
            name,
            tuple(
                MeasuredRun(run_id=f"{name}{n}", journal="", requests=100, values={"error_rate": rate})
                for n in range(3)
            ),
        )
        for name, rate in (("a", 0.0), ("b", 0.01))
    ]
    assert compare(one, other, [chosen]).verdict == "cannot tell"


def plans(run_id: str, **more: Any) -> list[EventBase]:
    """Return the configuration of a run's profiling phase."""
    plan = PhasePlan(phase=PROFILING, expected_requests=600, **more)
    return [PhasesConfigured(run_id=run_id, ts_ns=T0, phases=(plan,))]


def short_receipt(run_id: str) -> Receipt:
    counts = TopicReceipt(published=9, received=8, handled=8, written=8)
    return Receipt(run_id=run_id, ts_ns=T0, consumer="csv", topics={f"phase_start.{run_id}$": counts})


@pytest.mark.parametrize(
    ("one", "other", "aspect", "words"),
    [
        ({"start": {"models": ("x",)}}, {"start": {"models": ("y",)}}, "model", ["x against y"]),
        (
            {"start": {"urls": ("http://one:1/v1/chat",)}},
            {"start": {"urls": ("http://two:2/v1/embed",)}},
            "endpoint",
            ["/v1/chat against /v1/embed"],
        ),
        (
            {"start": {"options": {"endpoint.streaming": True}}},
            {"start": {"options": {"endpoint.streaming": False}}},
            "options",
            ["endpoint.streaming", "true against false"],
        ),
        ({"start": {"producer": "k6"}}, {"start": {"producer": "wrk"}}, "producer", ["k6 against wrk"]),
        (
            {"more": plans("a", concurrency=8)},
            {"more": plans("b", concurrency=9)},
            "load",
            ["concurrency", "8 against 9"],
        ),
        ({"more": plans("a")}, {}, "load", ["requests", "600 against none"]),
        ({}, {"status": "cancelled"}, "incomplete", ["run b", "cancelled"]),
        ({}, {"status": None}, "incomplete", ["run b", "still running"]),
        ({"missing": 3}, {}, "incomplete", ["run a", "3 of 633 records missing"]),
        ({"dropped": {"phase_start.a$": 2}}, {}, "incomplete", ["run a", "2 events dropped"]),
        ({"more": [short_receipt("a")]}, {}, "receipts", ["run a", "csv"]),
    ],
)
def test_what_is_not_comparable_is_refused_by_name_and_compared_if_allowed(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], aspect: Any, words: list[str]
) -> None:
    base, candidate = [made("a", **one)], [made("b", **other)]
    with pytest.raises(NotComparableError) as refused:
        compared(tmp_path / "refused", base, candidate)
    assert [each.aspect for each in refused.value.differences] == [aspect]
    for word in [*words, f"--allow {aspect}"]:
        assert word in str(refused.value)
    found = compared(tmp_path / "allowed", base, candidate, allow=[aspect])
    assert [each.aspect for each in found.allowed] == [aspect]
    assert found.whole == (aspect not in ("incomplete", "receipts"))


def test_host_and_port_may_differ(tmp_path: Path) -> None:
    urls = ("http://10.0.0.1:8000/v1/chat", "10.0.0.2:8001/v1/chat")
    base, candidate = (made(name, start={"urls": (url,)}) for name, url in zip("ab", urls, strict=True))
    assert not compared(tmp_path, [base], [candidate]).allowed


def test_a_difference_within_a_side_is_one(tmp_path: Path) -> None:
    base = [made("a1"), made("a2", start={"models": ("other",)})]
    with pytest.raises(NotComparableError, match="m in a1, b1, other in a2"):
        compared(tmp_path, base, [made("b1")])


def test_what_some_run_lacks_is_left_out_and_nothing_at_all_is_refused(tmp_path: Path) -> None:
    measures = parse_measures(["request_latency:p50", "no_such:mean:lower"])
    found = compared(tmp_path / "1", [made("a")], [made("b")], measures)
    assert [(each.metric, each.reason) for each in found.left_out] == [("no_such:mean", "no run has any")]
    with pytest.raises(ConfigError, match="nothing to compare"):
        compared(tmp_path / "2", [made("a")], [made("b")], measures[1:])
    with pytest.raises(ConfigError, match="on both sides"):
        compared(tmp_path / "3", [made("a")], [made("a")], measures)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("request_latency:p101", ["'p101'", "p0 to p100"]),
        ("request_latency:median", ["'median'", "mean"]),
        ("error_rate:p50", ["error_rate", "leave 'p50' out"]),
        ("output_sequence_length", ["which way", "output_sequence_length:mean:higher"]),
        ("request_latencyy", ["did you mean 'request_latency'"]),
        (":p50", ["names no metric"]),
    ],
)
def test_errors_in_a_metric_name_the_word(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_measures([text])
    for word in words:
        assert word in str(error.value)


def test_metrics_by_name() -> None:
    assert [measure.key for measure in parse_measures(["time_to_first_token"])] == [
        "time_to_first_token:mean",
        "time_to_first_token:p50",
        "time_to_first_token:p99",
    ]
    (one,) = parse_measures(["request_latency:p99.9", "request_latency:p99.9"])
    assert (one.better, one.unit) == ("lower", "ns")
    (other,) = parse_measures(["output_token_throughput_per_user:mean"])
    assert other.better == "higher"
