"""Records by columns: the same as a record for each, without one; copied, counted, never raising."""

from __future__ import annotations

import array
import decimal
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.core.records import RecordBatch
from phase_bus.core.values import ListMode
from phase_bus.events import Drop, PhaseComplete, PhaseRef, Records, RunComplete
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.memory import MemoryBus
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread
from tests.support.clients import Subscriber

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASE = PhaseRef("profiling")
Rows = list[dict[str, Any]]


def rows_of(batches: list[Records]) -> Rows:
    """Return the records of some batches as dicts."""
    return [row for batch in batches for row in RecordBatch(batch)]


def published(
    columns: Mapping[str, Any],
    fields: Mapping[str, Any] | None = None,
    errors: Mapping[int, tuple[str, str, int | None]] | None = None,
    *,
    lists: ListMode = "summary",
    batch_records: int = 1,
) -> Rows:
    """Return what arrives of records that are published by columns."""
    bus = MemoryBus(lists=lists, batch_records=batch_records)
    publisher = bus.publisher()
    publisher.records("r", PHASE, columns, fields, errors)
    publisher.flush()
    return rows_of(bus.events(Records))


def one_by_one(count: int, columns: Mapping[str, Any], *, lists: ListMode = "summary") -> Rows:
    """Return what arrives of the same if each is published by ``record``."""
    bus = MemoryBus(lists=lists, batch_records=count + 1)
    publisher = bus.publisher()
    for row in range(count):
        publisher.record("r", PHASE, {name: value_at(c, row) for name, c in columns.items()}, {})
    publisher.flush()
    return rows_of(bus.events(Records))


def value_at(column: Any, row: int) -> Any:
    """Return one value of a column; None where a masked array has none."""
    return None if column[row] is np.ma.masked else column[row]


def comparable(rows: Rows) -> list[dict[str, str]]:
    """Return rows such that NaN equals NaN, and a number the same one as a float.

    What else records hold decides whether whole numbers among floats keep digits that no float has.
    """
    return [{name: _comparable(value) for name, value in row.items()} for row in rows]


def _comparable(value: Any) -> str:
    if isinstance(value, list):
        return str([_comparable(each) for each in value])
    return repr(float(value) if isinstance(value, int) else value)


numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans())
odd = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    st.binary(max_size=2),
    st.characters(categories=["Cs"]),
    st.lists(st.one_of(st.integers(), st.floats(), st.none())),
    st.just(object()),
    st.builds(np.int64, st.integers(-(2**63), 2**63 - 1)),
    st.builds(np.float32, st.floats(width=32)),
    st.just(decimal.Decimal("0.5")),
)
elements = st.sampled_from(
    [st.floats(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(max_size=4), numbers, odd]
)
dtypes = st.sampled_from(
    ["f2", "f4", "f8", ">f8", "i1", "i4", ">i4", "i8", "u1", "u8", "?", "U3", "S2", "O", "c16", "M8[ns]"]
)


@st.composite
def arrays(draw: st.DrawFn, count: int) -> Any:
    """An array of some type, which may be strided, masked, or of two dimensions."""
    dtype = draw(dtypes)
    bits = draw(st.lists(st.integers(0, 2**64 - 1), min_size=2 * count, max_size=2 * count))
    raw = np.array(bits, np.uint64)
    if dtype in ("f2", "f4", "f8", ">f8", "c16"):
        values = raw.view("f8").astype(dtype, copy=False) if dtype != "c16" else raw.view("f8") * 1j
    elif dtype == "O":
        values = np.array([draw(odd) for _ in range(2 * count)] + [None], object)[:-1]
    elif dtype == "M8[ns]":
        values = raw.view("i8").view(dtype)
    else:
        values = raw.astype(dtype)
    shape = draw(st.sampled_from(["whole", "strided", "reversed", "masked", "square"]))
    if shape == "strided":
        return values[::2]
    if shape == "reversed":
        return values[:count][::-1]
    if shape == "masked":
        mask = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return np.ma.masked_array(values[:count], mask)
    return values.reshape(count, 2) if shape == "square" else values[:count]


@st.composite
def columns_of_all_kinds(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """Columns of one length, from plain to odd."""
    count = draw(st.integers(1, 6))
    some: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(["a", "b", "ü", "d", "\ud800"]), unique=True, min_size=1)):
        values = draw(st.lists(draw(elements), min_size=count, max_size=count))
        some[name] = draw(st.one_of(st.just(values), st.just(tuple(values)), arrays(count)))
    return count, some


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(deadline=None)
@given(columns_of_all_kinds(), st.sampled_from(["summary", "omit", "full"]))
def test_the_same_as_records_one_by_one(given: tuple[int, dict[str, Any]], lists: ListMode) -> None:
    """Whatever the columns hold, a batch of its own or rows of an open one."""
    count, columns = given
    expected = comparable(one_by_one(count, columns, lists=lists))
    assert comparable(published(columns, lists=lists)) == expected
    assert comparable(published(columns, lists=lists, batch_records=99)) == expected


def test_plain_columns() -> None:
    """Numbers keep their type and digits, texts and flags are what they were; errors have rows."""
    rows = published(
        {
            "latency": np.array([0.5, math.nan, 3]),
            "tokens": [2**62 + 1, 5, 7],
            "gap": array.array("f", b"abc" * 4),
        },
        {
            "request_end_ns": range(3),
            "x_request_id": ["a", "ü", ""],
            "was_cancelled": np.array([0, 1, 0], bool),
        },
        {2: ("Timeout", "late", 504)},
    )
    assert [row["tokens"] for row in rows] == [2**62 + 1, 5, 7]
    assert math.isnan(rows[1]["latency"])
    assert [row["request_end_ns"] for row in rows] == [0, 1, 2]
    assert [row["x_request_id"] for row in rows] == ["a", "ü", ""]
    assert [row["was_cancelled"] for row in rows] == [False, True, False]
    assert [row["error"] for row in rows] == [
        None,
        None,
        {"type": "Timeout", "message": "late", "code": 504},
    ]


def test_values_that_are_missing() -> None:
    """A record has no metric where there is None, or nothing in a masked array; of all or none, too."""
    rows = published(
        {
            "a": [1, None, 3],
            "b": np.ma.masked_array([0.5, 1.5, 2.5], [False, False, True]),
            "c": np.ma.masked_array([1, 2, 3], [True, True, True]),
            "d": np.ma.masked_array([1, 2, 3]),
            "e": [None, None, None],
            "f": ["x", None, "z"],
        }
    )
    assert [set(row) - {"phase", "error"} for row in rows] == [set("abdf"), set("bd"), set("adf")]
    assert [(row.get("a"), row["d"]) for row in rows] == [(1, 1), (None, 2), (3, 3)]


def test_what_the_caller_does_afterwards(bus: BusThread) -> None:
    """Changes nothing of what is published."""
    latencies, tokens, mask = np.arange(1000.0), list(range(1000)), np.zeros(1000, bool)
    errors = {5: ("E", "m", None)}
    with Subscriber(bus.address, "records.") as subscriber, Publisher(bus.address) as publisher:
        gaps = np.ma.masked_array(np.arange(1000), mask)
        publisher.records("r", PHASE, {"latency": latencies, "tokens": tokens, "gap": gaps}, None, errors)
        latencies[:], gaps[:] = -1.0, -1
        tokens.clear()
        errors.clear()
        assert publisher.flush(10)
        rows = rows_of(wait_until(lambda: subscriber.of(Records)))
    assert (
        [row["latency"] for row in rows] == [row["tokens"] for row in rows] == [row["gap"] for row in rows]
    )
    assert [number for number, row in enumerate(rows) if row["error"]] == [5]


def test_order_counts_and_partitions(bus: BusThread) -> None:
    """With records and events between, all comes in the order of the calls, and the end counts it."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address, batch_records=100) as publisher:
        first = 0
        for size in (1, 24, 25, 150, 20_000, 3, 0, 1000):
            publisher.record("r", PHASE, {"n": first}, {})
            publisher.records("r", PHASE, {"n": np.arange(first + 1, first + 1 + size)})
            first += 1 + size
        publisher.publish(PhaseComplete(run_id="r", phase=PHASE))
        publisher.complete_run("r", "completed")
        assert publisher.flush(10)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        kinds = [event.kind for event in subscriber.events if event is not None]
        batches = subscriber.of(Records)
    assert kinds[-2:] == ["phase_complete", "run_complete"]
    assert [row["n"] for row in rows_of(batches)] == list(range(first))
    assert end.records == first
    assert sum(end.published.values()) == len(kinds) - 1
    assert [batch.partition for batch in batches] == [number % 16 for number in range(len(batches))]
    assert max(batch.count for batch in batches) == 8192


def test_few_records_wait_for_others(bus: BusThread) -> None:
    """Many small calls make few batches."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address, batch_s=9.0) as publisher:
        for number in range(100):
            publisher.records("r", PHASE, {"n": [number] * 10}, {"id": ["x"] * 10})
        publisher.complete_run("r", "completed")
        assert publisher.flush(10)
        wait_until(lambda: subscriber.of(RunComplete))
        batches = subscriber.of(Records)
    assert [row["n"] for row in rows_of(batches)] == [number // 10 for number in range(1000)]
    assert len(batches) == 4


def test_wanted_fields_and_two_phases(bus: BusThread) -> None:
    """Fields that nobody asked for stay; each phase has batches of its own."""
    with (
        Subscriber(bus.address, "records.") as subscriber,
        Publisher(bus.address, field_names=("b", "a")) as publisher,
    ):
        for phase in PHASE, PhaseRef("warmup"):
            publisher.records("r", phase, {"n": np.arange(500)}, {"a": ["x"] * 500, "c": np.arange(500)})
        assert publisher.flush(10)
        batches = wait_until(lambda: len(found := subscriber.of(Records)) == 2 and found)
    assert [batch.phase.name for batch in batches] == ["profiling", "warmup"]
    assert list(RecordBatch(batches[0]).field_columns()) == ["a"]


class _Hostile:
    def __len__(self) -> int:
        raise RuntimeError("no")

    def __iter__(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("arguments", "dropped"),
    [
        (({"a": [1, 2, 3], "b": [1, 2]},), 3),
        (({"a": [1, 2, 3]}, {"b": [1] * 5}), 5),
        (({"a": np.array(5)},), 1),
        (({"a": 5},), 1),
        (({"a": "text"},), 1),
        (({"a": [1, 2], "b": {}},), 2),
        (({"a": _Hostile()},), 1),
        ((None,), 1),
        (([1, 2],), 1),
        (({"a": [1, 2]}, 5), 2),
        (({"a": [1, 2]}, {}, {2: ("E", "m", None)}), 2),
        (({"a": [1, 2]}, {}, {-1: ("E", "m", None)}), 2),
        (({"a": [1, 2]}, {}, {"0": ("E", "m", None)}), 2),
        (({"a": [1, 2]}, {}, {0: ("too", "few")}), 2),
        (({"a": [1, 2]}, {}, 5), 2),
    ],
)  # fmt: skip
def test_bad_columns_are_survived(
    bus: BusThread, arguments: tuple[Any, ...], dropped: int, caplog: pytest.LogCaptureFixture
) -> None:
    """They are dropped, counted and told, and what comes before and after arrives."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address) as publisher:
        publisher.record("r", PHASE, {"n": 1}, {})
        publisher.records("r", PHASE, *arguments)
        publisher.records("r", PHASE, {"n": [2]})
        publisher.complete_run("r", "completed")
        assert publisher.flush(5)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        assert [row["n"] for row in rows_of(subscriber.of(Records))] == [1, 2]
        assert [drop.records for drop in subscriber.of(Drop)] == [dropped]
    assert (end.records, end.dropped_records) == (2, dropped)
    assert "could not be encoded and was dropped" in caplog.text


def test_odd_runs_and_phases(bus: BusThread) -> None:
    """Nothing that stands for a run or a phase raises in the caller, or ends the publisher."""
    with Subscriber(bus.address, "phase_complete.") as subscriber, Publisher(bus.address) as publisher:
        for run_id, phase in ((None, None), ([], []), ("\ud800", PHASE), (5, "profiling")):
            publisher.records(run_id, phase, {"n": np.arange(99)})  # type: ignore[arg-type]
            publisher.records(run_id, phase, {"n": [1]})  # type: ignore[arg-type]
        publisher.flush(5)
        publisher.publish(PhaseComplete(run_id="r", phase=PHASE))
        wait_until(lambda: subscriber.of(PhaseComplete))


def test_values_that_cannot_travel(bus: BusThread, caplog: pytest.LogCaptureFixture) -> None:
    """Are left out and told; the others of their record arrive."""
    with Subscriber(bus.address, "records.") as subscriber, Publisher(bus.address) as publisher:
        publisher.records("r", PHASE, {"a": [1, object()] * 50, "b": np.arange(100)})
        assert publisher.flush(5)
        rows = rows_of(wait_until(lambda: subscriber.of(Records)))
    assert [len(row) for row in rows] == [4, 3] * 50
    assert "values that are not numbers were left out: a" in caplog.text


def test_no_records_publish_nothing(bus: BusThread) -> None:
    """Columns without values are no batch."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address) as publisher:
        publisher.records("r", PHASE, {})
        publisher.records("r", PHASE, {"n": np.arange(0)}, {"a": []}, {})
        publisher.complete_run("r", "completed")
        assert publisher.flush(5)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        assert not subscriber.of(Records)
        assert not subscriber.of(Drop)
    assert (end.records, end.dropped_records) == (0, 0)


def test_no_room(ipc_dir: Path) -> None:
    """Without a bus the first records stay and the others are dropped and counted, to the last one."""
    size, offered = 50_000, 40
    with Publisher(f"ipc://{ipc_dir}", buffer_bytes=8 << 20) as publisher:
        for _ in range(offered):
            publisher.records("r", PHASE, {"a": np.arange(size), "b": np.arange(size) / 3})
        publisher.complete_run("r", "completed")
        wait_until(lambda: not publisher._sender._inbox and bool(publisher._sender._sleep))
        messages = list(publisher._sender._outbox)
        publisher.close(0.0)
    kept = sum(message.records for message in messages)
    assert publisher._sender._outbox.size_bytes < 8.5 * (1 << 20)
    assert 7 << 20 < kept * 16 <= 8 << 20
    end = _decoded(messages[-1].frames)
    assert isinstance(end, RunComplete)
    assert (end.records, end.dropped_records) == (kept, size * offered - kept)


def test_a_call_larger_than_the_buffer(bus: BusThread, caplog: pytest.LogCaptureFixture) -> None:
    """Of one call the first records come that there is room for; the warning says what became of others."""
    caplog.set_level(logging.WARNING)
    with (
        Subscriber(bus.address, "run_complete.") as subscriber,
        Publisher(bus.address, buffer_bytes=1 << 20) as publisher,
    ):
        publisher.records("r", PHASE, {"a": np.arange(200_000)})
        publisher.complete_run("r", "completed")
        assert publisher.flush(10)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
    assert end.records + end.dropped_records == 200_000
    assert (1 << 20) // 2 < end.records * 8 <= 1 << 20
    assert "events are being dropped" in caplog.text


def test_columns_that_are_too_large_for_the_bus(bus: BusThread) -> None:
    """A batch is halved until it fits, and no record or error is lost or moved."""
    count = 6000
    texts = [f"{number}" + "x" * 2000 for number in range(count)]
    with Subscriber(bus.address) as subscriber, Publisher(bus.address) as publisher:
        wait_until(lambda: publisher.connected)
        publisher._sender._outbox.largest_bytes = 200_000
        errors = {number: ("E", str(number), None) for number in range(0, count, 7)}
        publisher.records("r", PHASE, {"n": np.arange(count)}, {"text": texts}, errors)
        publisher.complete_run("r", "completed")
        assert publisher.flush(20)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        rows = rows_of(subscriber.of(Records))
    assert [(row["n"], row["text"]) for row in rows] == list(enumerate(texts))
    assert [row["error"]["message"] for row in rows if row["error"]] == [
        message for _, message, _ in errors.values()
    ]
    assert end.records == count


def test_after_close() -> None:
    """A closed publisher takes columns, keeps nothing, and waits for nothing."""
    publisher = Publisher(bind="direct+tcp://127.0.0.1:0")
    publisher.close()
    publisher.records("r", PHASE, {"n": np.arange(100_000)})
    assert publisher.pending == 0


def _decoded(frames: tuple[bytes, bytes, bytes]) -> Any:
    from phase_bus.core.wire import decode_event

    return decode_event(frames[0], frames[2])
