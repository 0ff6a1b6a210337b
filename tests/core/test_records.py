"""Records through RecordBuilder, the tables of a Records event, the wire, and RecordBatch."""

from __future__ import annotations

import decimal
import enum
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase_bus.core.records import RecordBatch, join_records
from phase_bus.core.values import ListMode
from phase_bus.core.wire import decode_event, encode_event, topic_of
from phase_bus.errors import WireError
from phase_bus.events import PhaseRef, RecordError, Records
from phase_bus.publisher.record_builder import RecordBuilder

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
    return received(builder)


def received(builder: RecordBuilder) -> tuple[RecordBatch, dict[str, int]]:
    """Send what a builder has over the wire."""
    count = len(builder)
    tables, field_tables, errors, unusable = builder.build()
    event = Records(
        run_id="r", phase=PHASE, count=count, metrics=tables, fields=field_tables, errors=errors
    )
    arrived = decode_event(topic_of(event), encode_event(event))
    assert isinstance(arrived, Records)
    return RecordBatch(arrived), unusable


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
    batch, _ = received(builder)
    assert batch.rows("error_request_count").tolist() == [3, 13]
    assert batch.rows("request_latency").tolist() == [n for n in range(20) if n not in (3, 13)]
    assert batch.values("number").tolist() == list(range(20))
    assert [error.row for error in batch.errors] == [3, 13]
    assert list(batch)[3]["error"] == {"type": "Internal Server Error", "message": "boom", "code": 500}
    assert np.isnan(batch.dense("request_latency")[[3, 13]]).all()


def test_decoding_copies_no_table() -> None:
    """A batch's arrays lie in the message itself."""
    builder = RecordBuilder()
    for number in range(256):
        builder.add({"request_latency": number, "ratio": number / 3}, {})
    tables, _, _, _ = builder.build()
    event = Records(run_id="r", phase=PHASE, count=256, metrics=tables)
    payload = encode_event(event)
    arrived = decode_event(topic_of(event), payload)
    assert isinstance(arrived, Records)
    whole = np.frombuffer(payload, np.uint8)
    assert arrived.metrics
    for table in arrived.metrics:
        assert np.shares_memory(np.frombuffer(table.numbers, np.uint8), whole)


def test_arrays_are_read_only() -> None:
    """They are made once, so nobody may change what others read."""
    batch, _ = batch_of(
        [{"a": number, "b": number / 2, "c": "x", "d": [1]} for number in range(9)], lists="full"
    )
    assert batch.values("b") is batch.values("b")
    assert not any(batch.values(name).flags.writeable for name in "abcd")


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        ([1, 2.5], [1.0, 2.5], "f"),
        ([2.5, 1], [2.5, 1.0], "f"),
        ([1, None, 3], [1, 3], "i"),
        ([np.int64(1), np.int32(2)], [1, 2], "i"),
        ([np.float64(0.5), 1], [0.5, 1.0], "f"),
        ([np.float32(0.5)], [0.5], "f"),
        ([np.bool_(True), False], [True, False], "b"),
        ([True, 2], [1, 2], "i"),
        ([2, True], [2, 1], "i"),
        ([False, 0.5], [0.0, 0.5], "f"),
        ([2**63, 1], [2.0**63, 1.0], "f"),
        ([math.inf, -1], [math.inf, -1.0], "f"),
        ([decimal.Decimal("0.5"), 1.5], [0.5, 1.5], "f"),
        (["a", "ü"], ["a", "ü"], "s"),
        (["\ud800"], ["?"], "s"),
        ([1, "n/a", 2], [1, 2], "i"),
        (["n/a", 0.5], [0.5], "f"),
    ],
)
@pytest.mark.parametrize("known", [[], [7], [0.5], [True], ["text"]])
def test_types(values: list[Any], expected: list[Any], dtype: str, known: list[Any]) -> None:
    """Each type of value becomes the array that holds it, whatever the batch before held."""
    builder = RecordBuilder()
    for batch_values in known, values:
        for value in batch_values:
            builder.add({"x": value}, {})
        batch, unusable = received(builder)
    assert not unusable
    assert batch.values("x").tolist() == expected
    # What was of floats may stay so while it is of numbers.
    assert batch.column("x").type in ({dtype, "f"} if known == [0.5] else {dtype})


def test_numbers_and_texts_of_one_name() -> None:
    """The array is of the numbers, and the records show all."""
    batch, unusable = batch_of([{"x": 1}, {"x": "n/a"}, {"x": 2.5}])
    assert (batch.values("x").tolist(), batch.rows("x").tolist()) == ([1.0, 2.5], [0, 2])
    assert [record["x"] for record in batch] == [1, "n/a", 2.5]
    assert not unusable


def test_whole_numbers_stay_exact() -> None:
    """A float in one batch leaves the next one's whole numbers exact."""
    builder = RecordBuilder()
    for values in [1, 2], [1, 0.5], [2**53 + 1, 2**53 + 3]:
        for value in values:
            builder.add({"x": value}, {})
        batch, _ = received(builder)
    assert batch.values("x").tolist() == [2**53 + 1, 2**53 + 3]
    assert batch.values("x").dtype == np.int64


def test_a_text_and_a_flag_are_checked() -> None:
    """What only looks like a text or a flag to the packing is found."""
    texts: Rows = [{"x": "a"}, {"x": {"b": 1}}, {"x": b"c"}]
    batch, unusable = batch_of(texts)
    assert (rows_of(batch), unusable) == ([{"x": "a"}, {}, {}], {"x": 2})
    batch, unusable = batch_of([{"x": True}, {"x": 5}])
    assert (rows_of(batch), unusable) == ([{"x": 1}, {"x": 5}], {})


def test_wanted_fields() -> None:
    """Of the fields those travel that were asked for, where they are."""
    builder = RecordBuilder(field_names=("b", "a"))
    for fields in {"a": 1, "b": "x", "c": 1}, {"a": 2, "b": None}, {"c": 5}, {"b": "y", "d": object()}:
        builder.add({}, fields)
    batch, unusable = received(builder)
    assert rows_of(batch) == [{"b": "x", "a": 1}, {"a": 2}, {}, {"b": "y"}]
    assert not unusable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"count": 4}, "numbers|rows"),
        ({"types": "iss"}, "numbers"),
        ({"types": "sif"}, "types"),
        ({"names": ("a", "a", "b")}, "types"),
        ({"types": "i"}, "types"),
        ({"numbers": memoryview(bytes(8))}, "numbers"),
        ({"rows": memoryview(bytes(4))}, "rows"),
        ({"rows": memoryview(b"\0\0\0\0\1\0\0\0\3\0\0\0")}, "beyond"),
        ({"others": memoryview(b"\x90")}, "texts"),
        ({"others": memoryview(b"\xc1")}, "texts"),
        ({"others": memoryview(msgspec.msgpack.encode([["a"], ["b"], ["c", "d"]]))}, "texts"),
    ],
)
def test_contradictions(change: dict[str, Any], reason: str) -> None:
    """A batch that contradicts itself is refused, not read as something else."""
    builder = RecordBuilder()
    for number in range(3):
        builder.add({"a": number, "b": "x", "c": 0.5}, {})
    good = builder.build()[0][0]
    event = Records(run_id="r", phase=PHASE, count=3, metrics=(msgspec.structs.replace(good, **change),))
    with pytest.raises(WireError, match=reason):
        list(RecordBatch(event))


def test_errors_beyond_the_batch() -> None:
    """An error of a record that is not there is a contradiction too."""
    event = Records(run_id="r", phase=PHASE, count=1, errors=(RecordError(1, "E"),))
    with pytest.raises(WireError, match="record 1 of 1"):
        list(RecordBatch(event))


@pytest.mark.parametrize(
    ("values", "kept", "count"),
    [
        ([object(), b"x", 3], [3], 2),
        ([10**400, 1], [1], 1),
        ([[1, "a"]], [], 1),
        ([{"a": 1}], [], 1),
    ],
)
def test_unusable_values_are_counted(values: list[Any], kept: list[Any], count: int) -> None:
    """What cannot travel is left out, and counted by name."""
    batch, unusable = batch_of([{"x": value} for value in values])
    assert unusable == {"x": count}
    if kept:
        assert batch.values("x").tolist() == kept
    else:
        assert "x" not in batch


def test_names_that_are_no_strings() -> None:
    """A key that is not a string is counted; an enum's is its value."""

    class Name(enum.StrEnum):
        TTFT = "ttft"

    batch, unusable = batch_of([{Name.TTFT: 1, 5: 2}])  # type: ignore[dict-item]
    assert unusable == {"5": 1}
    assert rows_of(batch) == [{"ttft": 1}]


def test_only_missing_values() -> None:
    """A name without a value is no column."""
    batch, unusable = batch_of([{"x": None, "y": 1}, {"x": None}])
    assert list(batch.metric_columns()) == ["y"]
    assert not unusable


def test_list_summary() -> None:
    """Of a list its count, mean, min and max travel; an empty list has a count only."""
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


def _batches(metrics: list[list[dict[str, Any]]], phase: str = "profiling") -> list[Records]:
    """Return an event for each list of records."""
    builder = RecordBuilder("full")
    events = []
    for number, several in enumerate(metrics):
        for each in several:
            failed = "error" in each
            builder.add(each, {"x_request_id": f"{number}-{each}"}, ("E", "late", 504) if failed else None)
        tables, fields, errors, _ = builder.build()
        ref = PhaseRef(phase)
        events.append(
            Records(run_id="r", phase=ref, count=len(several), metrics=tables, fields=fields, errors=errors)
        )
    return events


def test_joined_batches_have_the_same_records() -> None:
    """Also where shapes differ, records failed, and a name is a number here and a text there."""
    events = _batches(
        [
            [{"a": 1, "l": [1, 2]}, {"a": 2, "l": [3]}],
            [{"error": 1}, {"a": 3, "l": []}, {"a": 4.5}],
            [{"a": "text"}, {"b": True}],
            [{"error": 1}],
        ]
    )
    events += _batches([[{"a": 7}]], phase="warmup")
    joined = join_records(events)
    assert [places for _, places in joined] == [[0, 1, 3], [2], [4]]
    for event, places in joined:
        apart = [record for place in places for record in RecordBatch(events[place])]
        assert list(RecordBatch(event)) == apart
        RecordBatch(event).check()


def test_what_is_damaged_is_found_by_the_check() -> None:
    (event,) = _batches([[{"error": 1, "t": "x"}]])
    RecordBatch(event).check()
    (error,) = event.errors
    beyond = msgspec.structs.replace(event, errors=(msgspec.structs.replace(error, row=1),))
    (table,) = event.metrics
    short = msgspec.structs.replace(event, metrics=(msgspec.structs.replace(table, others=b"\x91\x90"),))
    for bad in (beyond, short):
        with pytest.raises(WireError):
            RecordBatch(bad).check()


def test_columns_as_arrow() -> None:
    """With null where a record has no value, and not where it is NaN."""
    nan = float("nan")
    (event,) = _batches([[{"f": nan, "i": 2**62, "l": [1, 2]}, {"f": 1.5, "b": True}, {"l": [], "t": "x"}]])
    columns = RecordBatch(event).metric_columns()
    arrays = {name: column.to_arrow(3).to_pylist() for name, column in columns.items()}
    assert math.isnan(arrays["f"].pop(0))
    assert arrays == {
        "f": [1.5, None],
        "i": [2**62, None, None],
        "l": [[1, 2], None, []],
        "b": [None, True, None],
        "t": [None, None, "x"],
    }
