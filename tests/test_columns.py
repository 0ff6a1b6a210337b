"""Records through RecordBuilder, the Records event, the wire, and RecordBatch."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase_bus.columns import ListMode, RecordBuilder
from phase_bus.events import PhaseRef, Records
from phase_bus.records import RecordBatch
from phase_bus.wire import decode_event, encode_event, topic_of

PHASE = PhaseRef("profiling")
Rows = list[dict[str, Any]]

# What AIPerf 0.13 sends of a request that succeeded, and of one that failed (shortened).
SUCCESS = {
    "request_latency": 46303827,
    "inter_chunk_latency": [1039035, 1154647, 1147897],
    "request_count": 1,
    "prefill_throughput_per_user": 1166.0088736919065,
    "min_request_timestamp": 1795354391178618651,
}
FAILURE = {"error_request_count": 1, "context_overflow_count": 0}


def batch_of(
    metrics: Rows, fields: Rows | None = None, lists: ListMode = "summary"
) -> tuple[RecordBatch, dict[str, int]]:
    """Send records through everything."""
    builder = RecordBuilder(lists)
    for row, row_fields in zip(metrics, fields or [{}] * len(metrics), strict=True):
        builder.add(row, row_fields)
    columns, field_columns, errors, unusable = builder.build()
    event = Records(
        run_id="r", phase=PHASE, count=len(builder), columns=columns, fields=field_columns, errors=errors
    )
    received = decode_event(topic_of(event), encode_event(event))
    assert isinstance(received, Records)
    return RecordBatch(received), unusable


def rows_of(batch: RecordBatch) -> Rows:
    """Return the records as dicts, without what the batch adds."""
    return [{k: v for k, v in row.items() if k not in ("phase", "error")} for row in batch]


ints = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
columns_of_one_kind = st.sampled_from([ints, floats, st.booleans(), st.text(max_size=5)])


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Records whose values, by name, are of one type; any may be missing, in any order of names."""
    names = draw(st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=5))
    kinds = {name: draw(columns_of_one_kind) for name in names}
    made = []
    for _ in range(draw(st.integers(0, 8))):
        present = draw(st.permutations(names))[: draw(st.integers(0, len(names)))]
        made.append({name: draw(kinds[name]) for name in present})
    return [{k: v for k, v in row.items() if k not in ("phase", "error")} for row in made]


@given(rows(), rows())
def test_round_trip(metrics: Rows, fields: Rows) -> None:
    """What goes in comes out, whatever is missing and in whatever order the keys are."""
    n = min(len(metrics), len(fields))
    fields = [{f"field.{k}": v for k, v in row.items()} for row in fields[:n]]
    batch, unusable = batch_of(metrics[:n], fields)
    assert not unusable
    assert rows_of(batch) == [m | f for m, f in zip(metrics, fields, strict=False)]


anything = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.integers(), st.floats(), st.none(), st.text())),
    st.just(object()),
    st.builds(np.int64, ints),
    st.builds(np.float32, st.floats(width=32)),
    st.characters(categories=["Cs"]),
    st.dictionaries(st.text(), st.integers()),
)


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), anything)),
    st.sampled_from(["summary", "omit", "full"]),
)
def test_nothing_raises(metrics: Rows, lists: ListMode) -> None:
    """Whatever the values are, a batch is built that a reader can read."""
    batch, unusable = batch_of(metrics, lists=lists)
    list(batch)
    assert all(count > 0 for count in unusable.values())


def test_successes_and_failures() -> None:
    """Records of two shapes, one with an error, keep their rows."""
    builder = RecordBuilder()
    for number in range(20):
        failed = number % 10 == 3
        error = ("Internal Server Error", "boom", 500) if failed else None
        builder.add(FAILURE if failed else SUCCESS, {"number": number}, error)
    columns, fields, errors, _ = builder.build()
    batch = RecordBatch(
        Records(run_id="r", phase=PHASE, count=20, columns=columns, fields=fields, errors=errors)
    )
    assert batch.rows("error_request_count").tolist() == [3, 13]
    assert batch.rows("request_latency").tolist() == [n for n in range(20) if n not in (3, 13)]
    assert batch.values("number").tolist() == list(range(20))
    assert [error.row for error in batch.errors] == [3, 13]
    assert list(batch)[3]["error"] == {"type": "Internal Server Error", "message": "boom", "code": 500}
    assert np.isnan(batch.dense("request_latency")[[3, 13]]).all()


def test_zero_copy() -> None:
    """Arrays are views on the payload, and read-only."""
    builder = RecordBuilder()
    for number in range(100):
        builder.add({"a": number, "b": number / 2}, {})
    columns, _, _, _ = builder.build()
    event = Records(run_id="r", phase=PHASE, count=100, columns=columns)
    payload = encode_event(event)
    received = decode_event(topic_of(event), payload)
    assert isinstance(received, Records)
    values = RecordBatch(received).values("b")
    assert np.shares_memory(values, np.frombuffer(payload, np.uint8))
    assert not values.flags.writeable


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        ([1, 2.5], [1.0, 2.5], "f8"),
        ([2.5, 1], [2.5, 1.0], "f8"),
        ([1, None, 3], [1, 3], "i8"),
        ([np.int64(1), np.int32(2)], [1, 2], "i8"),
        ([np.float64(0.5), 1], [0.5, 1.0], "f8"),
        ([np.float32(0.5)], [0.5], "f8"),
        ([np.bool_(True), False], [True, False], "b1"),
        ([True, 2], [1, 2], "i8"),
        ([2**63, 1], [2.0**63, 1.0], "f8"),
        ([math.inf, -1], [math.inf, -1.0], "f8"),
        (["a", "ü"], ["a", "ü"], "str"),
        (["\ud800"], ["?"], "str"),
    ],
)
def test_types(values: list[Any], expected: list[Any], dtype: str) -> None:
    """Each kind of value becomes the column that holds it."""
    batch, unusable = batch_of([{"x": value} for value in values])
    assert not unusable
    assert batch.values("x").tolist() == expected
    assert batch.event.columns["x"].dtype == dtype


@pytest.mark.parametrize(
    ("values", "kept", "count"),
    [
        ([1, 2, "n/a"], [1, 2], 1),
        ([object(), b"x", 3], [3], 2),
        ([10**400, 1], [1], 1),
        ([[1, "a"], [1, 2]], [], 1),
        ([{"a": 1}], [], 1),
    ],
)
def test_unusable_values_are_counted(values: list[Any], kept: list[Any], count: int) -> None:
    """What no column can hold is left out, and counted by name."""
    batch, unusable = batch_of([{"x": value} for value in values])
    assert unusable == {"x": count}
    if kept:
        assert batch.values("x").tolist() == kept
    else:
        assert "x" not in batch.event.columns


def test_names_that_are_no_strings() -> None:
    """A key that is no string is counted; an enum's is its value."""

    class Name(enum.StrEnum):
        TTFT = "ttft"

    batch, unusable = batch_of([{Name.TTFT: 1, 5: 2}])  # type: ignore[dict-item]
    assert unusable == {"5": 1}
    assert rows_of(batch) == [{"ttft": 1}]


def test_only_missing_values() -> None:
    """A column of nothing is none."""
    batch, unusable = batch_of([{"x": None, "y": 1}, {"x": None}])
    assert set(batch.event.columns) == {"y"}
    assert not unusable


def test_list_summary() -> None:
    """Of lists, count, mean, min and max travel; an empty list has a count only."""
    batch, _ = batch_of([{"x": [1, 2, 6]}, {"x": []}, {}, {"x": [5]}])
    assert batch.values("x.count").tolist() == [3, 0, 1]
    assert batch.rows("x.count").tolist() == [0, 1, 3]
    assert batch.values("x.mean").tolist() == [3.0, 5.0]
    assert batch.values("x.min").tolist() == [1, 5]
    assert batch.values("x.max").tolist() == [6, 5]
    assert batch.rows("x.max").tolist() == [0, 3]


def test_list_summary_of_large_numbers() -> None:
    """A sum beyond 64 bits does not wrap around."""
    batch, _ = batch_of([{"x": [2**62] * 8}])
    assert batch.values("x.mean").tolist() == [2.0**62]
    assert batch.values("x.max").tolist() == [2**62]


def test_only_empty_lists() -> None:
    """Lists may all be empty."""
    batch, _ = batch_of([{"x": []}, {"x": []}])
    assert rows_of(batch) == [{"x.count": 0}, {"x.count": 0}]
    full, _ = batch_of([{"x": []}, {"x": []}], lists="full")
    assert rows_of(full) == [{"x": []}, {"x": []}]


def test_lists_in_full() -> None:
    """Each list comes out whole; tuples and arrays are lists too."""
    batch, unusable = batch_of([{"x": (1, 2)}, {"x": []}, {}, {"x": np.array([0.5, 4])}], lists="full")
    assert rows_of(batch) == [{"x": [1, 2]}, {"x": []}, {}, {"x": [0.5, 4]}]
    assert not unusable


def test_lists_omitted() -> None:
    """Lists may be left out."""
    batch, unusable = batch_of([{"x": [1], "y": 2}], lists="omit")
    assert rows_of(batch) == [{"y": 2}]
    assert not unusable


@pytest.mark.parametrize("bad", [None, 5, "text", [("a", 1)]])
def test_a_record_that_is_none(bad: Mapping[str, Any]) -> None:
    """It is refused at once, and leaves no trace."""
    builder = RecordBuilder()
    with pytest.raises(TypeError):
        builder.add(bad, {}, ("E", "m", None))
    with pytest.raises(TypeError):
        builder.add({}, bad)
    builder.add({"x": 1}, {})
    assert len(builder) == 1
    assert builder.build()[2] == ()


def test_odd_errors() -> None:
    """An error's parts become what they must be."""
    builder = RecordBuilder()
    builder.add({}, {}, (ValueError, None, "teapot"))  # type: ignore[arg-type]
    builder.add({}, {}, ("E", "\ud800", 2**70))
    errors = builder.build()[2]
    event = Records(run_id="r", phase=PHASE, count=2, errors=errors)
    received = decode_event(topic_of(event), encode_event(event))
    assert isinstance(received, Records)
    assert [(e.message, e.code) for e in received.errors] == [("None", None), ("?", None)]
