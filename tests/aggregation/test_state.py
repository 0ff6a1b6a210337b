"""The mergeable states: exact numbers, exact merging, and no trace of how values were cut."""

from __future__ import annotations

import copy
import math
import statistics
import weakref
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.sketch import RELATIVE_ERROR
from phase_bus.aggregation.state import RunState, Span
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef, Records
from phase_bus.publisher.record_builder import RecordBuilder

Array = np.ndarray[Any, Any]
PS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
SMALL = Options(exact_limit=40)

repeatable = settings(derandomize=True, deadline=None, max_examples=60, database=None)
numbers = st.one_of(
    st.floats(), st.integers(10**6, 10**11).map(float), st.sampled_from([0.0, -0.0, math.inf])
)
columns = st.lists(numbers, max_size=50).map(lambda values: np.array(values, dtype=np.float64))


def state_of(*parts: Array, options: Options = SMALL) -> MetricState:
    state = MetricState(options)
    for part in parts:
        state.update(part)
    return state


def encoded(state: MetricState | PhaseState | RunState) -> bytes:
    return msgspec.msgpack.encode(state.to_dict())


def merged(*states: MetricState) -> MetricState:
    result = copy.deepcopy(states[0])
    for state in states[1:]:
        result.merge(state)
    return result


RNG = np.random.default_rng(7)


@pytest.mark.parametrize(
    "values",
    [
        RNG.lognormal(17, 1, 10_000).astype(np.int64),
        RNG.normal(1e11, 10, 10_000).astype(np.int64),
        RNG.normal(1e9, 1e-3, 10_000),
        RNG.normal(0, 1e-9, 10_000),
        np.concatenate([[1e11], RNG.normal(1e7, 5, 9_999)]),
        np.array([1.0, 1.0 + 2**-52]),
        np.array([1e250, -1e250, 1e240]),
        np.array([1e-300, 3e-300, 5e-324]),
    ],
    ids=["latencies", "narrow", "narrower", "small", "outlier first", "ulp", "huge", "tiny"],
)
def test_mean_and_std_are_right_to_1e_9(values: Array) -> None:
    state = state_of(*np.array_split(values, 7))
    exact = [Fraction(v) for v in values.tolist()]
    assert state.mean == pytest.approx(float(sum(exact) / len(exact)), rel=1e-14, abs=1e-300)
    assert state.std == pytest.approx(statistics.pstdev(values.tolist()), rel=1e-9, abs=0)
    assert (state.min, state.max) == (values.min(), values.max())


def test_std_is_that_of_numpy_and_of_the_population() -> None:
    values = RNG.lognormal(17, 0.5, 5_000)
    state = state_of(values)
    assert state.std == pytest.approx(values.std(), rel=1e-12)


@pytest.mark.parametrize("value", [0.1, 1e-300, 123_456_789.0, -7.7e12, 0.0, 1e250])
@pytest.mark.parametrize("count", [1, 3, 50_000])
def test_a_constant_column_has_exactly_no_spread(value: float, count: int) -> None:
    state = state_of(np.full(count, value), np.full(3, value))
    assert (state.std, state.mean) == (0.0, value)
    assert (state.min, state.percentile(99), state.max) == (value, value, value)


def test_the_sum_of_integers_is_exact() -> None:
    values = RNG.integers(10**6, 10**11, 30_000)
    assert state_of(values).sum == float(int(values.sum()))
    assert state_of(RNG.integers(0, 90, 438)).sum.is_integer()


def test_percentiles_are_numpys_while_few_and_near_them_when_many() -> None:
    values = RNG.lognormal(17, 1, 30_000)
    few, many = state_of(values[:40]), state_of(values)
    assert few.exact
    assert not many.exact
    np.testing.assert_allclose(few.percentiles(PS), np.percentile(values[:40], PS), rtol=1e-14)
    np.testing.assert_allclose(many.percentiles(PS), np.percentile(values, PS), rtol=RELATIVE_ERROR)
    assert (many.percentile(0), many.percentile(100)) == (values.min(), values.max())


def test_what_is_merged_is_exact_if_every_part_is() -> None:
    few, many = state_of(np.arange(40)), state_of(np.arange(41))
    assert few.exact
    assert not many.exact
    everything = merged(*[few] * 16)
    assert everything.exact
    assert everything.percentiles(PS) == np.percentile(np.tile(np.arange(40), 16), PS).tolist()
    assert not merged(few, many, few).exact


@repeatable
@given(columns, columns, columns)
def test_merging_is_exactly_associative_and_commutative(a: Array, b: Array, c: Array) -> None:
    x, y, z = state_of(a), state_of(b), state_of(c)
    before = [encoded(s) for s in (x, y, z)]
    whole = encoded(merged(x, y, z))
    assert encoded(merged(x, merged(y, z))) == whole
    assert encoded(merged(z, y, x)) == whole
    assert encoded(merged(merged(y, x), z)) == whole
    assert [encoded(s) for s in (x, y, z)] == before


@repeatable
@given(columns, columns)
def test_merged_parts_are_the_whole(a: Array, b: Array) -> None:
    together, parts = state_of(a, b), merged(state_of(a), state_of(b))
    for name in ("count", "set_aside", "min", "max"):
        assert getattr(parts, name) == getattr(together, name)
    if parts.exact == together.exact:
        assert parts.percentiles(PS) == together.percentiles(PS)
    if together.count and math.isfinite(together.sum):
        size = float(np.abs(np.concatenate([a, b])[np.isfinite(np.concatenate([a, b]))]).max())
        assert parts.sum == pytest.approx(together.sum, rel=1e-9, abs=size * 1e-12)
        assert parts.std == pytest.approx(together.std, rel=1e-9, abs=size * 1e-12)


@repeatable
@given(st.lists(st.integers(0, 9_000), max_size=6), st.booleans())
def test_neither_batches_nor_readers_nor_checkpoints_leave_a_trace(cuts: list[int], look: bool) -> None:
    values = np.random.default_rng(1).lognormal(17, 1, 9_000)
    for options in (SMALL, Options(exact_limit=5_000), Options(exact_limit=9_000)):
        state = MetricState(options)
        for part in np.split(values, sorted(cuts)):
            state.update(part)
            if look:
                assert state.count == 0 or state.mean is not None
                state.percentiles(PS)
                state = MetricState.from_dict(msgspec.msgpack.decode(encoded(state)), options)
        assert encoded(state) == encoded(state_of(values, options=options))


def test_nan_and_infinity_are_counted_and_set_aside() -> None:
    state = state_of(np.array([1.0, math.nan, 3.0, math.inf, -math.inf]))
    assert (state.count, state.set_aside, state.mean, state.max) == (2, 3, 2.0, 3.0)


def test_no_values_have_no_statistics() -> None:
    state = state_of(np.array([math.nan]), np.array([], dtype=np.int64))
    assert (state.count, state.mean, state.std, state.min, state.percentile(50)) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert (state.sum, state.percentiles(PS)) == (0.0, [])


def test_states_of_different_options_do_not_merge() -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        state_of().merge(MetricState())


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    state = MetricState()
    sizes = []
    for _ in range(3):
        for _ in range(20):
            state.update(RNG.lognormal(17, 1, 10_000))
        sizes.append(len(encoded(state)))
    assert max(sizes) < 12_000, "8 bytes a value that waits for its chunk of 1,024, and the sketch"


def test_values_that_wait_keep_few_batches_alive() -> None:
    state, alive = MetricState(), []
    for number in range(500):
        batch = np.full((64, 2), float(number))
        alive.append(weakref.ref(batch))
        state.update(batch[0, :1])
        del batch
    assert sum(ref() is not None for ref in alive) <= 16
    assert (state.count, state.max) == (500, 499.0)


def test_updating_and_reading_in_turn_sets_aside_once() -> None:
    state = MetricState(SMALL)
    for _ in range(50):
        state.update(np.array([1.0, math.nan]))
        assert copy.deepcopy(state).settled().count == state.count
    assert (state.count, state.set_aside, state.exact) == (50, 50, False)


# ---- phases and runs


def batch_of(rows: list[dict[str, Any]], index: int = 0, partition: int = 0) -> RecordBatch:
    """Rows of metrics; ``error`` makes one a failure, ``cancelled`` says it was."""
    builder = RecordBuilder()
    for number, row in enumerate(rows):
        row = dict(row)
        error, cancelled = row.pop("error", None), row.pop("cancelled", False)
        fields = {
            "request_start_ns": 1_000_000_000 * number,
            "request_end_ns": 1_000_000_000 * number + 500,
            "was_cancelled": cancelled,
        }
        builder.add(row, fields, error)
    metrics, field_tables, errors, _ = builder.build()
    event = Records(
        run_id="r",
        phase=PhaseRef(f"phase-{index}", "profiling", index),
        partition=partition,
        count=len(rows),
        metrics=metrics,
        fields=field_tables,
        errors=errors,
    )
    return RecordBatch(event)


def success(latency: int, start: int) -> dict[str, Any]:
    return {
        "request_latency": latency,
        "min_request_timestamp": start,
        "max_response_timestamp": start + latency,
        "model": "text",
    }


FAILED = {"error_isl": 32, "error": ("Internal Server Error", "boom", 500)}
CANCELLED = {"error_isl": 32, "error": ("RequestCancellationError", "", 499), "cancelled": True}


def test_a_phase_counts_requests_errors_and_times() -> None:
    state = PhaseState(PhaseRef("profiling"))
    state.update(batch_of([success(10, 2**60 + 1), FAILED, CANCELLED, success(30, 2**60 + 3)]))
    state.update(batch_of([FAILED, success(20, 2**60 + 2)]))
    assert (state.requests, state.failed, state.cancelled) == (6, 3, 1)
    assert state.errors == {("Internal Server Error", 500): 2, ("RequestCancellationError", 499): 1}
    assert (state.first_request_ns, state.last_request_ns) == (0, 3_000_000_500)
    assert (state.first_success_ns, state.last_success_ns) == (2**60 + 1, 2**60 + 33)
    assert sorted(state.metrics) == ["error_isl", "request_latency"]
    assert state.metrics["request_latency"].mean == 20.0
    assert state.metrics["error_isl"].count == 3


def test_times_that_are_none_are_ignored() -> None:
    state = PhaseState(PhaseRef("profiling"))
    strange = {"min_request_timestamp": "yesterday", "max_response_timestamp": math.nan}
    state.update(batch_of([strange]))
    assert (state.requests, state.first_success_ns, state.last_success_ns) == (1, None, None)


def some_batches(count: int = 40) -> list[RecordBatch]:
    """Batches of two phases in turn, in four partitions."""
    return [
        batch_of(
            [success(n * 7919 % 31 + 1, 2**60 + n), FAILED, success(n + 1, 2**60 - n)] * 5,
            index=n % 2,
            partition=n * 3 % 4,
        )
        for n in range(count)
    ]


def run_of(batches: list[RecordBatch], options: Options = SMALL) -> RunState:
    run = RunState("r", options)
    for batch in batches:
        run.update(batch)
    return run


def read_again(run: RunState) -> RunState:
    return RunState.from_dict(msgspec.msgpack.decode(encoded(run)))


def test_a_run_merged_from_partitions_is_the_run() -> None:
    batches = some_batches()
    whole = RunState("r", SMALL)
    whole.merge(run_of(batches))
    assert whole.records == 600
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        run = RunState("r", SMALL)
        for number in order:
            run.merge(read_again(run_of([b for b in batches if b.event.partition == number])))
        assert encoded(run) == encoded(whole)
    phases = run.phases()
    assert [phase.requests for phase in phases] == [300, 300]
    overall = run.overall(phases)
    assert (overall.requests, overall.failed) == (600, 200)
    assert overall.metrics["request_latency"].count == 400
    assert encoded(run) == encoded(whole), "to look must not change it"


@repeatable
@given(st.lists(st.integers(0, 2), min_size=40, max_size=40))
def test_runs_merge_associatively_and_commutatively(owners: list[int]) -> None:
    batches = some_batches()
    parts = [run_of([b for b, owner in zip(batches, owners, strict=True) if owner == n]) for n in range(3)]
    before = [encoded(part) for part in parts]

    def merge(*runs: RunState) -> RunState:
        result = read_again(runs[0])
        for run in runs[1:]:
            result.merge(run)
        return result

    a, b, c = parts
    merged_parts = merge(a, b, c)
    whole = encoded(merged_parts)
    assert merged_parts.records == 600
    assert encoded(merge(a, merge(b, c))) == whole
    assert encoded(merge(merge(c, b), a)) == whole
    assert [encoded(part) for part in parts] == before


def test_a_hand_over_leaves_no_trace() -> None:
    batches = some_batches()
    run = RunState("r", SMALL)
    for batch in batches:
        run = read_again(run)
        run.update(batch)
    assert encoded(run) == encoded(run_of(batches))


def test_runs_of_different_options_do_not_merge() -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        RunState("r").merge(RunState("r", SMALL))
    with pytest.raises(ValueError, match="cannot merge"):
        RunState("r").replace_parts(RunState("r", SMALL))


def test_the_whole_run_ends_when_every_phase_has_ended() -> None:
    run = RunState("r")
    first, second = PhaseRef("p0", "profiling", 0), PhaseRef("p1", "profiling", 1)
    run.spans = {first: Span(10, 50), second: Span(11, None)}
    assert run.overall_span([first, second]) == Span()
    run.span(second).end_ns = 90
    assert run.overall_span([first, second]) == Span(10, 90)


def test_phases_that_share_an_index_are_kept_apart() -> None:
    run = RunState("r")
    for name in ("second", "first"):
        event = msgspec.structs.replace(batch_of([success(10, 5)]).event, phase=PhaseRef(name))
        run.update(RecordBatch(event))
    assert [(phase.phase.name, phase.requests) for phase in run.phases()] == [("first", 1), ("second", 1)]


def test_values_of_list_metrics_are_all_counted() -> None:
    builder = RecordBuilder("full")
    builder.add({"inter_chunk_latency": [1, 2, 3]}, {})
    builder.add({"inter_chunk_latency": [4]}, {})
    metrics, _, _, _ = builder.build()
    state = PhaseState(PhaseRef("profiling"))
    event = Records(run_id="r", phase=PhaseRef("profiling"), count=2, metrics=metrics)
    state.update(RecordBatch(event))
    assert (state.requests, state.metrics["inter_chunk_latency"].count) == (2, 4)
