"""Columns: the form in which request records travel, and the builder that makes them.

One column holds one metric or field of many records as one little-endian array, so that writing costs
one C loop a column and numpy reads it without copying. This module runs inside the benchmark's process;
:mod:`phase_bus.records` is the reading side.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Struct

ListMode: TypeAlias = Literal["summary", "omit", "full"]
DType: TypeAlias = Literal["i8", "f8", "b1", "str"]
Buffer: TypeAlias = bytes | memoryview

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
        """Add a record: its metrics, its fields and, if it failed, the error's type, message, code.

        Raises:
            TypeError, ValueError: they are not that.
        """
        for mapping in metrics, fields:
            if type(mapping) is not dict and not isinstance(mapping, Mapping):
                raise TypeError(f"a record's metrics and fields are mappings, not {mapping!r:.80}")
        if error is not None:
            kind, message, code = error
            usable = isinstance(code, int) and abs(code) < 1 << 63
            row = len(self._metrics)
            self._errors.append(RecordError(row, as_text(kind), as_text(message), code if usable else None))
        self._metrics.append(metrics)
        self._fields.append(fields)

    def build(
        self,
    ) -> tuple[dict[str, Column], dict[str, Column], tuple[RecordError, ...], dict[str, int]]:
        """Return the metric columns, the field columns, the errors and the values left out.

        The last is how many values of each name were of no type that a column can hold.
        """
        unusable: Counter[str] = Counter()
        columns = _columns(self._metrics, self._lists, unusable)
        fields = _columns(self._fields, self._lists, unusable)
        return columns, fields, tuple(self._errors), dict(unusable)


class _Rows:
    """The numbers of the rows that have a value; None for all rows."""

    def __init__(self, numbers: Sequence[int] | None) -> None:
        self.numbers = numbers

    @cached_property
    def packed(self) -> memoryview | None:
        """As they travel."""
        return None if self.numbers is None else _u4(self.numbers)

    def pick(self, places: Sequence[int]) -> _Rows:
        """Return those at some places."""
        numbers = self.numbers
        return _Rows(places if numbers is None else [numbers[place] for place in places])


def _columns(
    rows: Sequence[Mapping[str, Any]], lists: ListMode, unusable: Counter[str]
) -> dict[str, Column]:
    """Return the columns of some rows.

    Rows with the same keys in the same order (there are few such shapes: successes, failures) are turned
    at once, by one ``zip`` over their values.
    """
    columns: dict[str, Column] = {}
    shapes: dict[tuple[str, ...], list[int]] = {}
    last: tuple[str, ...] | None = None
    numbers: list[int] = []
    for number, row in enumerate(rows):
        names = tuple(row)
        if names != last:
            numbers = shapes.setdefault(names, [])
            last = names
        numbers.append(number)
    parts: dict[str, list[tuple[_Rows, Sequence[Any]]]] = {}
    for names, numbers in shapes.items():
        where = _Rows(None if len(numbers) == len(rows) else numbers)
        turned = zip(*[rows[number].values() for number in numbers], strict=True)
        for name, values in zip(names, turned, strict=True):
            parts.setdefault(name, []).append((where, values))
    merge = _Merge(len(rows))
    for name, pieces in parts.items():
        where, column = pieces[0] if len(pieces) == 1 else merge(pieces)
        key: Any = name
        if isinstance(key, str):
            columns.update(_column(as_text(key), column, where, lists, unusable))
        else:  # a caller without a type checker
            unusable[str(key)] += len(column)
    return columns


class _Merge:
    """Puts together, in the order of the rows, what rows of several shapes have of one name."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._known: dict[tuple[int, ...], tuple[_Rows, itemgetter[Any]]] = {}

    def __call__(self, pieces: list[tuple[_Rows, Sequence[Any]]]) -> tuple[_Rows, Sequence[Any]]:
        key = tuple(id(rows) for rows, _ in pieces)
        known = self._known.get(key)
        if known is None:
            numbers = [number for rows, _ in pieces for number in rows.numbers or ()]
            order = sorted(range(len(numbers)), key=numbers.__getitem__)
            merged = _Rows(None if len(numbers) == self._count else sorted(numbers))
            known = self._known[key] = merged, itemgetter(*order)
        rows, in_order = known
        return rows, in_order([value for _, values in pieces for value in values])


def _column(
    name: str, values: Sequence[Any], rows: _Rows, lists: ListMode, unusable: Counter[str]
) -> dict[str, Column]:
    """Return the column of some values, none if there is none, several for a list's summary."""
    if not values or (values[0] is None and set(map(type, values)) == {type(None)}):
        return {}
    try:
        return _encoded(name, values, rows, lists)
    except (TypeError, ValueError, OverflowError, struct.error):
        pass  # not all of one kind; the rest of this looks at each value
    present = [place for place, value in enumerate(values) if value is not None]
    if len(present) < len(values):  # None is a missing value
        return _column(name, [values[p] for p in present], rows.pick(present), lists, unusable)
    places, plain = _usable(values)
    unusable[name] += len(values) - len(plain)
    unusable += Counter()  # without zeros
    return _encoded(name, plain, rows.pick(places), lists) if plain else {}


def _encoded(name: str, values: Sequence[Any], rows: _Rows, lists: ListMode) -> dict[str, Column]:
    """Return the column of values that are all numbers, all texts, all flags, or all lists of numbers.

    Raises:
        TypeError, ValueError, OverflowError, struct.error: they are not.
    """
    kind = type(values[0])
    if kind is int or kind is float:
        dtype, data = _numbers(values, whole=kind is int)
        return {name: Column(dtype, data, rows.packed)}
    if set(map(type, values)) == {kind}:
        if kind is str:
            return {name: Column("str", memoryview(_encode(values)), rows.packed)}
        if kind is bool:
            return {name: Column("b1", memoryview(bytes(values)), rows.packed)}
        if kind is list:
            return _list_columns(name, values, rows, lists)
    raise TypeError


def _numbers(values: Sequence[Any], *, whole: bool) -> tuple[Literal["i8", "f8"], memoryview]:
    if whole:
        try:
            return "i8", memoryview(struct.pack(f"<{len(values)}q", *values))
        except struct.error:  # a float among them, or beyond 64 bits: a float keeps the magnitude
            pass
    return "f8", memoryview(struct.pack(f"<{len(values)}d", *values))


def _list_columns(
    name: str, values: Sequence[list[Any]], rows: _Rows, lists: ListMode
) -> dict[str, Column]:
    if lists == "omit":
        return {}
    lengths = list(map(len, values))
    dtype, data = _numbers(list(chain.from_iterable(values)), whole=True)
    if lists == "full":
        return {name: Column(dtype, data, rows.packed, _u4(lengths))}
    columns = {f"{name}.count": Column(*_numbers(lengths, whole=True), rows.packed)}
    if not all(lengths):  # an empty list has a count, and no mean
        rows = rows.pick([place for place, length in enumerate(lengths) if length])
        lengths = [length for length in lengths if length]
    if lengths:
        flat = np.frombuffer(data, f"<{dtype}")
        starts = np.cumsum([0, *lengths[:-1]])
        with np.errstate(all="ignore"):  # infinities have no mean, and that is all there is to it
            means = np.add.reduceat(flat.astype("<f8"), starts) / lengths
        columns[f"{name}.mean"] = Column("f8", means.data.cast("B"), rows.packed)
        for suffix, summary in ("min", np.minimum), ("max", np.maximum):
            extremes = summary.reduceat(flat, starts).astype(flat.dtype, copy=False)
            columns[f"{name}.{suffix}"] = Column(dtype, extremes.data.cast("B"), rows.packed)
    return columns


def _usable(values: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """Return the values a column can hold, with their places; numpy's become plain ones.

    What is of the kind of most values stays; another, such as a text among numbers, is left out.
    """
    kept = [(i, plain) for i, value in enumerate(values) if (plain := _plain(value)) is not None]
    groups = Counter(_group(plain) for _, plain in kept)
    main = groups.most_common(1)[0][0] if groups else ""
    kept = [pair for pair in kept if _group(pair[1]) == main]
    plains = [plain for _, plain in kept]
    if main == "number" and any(type(plain) is not bool for plain in plains):
        plains = [plain + 0 for plain in plains]  # a flag among numbers counts as 0 or 1
    return [i for i, _ in kept], plains


def _plain(value: Any, *, convert: bool = True) -> Any:
    """Return the value as a plain int, float, bool, str or list of numbers, or None."""
    try:
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            float(value)  # an int too large for a float is too large for a column
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return as_text(value)
        if isinstance(value, list | tuple):
            numbers = [_plain(part) for part in value]
            return numbers if all(isinstance(number, int | float) for number in numbers) else None
        return _plain(value.tolist(), convert=False) if convert else None  # of numpy and its kin
    except Exception:  # not a number of any library: the caller counts it
        return None


def _group(value: Any) -> str:
    return "number" if isinstance(value, int | float) else type(value).__name__


def as_text(value: Any) -> str:
    """Return the value as a text that UTF-8 can carry (an enum's is its value)."""
    text = str.__str__(value) if isinstance(value, str) else str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _u4(numbers: Sequence[int]) -> memoryview:
    return memoryview(struct.pack(f"<{len(numbers)}I", *numbers))
