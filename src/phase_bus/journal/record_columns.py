"""The columns of request records in a table, be it of Parquet or CSV."""

from __future__ import annotations

from typing import Any

from phase_bus.core.records import Column, RecordBatch
from phase_bus.events import Records

OURS = ("run_id", "phase", "phase_kind", "phase_index", "error_type", "error_message", "error_code")
"""What each record has besides its own fields and metrics."""


def own_columns(event: Records) -> dict[str, list[Any]]:
    """Return the columns of a batch that are :data:`OURS`, with a value or None for each record."""
    count = event.count
    errors = {error.row: (error.type, error.message, error.code) for error in event.errors}
    constant: tuple[Any, ...] = (event.run_id, event.phase.name, event.phase.kind, event.phase.index)
    of_errors = [[errors.get(row, (None, None, None))[place] for row in range(count)] for place in range(3)]
    ours = [*([value] * count for value in constant), *of_errors]
    return dict(zip(OURS, ours, strict=True))


def record_columns(batch: RecordBatch) -> dict[str, Column]:
    """Return a batch's fields and metrics by the names of their columns in the file."""
    both = {**batch.field_columns(), **batch.metric_columns()}
    return {f"{name}_" if name in OURS else name: column for name, column in both.items()}
