"""The histogram of a metric, for plots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.options import Options

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)
SHAPES = {
    "lognormal": RNG.lognormal(17.0, 1.0, 5_000),
    "narrow": RNG.normal(1e9, 1e3, 5_000),
    "both signs": RNG.normal(0.0, 1e6, 5_000),
    "zeros": np.where(RNG.random(5_000) < 0.5, 0.0, RNG.lognormal(10.0, 1.0, 5_000)),
    "few numbers": RNG.integers(0, 4, 5_000).astype(np.float64),
    "constant": np.full(5_000, 7.5),
    "constant zero": np.zeros(5_000),
    "tiny": np.array([5e-324, 1e-323, 1.5e-323]),
    "huge": np.array([-1e250, 1e250, 0.0]),
    "decades of huge": np.array([1e-300, 1.0, 1e250]),
}


def state_of(values: Array, limit: int) -> MetricState:
    state = MetricState(Options(exact_limit=limit))
    state.update(values)
    return state


@pytest.mark.parametrize("limit", [10_000, 0], ids=["exact", "sketch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_value_is_between_two_of_the_ascending_edges(shape: str, limit: int) -> None:
    values = SHAPES[shape]
    edges, counts = state_of(values, limit).histogram(40)
    assert edges.dtype == np.float64
    assert counts.dtype == np.int64
    assert len(edges) == len(counts) + 1
    assert 1 <= len(counts) <= 40
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= values.min() <= values.max() <= edges[-1]
    assert (counts >= 0).all()
    assert counts.sum() == len(values)


@pytest.mark.parametrize("shape", ["lognormal", "both signs", "zeros"])
def test_the_sketchs_histogram_is_near_the_exact_one(shape: str) -> None:
    values = SHAPES[shape]
    edges, exact = state_of(values, 10_000).histogram(30)
    same, near = state_of(values, 0).histogram(30)
    assert (edges == same).all()
    assert (exact == np.histogram(values, edges)[0]).all()
    # An edge cuts a sketch's bin in two: what is off is at most that bin's share.
    assert np.abs(exact - near).max() <= 0.02 * len(values)


def test_edges_are_at_equal_ratios_where_values_span_a_decade() -> None:
    ratios = state_of(np.array([1.0, 1000.0]), 10).histogram(3)[0]
    np.testing.assert_allclose(ratios, [1.0, 10.0, 100.0, 1000.0])
    distances = state_of(np.array([4.0, 10.0]), 10).histogram(3)[0]
    np.testing.assert_allclose(distances, [4.0, 6.0, 8.0, 10.0])
    np.testing.assert_allclose(state_of(np.array([0.0, 9.0]), 10).histogram(3)[0], [0.0, 3.0, 6.0, 9.0])


def test_bins_finer_than_the_sketchs_leave_no_gaps() -> None:
    values = np.linspace(100.0, 120.0, 100_000)
    _, counts = state_of(values, 0).histogram(100)
    assert counts.min() > 800
    assert counts.max() < 1200


def test_no_values_have_no_histogram_and_no_bins_are_refused() -> None:
    edges, counts = MetricState().histogram(10)
    assert (len(edges), len(counts)) == (0, 0)
    with pytest.raises(ValueError, match="at least 1"):
        state_of(np.ones(3), 10).histogram(0)
