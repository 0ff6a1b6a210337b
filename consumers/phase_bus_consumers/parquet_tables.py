"""Records and events as the tables of Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import structs

from phase_bus import (
    EventBase,
    Origin,
    PhaseEvent,
    Position,
    RecordBatch,
    Records,
    Verdict,
    join_records,
)

Places: TypeAlias = Sequence[tuple[Position, Origin]]  # of events

_SOURCES = b"phase_bus.sources"
_OURS = {
    "key": pa.string(),
    "stream": pa.string(),
    "stream_offset": pa.int64(),
    "record_row": pa.int32(),
    "phase": pa.string(),
    "phase_kind": pa.string(),
    "phase_index": pa.int64(),
    "error_type": pa.string(),
    "error_message": pa.string(),
    "error_code": pa.int64(),
}
_RESERVED = {*_OURS, "run_id"}
_EVENTS = pa.schema(
    {
        "key": pa.string(),
        "stream": pa.string(),
        "stream_offset": pa.int64(),
        "kind": pa.string(),
        "ts_ns": pa.int64(),
        "phase": pa.string(),
        "event": pa.string(),
    }
)
_VERDICTS = pa.schema(
    {
        "key": pa.string(),
        "stream": pa.string(),
        "stream_offset": pa.int64(),
        "ts_ns": pa.int64(),
        "phase": pa.string(),
        "producer": pa.string(),
        "threshold": pa.string(),
        "state": pa.string(),
        "final": pa.bool_(),
        "value": pa.float64(),
        "limit": pa.float64(),
        "unit": pa.string(),
        "samples": pa.int64(),
        "offset": pa.int64(),
        "reason": pa.string(),
        "abort": pa.bool_(),
    }
)


def file_of(table: pa.Table, sources: dict[str, int]) -> pa.Buffer:
    """Return a Parquet file that says up to which number the run's sources are here."""
    said = {**(table.schema.metadata or {}), _SOURCES: msgspec.json.encode(sources)}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(said), sink, compression="zstd")
    return sink.getvalue()


def sources_in(data: bytes) -> dict[str, int]:
    """Return what a file says of the sources.

    Raises:
        pa.ArrowInvalid: if it is no whole Parquet file.
    """
    said = pq.read_schema(pa.BufferReader(data)).metadata or {}
    return msgspec.json.decode(said.get(_SOURCES, b"{}"), type=dict[str, int])


def event_table(events: Sequence[EventBase], places: Places) -> pa.Table:
    """Return events as rows, with each one as JSON."""
    rows = [
        (
            origin.key,
            at.stream,
            at.offset,
            event.kind,
            min(event.ts_ns, 2**63 - 1),
            event.phase.name if isinstance(event, PhaseEvent) else None,
            msgspec.json.encode(event).decode(),
        )
        for event, (at, origin) in zip(events, places, strict=True)
    ]
    columns = zip(_EVENTS, zip(*rows, strict=True), strict=True)
    return pa.table([pa.array(values, field.type) for field, values in columns], schema=_EVENTS)


def verdict_table(events: Sequence[Verdict], places: Places) -> pa.Table:
    """Return verdicts as rows, with a column for each thing that they say."""
    rows = [
        {**structs.asdict(event), "key": origin.key, "stream": at.stream, "stream_offset": at.offset}
        for event, (at, origin) in zip(events, places, strict=True)
    ]
    return pa.Table.from_pylist(rows, _VERDICTS)


def record_table(events: Sequence[Records], places: Places) -> pa.Table:
    """Return records as rows, with a column for each metric and field."""
    tables = [
        _joined(event, [(events[place].count, *places[place]) for place in which])
        for event, which in join_records(events)
    ]
    types: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.schema:
            known = types.setdefault(field.name, field.type)
            types[field.name] = known if known == field.type else _common(known, field.type)
    ours = {name: types.pop(name) for name in _OURS}
    schema = pa.schema([*ours.items(), *sorted(types.items())])
    return pa.concat_tables([_cast(table, schema) for table in tables])


def _joined(event: Records, pieces: Sequence[tuple[int, Position, Origin]]) -> pa.Table:
    batch, count = RecordBatch(event), event.count
    counts, ats, origins = zip(*pieces, strict=True)
    rows = pa.array(np.concatenate([np.arange(each, dtype=np.int32) for each in counts]))
    which = pa.array(np.repeat(np.arange(len(pieces)), counts))
    keys = pa.array([origin.key for origin in origins]).take(which)
    errors: dict[str, list[Any]] = {name: [None] * count for name in ("type", "message", "code")}
    for error in event.errors:
        for name, values in errors.items():
            values[error.row] = getattr(error, name)
    ours = {
        "key": pc.binary_join_element_wise(keys, rows.cast(pa.string()), "-"),
        "stream": pa.array([at.stream for at in ats]).take(which),
        "stream_offset": pa.array([at.offset for at in ats]).take(which),
        "record_row": rows,
        "phase": [event.phase.name] * count,
        "phase_kind": [event.phase.kind] * count,
        "phase_index": [max(-(2**63), min(event.phase.index, 2**63 - 1))] * count,
        **{f"error_{name}": values for name, values in errors.items()},
    }
    arrays = {name: pa.array(values, _OURS[name]) for name, values in ours.items()}
    for name, column in {**batch.field_columns(), **batch.metric_columns()}.items():
        arrays[f"{name}_" if name in _RESERVED else name] = column.to_arrow(count)
    return pa.table(arrays)


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    kinds = {one, other}
    if kinds <= {pa.int64(), pa.float64(), pa.bool_()}:
        return pa.float64() if pa.float64() in kinds else pa.int64()
    if kinds <= {pa.list_(pa.int64()), pa.list_(pa.float64())}:
        return pa.list_(pa.float64())
    return pa.string()


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with all columns of a schema."""
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        if pa.types.is_list(column.type) and field.type == pa.string():
            texts = [
                None if each is None else msgspec.json.encode(each).decode() for each in column.to_pylist()
            ]
            column = pa.array(texts, pa.string())
        arrays.append(column.cast(field.type, safe=False))
    return pa.table(arrays, schema=schema)
