"""Whatever records hold, they are rows of a Parquet file, each with what it had."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.core.values import ListMode
from phase_bus.events import PhaseRef, Records
from phase_bus.journal.parquet import record_schema, write_parquet
from phase_bus.publisher.record_builder import RecordBuilder

odd = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.lists(st.one_of(st.floats(), st.integers(-(2**65), 2**65), st.booleans()), max_size=3),
)
metrics = st.dictionaries(st.sampled_from(["odd", "run_id", "run_id_", "\ud800"]), odd)
fields = st.dictionaries(st.sampled_from(["request_end_ns", "odd", "error_type"]), odd)


def batch_of(rows: list[Any], lists: ListMode) -> Records:
    builder = RecordBuilder(lists)
    for row in rows:
        builder.add(*row)
    metrics, fields, errors, _ = builder.build()
    return Records(
        run_id="r", phase=PhaseRef("p"), count=len(rows), metrics=metrics, fields=fields, errors=errors
    )


def rows_of(batches: list[Records]) -> list[dict[str, Any]]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "records.parquet"
        assert write_parquet(path, record_schema(batches), batches) == sum(b.count for b in batches)
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(
    st.lists(st.lists(st.tuples(metrics, fields), max_size=5), min_size=1, max_size=3),
    st.sampled_from(["summary", "full"]),
)
def test_odd_values_do_not_spoil_the_rows(batches: list[Any], lists: ListMode) -> None:
    steady = [({"request_latency": n}, {"request_end_ns": n}) for n in range(3)]
    found = rows_of([batch_of([*steady, *rows], lists) for rows in batches])
    assert [row["request_latency"] for row in found if row["request_latency"] is not None] == [
        0,
        1,
        2,
    ] * len(batches)


def test_a_time_that_is_no_number_once_leaves_the_others(tmp_path: Path) -> None:
    """Times in ns are beyond the whole numbers that a float holds exactly."""
    end_ns = 1_795_354_391_000_000_001
    found = rows_of(
        [batch_of([({}, {"end": end_ns})], "full"), batch_of([({}, {"end": math.nan})], "full")]
    )
    assert found[0]["end"] == pytest.approx(end_ns)
    assert math.isnan(found[1]["end"])
