"""Columns of records as Arrow arrays, without an object for each value."""

from __future__ import annotations

from typing import Any

import numpy as np

from phase_bus.core.classes import import_extra


def array_of(type_: str, values: Any, rows: Any, lengths: Any, count: int) -> Any:
    """Return an Arrow array of so many values, null for each record that has none.

    Args:
        type_: the letter of a :class:`~phase_bus.core.records.Column`, as are the next three.
        values: the values.
        rows: the rows that have one.
        lengths: of lists, how many of the values belong to each.
        count: how many records there are.

    Raises:
        ConfigError: if pyarrow is not installed.
    """
    pa = import_extra("pyarrow", "parquet")
    if lengths is None:
        kinds = {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "s": pa.string()}
        full, missing = _spread(values, rows, count)
        return pa.array(full, kinds[type_], mask=missing)
    full, missing = _spread(lengths, rows, count)
    ends = np.cumsum(full, dtype=np.int32)
    offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
    mask = None if missing is None else pa.array(missing)
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=mask)


def _spread(values: Any, rows: Any, count: int) -> tuple[Any, Any]:
    """Return values at the places of their rows, and which places have none; None if all have one."""
    if rows is None:
        return values, None
    full = np.zeros(count, values.dtype)
    missing = np.ones(count, np.bool_)
    full[rows], missing[rows] = values, False
    return full, missing
