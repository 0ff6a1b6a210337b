"""The reading side of record batches: numpy arrays without copying, or one dict a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from phase_bus.columns import Column, RecordError
from phase_bus.events import EventBase, PhaseRef, Records

_DTYPES = {"i8": np.dtype("<i8"), "f8": np.dtype("<f8"), "b1": np.dtype("?")}
_decode_strings = msgspec.msgpack.Decoder(list[str]).decode


class RecordBatch:
    """A batch of request records, read from a ``records`` event.

    Args:
        event: the event. Arrays are views on its bytes and keep them alive.
    """

    def __init__(self, event: Records) -> None:
        self.event = event

    def __len__(self) -> int:
        return self.event.count

    @property
    def phase(self) -> PhaseRef:
        """The phase all the batch's requests belong to."""
        return self.event.phase

    @property
    def errors(self) -> tuple[RecordError, ...]:
        """The failed requests, by row number."""
        return self.event.errors

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numeric metrics that at least one record has."""
        return tuple(name for name, c in self.event.columns.items() if c.dtype != "str")

    def values(self, name: str) -> npt.NDArray[Any]:
        """Return a metric's or field's values, shape (n,), those of the records that have one.

        Times and latencies are in ns where the name says so or AIPerf's raw unit is ns. The array is
        read-only, and of strings (dtype object) for a text field. For a metric that is a list the
        values of all rows follow one another.

        Raises:
            KeyError: no record of the batch has it.
        """
        column = self._column(name)
        if column.dtype == "str":
            return np.array(_decode_strings(column.data), dtype=object)
        return np.frombuffer(column.data, _DTYPES[column.dtype])

    def rows(self, name: str) -> npt.NDArray[np.uint32]:
        """Return the row numbers, shape (n,), of the records that have this metric or field."""
        column = self._column(name)
        if column.rows is None:
            return np.arange(len(self), dtype=np.uint32)
        return np.frombuffer(column.rows, "<u4")

    def dense(self, name: str) -> npt.NDArray[np.float64]:
        """Return a numeric metric for every record, shape (len,), with NaN where one has none."""
        full = np.full(len(self), np.nan)
        full[self.rows(name)] = self.values(name)
        return full

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each record as a dict: fields, metrics, ``phase``, and ``error`` (None, or a dict)."""
        records: list[dict[str, Any]] = [
            {"phase": self.phase.name, "error": None} for _ in range(len(self))
        ]
        for name in (*self.event.fields, *self.event.columns):
            for row, value in zip(self.rows(name).tolist(), self._per_row(name), strict=True):
                records[row][name] = value
        for error in self.errors:
            records[error.row]["error"] = {
                "type": error.type,
                "message": error.message,
                "code": error.code,
            }
        yield from records

    def _column(self, name: str) -> Column:
        column = self.event.columns.get(name) or self.event.fields.get(name)
        if column is None:
            raise KeyError(name)
        return column

    def _per_row(self, name: str) -> list[Any]:
        values, lengths = self.values(name), self._column(name).lengths
        if lengths is None:
            plain: list[Any] = values.tolist()
            return plain
        ends = np.cumsum(np.frombuffer(lengths, "<u4"))[:-1]
        return [part.tolist() for part in np.split(values, ends)]


def to_plain(event: EventBase) -> dict[str, Any]:
    """Return an event as plain dicts, lists and numbers, for JSON.

    A column becomes ``{"values": [...]}``, with ``"rows": [...]`` if some records have no value, and
    ``"lengths"`` for a metric that is a list. A float that is no number becomes null, as JSON demands.
    """
    if not isinstance(event, Records):
        plain: dict[str, Any] = msgspec.to_builtins(event)
        return plain
    batch = RecordBatch(event)
    slim = msgspec.structs.replace(event, columns={}, fields={})
    plain = msgspec.to_builtins(slim)
    for group, columns in (("columns", event.columns), ("fields", event.fields)):
        plain[group] = {name: _plain_column(batch, name, c) for name, c in columns.items()}
    plain["errors"] = [msgspec.structs.asdict(error) for error in event.errors]
    return plain


def _plain_column(batch: RecordBatch, name: str, column: Column) -> dict[str, Any]:
    plain: dict[str, Any] = {"values": batch.values(name).tolist()}
    if column.rows is not None:
        plain["rows"] = np.frombuffer(column.rows, "<u4").tolist()
    if column.lengths is not None:
        plain["lengths"] = np.frombuffer(column.lengths, "<u4").tolist()
    return plain
