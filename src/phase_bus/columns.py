"""Columns: the form in which request records travel, and the builder that makes them.

One column holds one metric or field of many records as one little-endian array, so that writing costs
one C loop a column and numpy reads it without copying. This module runs inside the benchmark's process
and therefore needs nothing but msgspec; :mod:`phase_bus.records` is the reading side.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

ListMode: TypeAlias = Literal["summary", "omit", "full"]
DType: TypeAlias = Literal["i8", "f8", "b1", "str"]
Buffer: TypeAlias = bytes | memoryview

# What the values of a column may be together without a closer look at each.
_HOMOGENEOUS = ({int}, {float}, {int, float}, {str}, {bool}, {list})

_encode = msgspec.msgpack.Encoder().encode


class Column(Struct, frozen=True, array_like=True):
    """One metric or field of the records of a batch.

    Attributes:
        dtype: ``i8`` and ``f8`` are little-endian 64-bit integers and floats, ``b1`` one byte a
            value (0 or 1), ``str`` a msgpack array of strings.
        data: the values, those of the records that have one, in row order.
        rows: the row numbers those values belong to (u4, little-endian), None if all rows have one.
        lengths: for a metric that is a list, how many of the values belong to each of those rows
            (u4, little-endian); None if each has exactly one.
    """

    dtype: DType
    data: memoryview
    rows: memoryview | None = None
    lengths: memoryview | None = None


class RecordError(Struct, frozen=True, array_like=True):
    """Why a request failed.

    Attributes:
        row: the record's row number in its batch.
        type: the error's type (``TimeoutError``, ``Internal Server Error`` ...).
        message: the error's message.
        code: the HTTP status or other code, None without one.
    """

    row: int
    type: str
    message: str = ""
    code: int | None = None


class RecordBuilder:
    """Collects the records of one phase and turns them into columns.

    Adding stores references only; the work is done by :meth:`build`, in whichever thread calls it.

    Args:
        lists: what becomes of metrics that are lists of numbers. ``summary`` makes the columns
            ``<name>.count``, ``.mean``, ``.min`` and ``.max``; ``omit`` leaves them out; ``full``
            keeps every value.
    """

    def __init__(self, lists: ListMode = "summary") -> None:
        self._lists = lists
        self._metrics: list[Mapping[str, Any]] = []
        self._fields: list[Mapping[str, Any]] = []
        self._errors: list[RecordError] = []

    def __len__(self) -> int:
        return len(self._metrics)

    def add(
        self,
        metrics: Mapping[str, Any],
        fields: Mapping[str, Any],
        error: tuple[str, str, int | None] | None = None,
    ) -> None:
        """Add a record: its metrics, its fields and, if it failed, the error's type, message, code."""
        if error is not None:
            self._errors.append(RecordError(len(self._metrics), *error))
        self._metrics.append(metrics)
        self._fields.append(fields)

    def build(
        self,
    ) -> tuple[dict[str, Column], dict[str, Column], tuple[RecordError, ...], dict[str, int]]:
        """Return the metric columns, the field columns, the errors and the values left out.

        The last is how many values of each name were of no type that a column can hold.
        """
        unusable: dict[str, int] = {}
        columns = _columns(self._metrics, self._lists, unusable)
        fields = _columns(self._fields, self._lists, unusable)
        return columns, fields, tuple(self._errors), unusable


def _columns(
    rows: Sequence[Mapping[str, Any]], lists: ListMode, unusable: dict[str, int]
) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    names: dict[str, None] = {}
    for row in rows:
        if row.keys() != names.keys():
            names.update(dict.fromkeys(row))
    for name in names:
        index: list[int] | None = None
        try:
            values = [row[name] for row in rows]
        except KeyError:
            values, index = _present(rows, name)
        kinds = set(map(type, values))
        if kinds not in _HOMOGENEOUS:
            values, index, kinds = _usable(rows, name, unusable)
        if not values:
            continue
        if list in kinds:
            columns.update(_list_columns(name, values, index, lists))
        else:
            columns[name] = _column(values, index, kinds)
    return columns


def _present(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[Any], list[int]]:
    index = [number for number, row in enumerate(rows) if row.get(name) is not None]
    return [rows[number][name] for number in index], index


def _usable(
    rows: Sequence[Mapping[str, Any]], name: str, unusable: dict[str, int]
) -> tuple[list[Any], list[int] | None, set[type]]:
    """Return the values a column can hold: None is a missing value, numpy numbers become plain ones.

    What has the type of most values stays; another type, such as a text among numbers, is counted.
    """
    values, index = _present(rows, name)
    kept = [(i, plain) for i, v in zip(index, values, strict=True) if (plain := _plain(v)) is not None]
    groups = [_group(plain) for _, plain in kept]
    main = max(set(groups), key=groups.count) if groups else None
    kept = [pair for pair, group in zip(kept, groups, strict=True) if group == main]
    if len(kept) < len(values):
        unusable[name] = unusable.get(name, 0) + len(values) - len(kept)
    result = [plain for _, plain in kept]
    return result, None if len(kept) == len(rows) else [i for i, _ in kept], set(map(type, result))


def _plain(value: Any) -> Any:
    """Return the value as a plain int, float, bool, str or list of numbers, or None."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list | tuple):
        return list(value) if all(isinstance(v, int | float) for v in value) else None
    try:
        return value.item()
    except Exception:  # not a number of any library: the caller counts it
        return None


def _group(value: Any) -> str:
    return "number" if isinstance(value, int | float) else type(value).__name__


def _column(values: list[Any], index: list[int] | None, kinds: set[type]) -> Column:
    rows = None if index is None else _u4(index)
    if kinds == {str}:
        return Column("str", memoryview(_encode(values)), rows)
    if kinds == {bool}:
        return Column("b1", memoryview(bytes(values)), rows)
    dtype, data = _numbers(values, kinds)
    return Column(dtype, data, rows)


def _numbers(values: list[Any], kinds: set[type]) -> tuple[Literal["i8", "f8"], memoryview]:
    if float not in kinds:
        try:
            return "i8", _little_endian(array("q", values))
        except OverflowError:  # beyond 64 bits: a float keeps the magnitude
            pass
    return "f8", _little_endian(array("d", values))


def _list_columns(
    name: str, values: list[list[Any]], index: list[int] | None, lists: ListMode
) -> dict[str, Column]:
    if lists == "omit":
        return {}
    rows = None if index is None else _u4(index)
    if lists == "full":
        flat = [value for part in values for value in part]
        dtype, data = _numbers(flat, set(map(type, flat)))
        return {name: Column(dtype, data, rows, _u4([len(part) for part in values]))}
    counts = Column("i8", _little_endian(array("q", [len(part) for part in values])), rows)
    if not all(values):  # an empty list has a count, and no mean
        kept = [number for number, part in enumerate(values) if part]
        index = [number if index is None else index[number] for number in kept]
        values = [values[number] for number in kept]
    columns = {f"{name}.count": counts}
    if values:
        summaries = {
            "mean": [sum(part) / len(part) for part in values],
            "min": [min(part) for part in values],
            "max": [max(part) for part in values],
        }
        for suffix, column in summaries.items():
            columns[f"{name}.{suffix}"] = _column(column, index, set(map(type, column)))
    return columns


def _u4(numbers: list[int]) -> memoryview:
    return _little_endian(array("I", numbers))


def _little_endian(numbers: array[Any]) -> memoryview:
    if sys.byteorder == "big":
        numbers.byteswap()
    return memoryview(numbers).cast("B")


