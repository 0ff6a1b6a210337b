"""Request records as rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phase_bus.core.records import Column, RecordBatch
from phase_bus.events import Records

_OURS = {
    "run_id": pa.string(),
    "phase": pa.string(),
    "phase_kind": pa.string(),
    "phase_index": pa.int64(),
    "error_type": pa.string(),
    "error_message": pa.string(),
    "error_code": pa.int64(),
}
_TYPES = {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "s": pa.string()}
_GROUP_ROWS, _GROUP_BYTES = 100_000, 64 << 20


def record_schema(batches: Iterable[Records]) -> pa.Schema:
    """Return the columns that batches of records need.

    A name that has whole numbers in one batch and floats in another becomes floats; one whose types do not
    fit together becomes text.
    """
    types: dict[str, pa.DataType] = {}
    for event in batches:
        for name, column in _columns(RecordBatch(event)).items():
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


def _columns(batch: RecordBatch) -> dict[str, Column]:
    """Return a batch's fields and metrics by the names of their columns in the file."""
    both = {**batch.field_columns(), **batch.metric_columns()}
    return {f"{name}_" if name in _OURS else name: column for name, column in both.items()}


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    numbers = {pa.int64(), pa.float64()}
    if {one, other} <= numbers:
        return pa.float64()
    lists = {pa.list_(number) for number in numbers}
    return pa.list_(pa.float64()) if {one, other} <= lists else pa.string()


def _table(event: Records, schema: pa.Schema) -> pa.Table:
    count = event.count
    errors = {error.row: (error.type, error.message, error.code) for error in event.errors}
    constant = (event.run_id, event.phase.name, event.phase.kind, event.phase.index)
    of_errors = [[errors.get(row, (None, None, None))[place] for row in range(count)] for place in range(3)]
    ours = [*([value] * count for value in constant), *of_errors]
    arrays = dict(zip(_OURS, ours, strict=True))
    there = _columns(RecordBatch(event))
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
    if column.rows is None and column.type in "ifb":
        return pa.array(column.values).cast(kind, safe=False)  # a whole number may be too large for a float
    full: list[Any] = [None] * count
    for row, value in column.items():
        full[row] = value
    if kind == pa.float64():
        full = [None if value is None else float(value) for value in full]
    elif kind == pa.list_(pa.float64()):
        full = [None if value is None else [float(each) for each in value] for value in full]
    elif kind == pa.string():
        full = [value if value is None or isinstance(value, str) else str(value) for value in full]
    return pa.array(full, kind)
