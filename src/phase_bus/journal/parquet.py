"""Request records as rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phase_bus.core.records import Column, RecordBatch
from phase_bus.events import Records
from phase_bus.journal.record_columns import OURS, own_columns, record_columns

_OURS = {name: pa.int64() if name in ("phase_index", "error_code") else pa.string() for name in OURS}
_TYPES = {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "s": pa.string()}
_GROUP_ROWS, _GROUP_BYTES = 100_000, 64 << 20


def record_schema(batches: Iterable[Records]) -> pa.Schema:
    """Return the columns that batches of records need.

    A name that has whole numbers in one batch and floats in another becomes floats; one whose types do not
    fit together becomes text.
    """
    types: dict[str, pa.DataType] = {}
    for event in batches:
        for name, column in record_columns(RecordBatch(event)).items():
            kind = _TYPES[column.type] if column.type != "l" else pa.list_(_TYPES[column.values.dtype.kind])
            known = types.setdefault(name, kind)
            if known != kind:
                types[name] = _common(known, kind)
    return pa.schema([*_OURS.items(), *sorted(types.items())])


def write_parquet(path: Path, schema: pa.Schema, batches: Iterable[Records]) -> int:
    """Write batches as rows of a schema from :func:`record_schema`; return how many rows there are."""
    rows = 0
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, schema) as writer:
        for event in batches:
            waiting.append(_table(event, schema))
            rows += event.count
            if (
                sum(table.num_rows for table in waiting) >= _GROUP_ROWS
                or sum(table.nbytes for table in waiting) >= _GROUP_BYTES
            ):
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return rows


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    numbers = {pa.int64(), pa.float64()}
    if {one, other} <= numbers:
        return pa.float64()
    lists = {pa.list_(number) for number in numbers}
    return pa.list_(pa.float64()) if {one, other} <= lists else pa.string()


def _table(event: Records, schema: pa.Schema) -> pa.Table:
    count = event.count
    arrays: dict[str, Any] = {**own_columns(event)}
    there = record_columns(RecordBatch(event))
    for field in schema:
        if field.name in _OURS:
            arrays[field.name] = pa.array(arrays[field.name], field.type)
        elif field.name in there:
            arrays[field.name] = _array(there[field.name], count, field.type)
        else:
            arrays[field.name] = pa.nulls(count, field.type)
    return pa.table(arrays, schema=schema)


def _array(column: Column, count: int, kind: pa.DataType) -> pa.Array:
    """Return a column with a value or null for each record."""
    array = column.to_arrow(count)
    if kind == pa.string() and column.type in "bl":
        texts = [None if value is None else str(value) for value in array.to_pylist()]
        return pa.array(texts, kind)
    return array.cast(kind, safe=False)  # a whole number may be too large for a float
