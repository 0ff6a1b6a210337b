"""The sketch against exact values, against the ddsketch package, and against itself in other orders."""

from __future__ import annotations

import copy
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from ddsketch import DDSketch as Reference
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.aggregation.sketch import RELATIVE_ERROR, LogHistogram

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
ERROR = RELATIVE_ERROR
ROUNDING = 1 + 1e-9

repeatable = settings(derandomize=True, deadline=None, max_examples=60, database=None)
finite = st.floats(allow_nan=False, allow_infinity=False)
columns = st.lists(
    st.one_of(finite, st.integers(-(10**12), 10**12).map(float), st.just(0.0)), max_size=60
).map(lambda values: np.array(values, dtype=np.float64))

RNG = np.random.default_rng(20261122)
SHAPES = {
    "lognormal": RNG.lognormal(17.0, 1.0, 20_000),
    "bimodal": np.concatenate([RNG.normal(1e6, 1e4, 9_000), RNG.normal(3e9, 1e7, 1_000)]),
    "constant": np.full(5_000, 123_456_789.0),
    "heavy-tailed": (RNG.pareto(0.7, 20_000) + 1.0) * 1e3,
    "tiny": RNG.lognormal(-600.0, 2.0, 5_000),
    "denormal": np.array([5e-324, 1e-323, 4e-320] * 10),
    "huge": RNG.lognormal(690.0, 2.0, 5_000),
    "zeros": np.where(RNG.random(5_000) < 0.5, 0.0, RNG.lognormal(10.0, 1.0, 5_000)),
    "negative": -RNG.lognormal(10.0, 2.0, 5_000),
    "both signs": RNG.normal(0.0, 1e6, 5_001),
    "one value": np.array([42.0]),
}


def sketch_of(*parts: np.ndarray[Any, Any], max_bins: int = 8192) -> LogHistogram:
    sketch = LogHistogram(max_bins=max_bins)
    for part in parts:
        sketch.update(part)
    return sketch


def encoded(sketch: LogHistogram) -> bytes:
    return msgspec.msgpack.encode(sketch.to_dict())


@pytest.mark.parametrize("shape", SHAPES)
def test_quantiles_are_within_the_error_of_the_exact_ones(shape: str) -> None:
    values = SHAPES[shape]
    found = sketch_of(values).quantiles(QUANTILES)
    ordered = np.sort(values)
    for q, value in zip(QUANTILES, found.tolist(), strict=True):
        position = q * (len(values) - 1)
        low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
        exact = low if low == high else low + (high - low) * (position - math.floor(position))
        bound = max(abs(low), abs(high)) if low < 0 < high else abs(exact)
        # A denormal has too few bits for that error: there it is one unit in the last place.
        assert abs(value - exact) <= ERROR * bound * ROUNDING + 5e-324, (shape, q)


@repeatable
@given(columns.filter(len))
def test_the_error_bound_holds_for_any_values(values: np.ndarray[Any, Any]) -> None:
    sketch, ordered = sketch_of(values), np.sort(values)
    if sketch.collapsed:
        return  # the values span more than 19 orders of magnitude
    at = np.arange(len(values)) / max(len(values) - 1, 1)  # the ranks themselves: nothing is interpolated
    found = sketch.quantiles(at.tolist())
    position = at * (len(values) - 1)
    low, high = np.floor(position).astype(int), np.ceil(position).astype(int)
    bound = ERROR * np.maximum(np.abs(ordered[low]), np.abs(ordered[high])) * ROUNDING + 5e-324
    with np.errstate(over="ignore"):  # beyond the largest float
        assert (found >= ordered[low] - bound).all()
        assert (found <= ordered[high] + bound).all()


@pytest.mark.parametrize("shape", ["lognormal", "bimodal", "heavy-tailed", "zeros", "negative", "constant"])
def test_it_agrees_with_the_ddsketch_package(shape: str) -> None:
    values = SHAPES[shape][:1001]  # so that the quantiles below fall on ranks
    reference = Reference(relative_accuracy=ERROR)
    for value in values.tolist():
        reference.add(value)
    quantiles = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0]
    found = sketch_of(values).quantiles(quantiles).tolist()
    assert found == pytest.approx([reference.get_quantile_value(q) for q in quantiles], rel=1e-9)


@repeatable
@given(columns, columns, columns, st.sampled_from([8192, 64, 1]))
def test_merging_is_exactly_associative_and_commutative(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], c: np.ndarray[Any, Any], max_bins: int
) -> None:
    whole = encoded(sketch_of(a, b, c, max_bins=max_bins))
    assert encoded(sketch_of(np.concatenate([c, a, b]), max_bins=max_bins)) == whole
    for order in ((a, b, c), (c, b, a), (b, a, c)):
        first, second, third = (sketch_of(part, max_bins=max_bins) for part in order)
        left = copy.deepcopy(first)
        left.merge(second)
        left.merge(third)
        right = copy.deepcopy(second)
        right.merge(third)
        first.merge(right)
        assert encoded(left) == encoded(first) == whole


@repeatable
@given(columns)
def test_what_is_written_is_read_back(values: np.ndarray[Any, Any]) -> None:
    data = encoded(sketch_of(values))
    again = LogHistogram.from_dict(msgspec.msgpack.decode(data), "")
    assert encoded(again) == data
    again.update(values)
    assert encoded(again) == encoded(sketch_of(values, values))


def test_updating_leaves_the_column_as_it_is() -> None:
    values = np.array([3.0, -1.0, 0.0])
    values.flags.writeable = False
    assert sketch_of(values).count == 3


def test_at_the_bound_the_lowest_bins_collapse_and_high_quantiles_stay_right() -> None:
    values = np.logspace(0, 30, 10_001)
    sketch = sketch_of(values, max_bins=1000)
    assert sketch.collapsed
    assert not sketch_of(values, max_bins=16384).collapsed
    assert len(sketch.ranges()[2]) <= 1000
    assert sketch.count == len(values)
    exact = np.percentile(values, 99)
    assert abs(sketch.quantiles([0.99])[0] / exact - 1) <= ERROR * ROUNDING


def test_a_far_higher_value_collapses_all_bins_before_it() -> None:
    sketch = sketch_of(np.array([1.0, 2.0, 3.0]), np.array([1e300]), max_bins=4)
    assert sketch.count == 4
    assert sketch.quantiles([1.0])[0] == pytest.approx(1e300, rel=ERROR)


def test_histograms_of_different_units_or_sizes_do_not_merge() -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        LogHistogram("ns").merge(LogHistogram("sec"))
    with pytest.raises(ValueError, match="cannot merge"):
        LogHistogram("ns").merge(LogHistogram("ns", 10))


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="must"):
        LogHistogram(max_bins=0)


def test_no_values_have_no_quantiles_and_quantiles_have_a_range() -> None:
    with pytest.raises(ValueError, match="no values"):
        LogHistogram().quantiles([0.5])
    with pytest.raises(ValueError, match="between 0 and 1"):
        sketch_of(np.ones(3)).quantiles([1.5])
