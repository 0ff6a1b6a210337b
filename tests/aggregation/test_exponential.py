"""Histograms for export: bins where Prometheus and OpenTelemetry have them, and counts that are exact."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.aggregation import (
    SCALE,
    WINDOW_SCALE,
    Buckets,
    ExponentialHistogram,
    MetricState,
    Options,
    base_unit,
    edge,
    nearest_edges,
)
from phase_bus.aggregation.log_bins import WINDOW_ERROR, LogBins, coarser, codes_of, signed_bins
from phase_bus.aggregation.units import METRICS
from phase_bus.aggregation.windows import WIDTH_NS, Windows
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef, Records
from phase_bus.publisher.record_builder import RecordBuilder

Array = npt.NDArray[np.float64]

repeatable = settings(derandomize=True, deadline=None, max_examples=100, database=None)
units = st.sampled_from(["ns", "sec", "tokens", "%", "ms/image", "MB", ""])
magnitudes = st.one_of(
    st.floats(1e-4, 1e13), st.integers(1, 10**12).map(float), st.integers(-15, 43).map(lambda n: 2.0**n)
)
values = st.one_of(magnitudes, magnitudes.map(lambda value: -value), st.just(0.0))
columns = st.lists(values, max_size=60).map(lambda some: np.array(some, dtype=np.float64))
scales = st.integers(-4, SCALE)

# A value so little above an edge may be counted at the edge.
AT_EDGE = 1 + 1e-11


def state_of(column: Array, unit: str = "ns", exact_limit: int = 1024) -> MetricState:
    state = MetricState(Options(exact_limit=exact_limit), unit)
    state.update(column)
    return state


def counted(column: Array, scale: int, unit: str) -> Buckets:
    """Count positive values one by one at a scale."""
    indices = [int(LogBins(scale, unit).of(np.array([value]))[0]) for value in column]
    return Buckets.of(np.array(indices, dtype=np.int64), np.ones(len(indices), dtype=np.int64))


@repeatable
@given(magnitudes, units, scales)
def test_a_value_lies_within_its_bin_in_the_base_unit(value: float, unit: str, scale: int) -> None:
    index = int(LogBins(scale, unit).of(np.array([value]))[0])
    in_base = base_unit(unit).convert(value)
    assert edge(index - 1, scale) < in_base * AT_EDGE
    assert in_base <= edge(index, scale) * (1 + 1e-14)


@pytest.mark.parametrize("scale", [SCALE, WINDOW_SCALE, 0, -2])
@pytest.mark.parametrize("unit", sorted({info.unit for info in METRICS.values()}))
def test_the_value_at_an_edge_is_in_the_lower_bin(unit: str, scale: int) -> None:
    indices = np.arange(-40 * 128, 60 * 128) if scale > 0 else np.arange(-10, 16)
    at_edge = np.exp2(indices / 2.0**scale) / base_unit(unit).factor
    for ulps in (-4, 0, 4):  # however the value itself was rounded
        near = at_edge + ulps * np.spacing(at_edge)
        assert (LogBins(scale, unit).of(near) == indices).all()
    above = at_edge * (1 + 1e-10)
    assert (LogBins(scale, unit).of(above) == indices + 1).all()


def test_powers_of_two_tokens_and_seconds_are_edges_to_the_bit() -> None:
    powers = np.array([2.0**n for n in range(40)])
    assert LogBins(SCALE, "tokens").of(powers).tolist() == [128 * n for n in range(40)]
    assert LogBins(SCALE, "ns").of(powers[:10] * 1e9).tolist() == [128 * n for n in range(10)]
    assert LogBins(SCALE, "ns").of(np.array([1e9 / 2**n for n in range(9)])).tolist() == [
        -128 * n for n in range(9)
    ]
    assert LogBins(SCALE, "tokens").of(powers[1:] + 1.0).tolist()[:20] == [
        math.ceil(128 * math.log2(2**n + 1)) for n in range(1, 21)
    ]


@repeatable
@given(columns, units, scales, st.booleans())
def test_a_coarser_histogram_is_that_of_values_counted_at_its_scale(
    column: Array, unit: str, scale: int, keep: bool
) -> None:
    found = state_of(column, unit, 1024 if keep else 0).exponential(scale)
    assert found.scale == scale
    assert found.positive == counted(column[column > 0], scale, unit)
    assert found.negative == counted(-column[column < 0], scale, unit)


def test_a_finer_scale_than_was_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="finer"):
        state_of(np.ones(3)).exponential(SCALE + 1)


@repeatable
@given(columns, columns, units)
def test_merged_states_have_the_histogram_of_all_values(a: Array, b: Array, unit: str) -> None:
    merged, whole = state_of(a, unit, 30), state_of(np.concatenate([b, a]), unit)
    merged.merge(state_of(b, unit, 30))
    assert merged.exact == (len(a) <= 30 and len(b) <= 30)
    # The sums are those of each part, rounded.
    ours, theirs = merged.exponential(), whole.exponential()
    assert ours.sum == pytest.approx(theirs.sum, rel=1e-9, abs=1e3)
    assert msgspec.structs.replace(ours, sum=theirs.sum) == theirs


@repeatable
@given(columns, units)
def test_count_sum_and_extremes_are_the_states(column: Array, unit: str) -> None:
    state = state_of(column, unit, 5)
    found, base = state.exponential(), base_unit(unit)
    assert found.unit == base.name
    assert found.count == state.count == len(column)
    assert found.count == found.zeros + sum(found.positive.counts) + sum(found.negative.counts)
    assert found.sum == base.convert(state.sum)
    if state.min is not None and state.max is not None:
        assert (found.min, found.max) == (base.convert(state.min), base.convert(state.max))
    else:
        assert (found.min, found.max, found.count) == (None, None, 0)


def test_values_that_cannot_be_summed_are_not_in_the_histogram() -> None:
    found = state_of(np.array([1.0, math.nan, 3.0, math.inf])).exponential()
    assert (found.count, sum(found.positive.counts), found.sum) == (2, 2, 4e-9)


@pytest.mark.parametrize("unit", ["ns", "tokens"])
@pytest.mark.parametrize("scale", [SCALE, 3, 0])
def test_counts_up_to_edges_are_exact(unit: str, scale: int) -> None:
    bounds = [0.001, 0.005, 0.05, 0.5, 1.0, 2.5, 10.0, 100.0, 1000.0]
    rng = np.random.default_rng(3)
    in_base = np.concatenate([rng.lognormal(0, 3, 5_000), -rng.lognormal(0, 1, 50), np.zeros(7)])
    edges = nearest_edges(bounds, scale)
    limits = [edge(index, scale) for index in edges]
    found = state_of(in_base / base_unit(unit).factor, unit, 0).exponential(scale).below(edges)
    assert found == [int((in_base <= limit).sum()) for limit in limits]


@repeatable
@given(st.lists(st.floats(1e-9, 1e9), max_size=20), st.integers(0, SCALE))
def test_wanted_bounds_are_moved_to_the_nearest_edges(bounds: list[float], scale: int) -> None:
    edges = nearest_edges(bounds, scale)
    assert edges == sorted(set(edges))
    half = 2 ** (0.5 / 2**scale) * (1 + 1e-9)
    for bound in bounds:
        assert any(bound / half <= edge(index, scale) <= bound * half for index in edges)
    assert len(edges) <= len(bounds)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_that_no_bucket_ends_at_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        nearest_edges([1.0, bound])


def test_no_values_have_an_empty_histogram() -> None:
    found = MetricState(unit="ns").exponential()
    assert found == ExponentialHistogram("seconds")
    assert found.below([-10, 0, 10]) == [0, 0, 0]
    assert found.coarser(0).positive == Buckets()


@pytest.mark.parametrize(
    ("unit", "name", "one"),
    [
        ("ns", "seconds", 1e-9),
        ("sec", "seconds", 1.0),
        ("%", "ratio", 0.01),
        ("MB", "bytes", 1e6),
        ("count", "", 1.0),
        ("parsecs", "", 1.0),
    ],
)
def test_base_units(unit: str, name: str, one: float) -> None:
    assert base_unit(unit).name == name
    assert base_unit(unit).convert(1.0) == one
    assert base_unit("ns").convert(3e9) == 3.0


# ---- windows over time


@repeatable
@given(columns, units)
def test_a_windows_bin_is_made_of_neighbouring_bins(column: Array, unit: str) -> None:
    signs, bins = signed_bins(codes_of(column, unit))
    assert signs.tolist() == np.sign(column).tolist()
    fine = LogBins(SCALE, unit).of(np.abs(column[column != 0]))
    assert bins[signs != 0].tolist() == coarser(fine, SCALE - WINDOW_SCALE).tolist()


def test_the_histograms_of_all_windows_together_are_that_of_the_phase() -> None:
    latencies = np.concatenate([np.random.default_rng(5).lognormal(17, 1, 500), [0.0, -5.0]])
    builder = RecordBuilder()
    for number, value in enumerate(latencies.tolist()):
        end_ns = (100 + number * 7 % 4) * WIDTH_NS
        builder.add({"request_latency": value}, {"request_end_ns": end_ns})
    metrics, fields, _, _ = builder.build()
    windows = Windows()
    count = len(latencies)
    windows.update(
        RecordBatch(Records(run_id="r", phase=PhaseRef("p"), count=count, metrics=metrics, fields=fields))
    )
    found = list(windows.histograms("request_latency"))
    assert [(each.start_ns, each.width_ns) for each in found] == [
        (second * WIDTH_NS, WIDTH_NS) for second in range(100, 104)
    ]
    whole = state_of(latencies).exponential(WINDOW_SCALE)
    assert sum(each.histogram.count for each in found) == whole.count
    assert sum(each.histogram.zeros for each in found) == whole.zeros == 1
    for sign in ("positive", "negative"):
        parts = [getattr(each.histogram, sign) for each in found]
        indices = [part.offset + n for part in parts for n in range(len(part.counts))]
        counts = [count for part in parts for count in part.counts]
        assert Buckets.of(np.array(indices), np.array(counts)) == getattr(whole, sign)
    assert sum(each.histogram.sum for each in found) == pytest.approx(whole.sum, rel=WINDOW_ERROR + 1e-9)
    assert {each.histogram.unit for each in found} == {"seconds"}
    assert list(windows.histograms("unknown")) == []
