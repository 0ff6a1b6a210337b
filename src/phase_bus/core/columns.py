"""Columns of records: what a caller gives, and the tables that numpy makes of it.

A column of plain numbers or texts becomes a column of a table at once. Whatever else there is, lists and
values of odd types, goes record by record through the :class:`~phase_bus.core.packing.Packer`, so that
the same becomes of it as if it had come in records.
"""

from __future__ import annotations

import array
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from phase_bus.core.packing import FORMATS, MISFITS, Packer, encode_others, letter_of
from phase_bus.core.values import as_text
from phase_bus.events import Table

Values: TypeAlias = list[Any] | npt.NDArray[Any]

_NUMBER_BYTES = 8  # on the wire
_OBJECT_BYTES = 64  # what a value of a sequence is taken for while it waits: an object, and a short text
_EMPTY = memoryview(b"")


def column_of(values: Any) -> Values:
    """Return values as a list or an array, which may still be the caller's own.

    Raises:
        TypeError: if there is no telling how many they are.
    """
    if isinstance(values, list | np.ma.MaskedArray):
        column: Values = values
    elif isinstance(values, array.array) or hasattr(values, "__array__"):
        column = np.asarray(values)
    elif isinstance(values, str | bytes | Mapping):
        raise TypeError(f"a column is an array or a sequence, not {values!r:.80}")
    else:
        column = list(values)
    len(column)  # an array of no dimension has none
    return column


def size_of(values: Values) -> int:
    """Return about how many bytes a column takes, here and on the wire."""
    if isinstance(values, list):
        return _OBJECT_BYTES * len(values)
    return max(
        int(values.nbytes), (_OBJECT_BYTES if values.dtype.hasobject else _NUMBER_BYTES) * len(values)
    )


def part_of(values: Values, first: int, end: int) -> Values:
    """Return a copy of a part of a column."""
    part = values[first:end]
    return part if isinstance(part, list) else part.copy()


def rows_of(columns: Mapping[Any, Values], count: int) -> list[dict[Any, Any]]:
    """Return columns as a dict a record, with None where a masked array has no value."""
    if not columns:
        return [{} for _ in range(count)]
    names = tuple(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*map(_listed, columns.values()), strict=True)]


def _listed(values: Values) -> list[Any]:
    if isinstance(values, list):
        return values
    plain: list[Any] = (values.astype("<f8") if values.dtype.kind == "f" else values).tolist()
    return plain


class _Plain(NamedTuple):
    """A column of plain numbers or texts, and the rows that have a value; None for all."""

    name: str
    letter: str
    values: Values
    rows: npt.NDArray[np.uint32] | None


def tables_of(
    columns: Mapping[Any, Values], count: int, packer: Packer, unusable: Counter[str]
) -> tuple[Table, ...]:
    """Return the tables of some records' metrics or fields; the packer packs what is not plain.

    Args:
        unusable: counts, by name, the values that are of no type that can travel.
    """
    if packer.wanted is not None:
        columns = {name: columns[name] for name in packer.wanted if name in columns}
    alike: defaultdict[bytes | None, list[_Plain]] = defaultdict(list)
    odd: dict[Any, Values] = {}
    # Names that change on their way may become the same: a record's later value takes the earlier's place.
    clean = all(isinstance(name, str) and as_text(name) == name for name in columns)
    for name, values in columns.items():
        plain = _plain(as_text(name), values) if clean else None
        if plain is None:
            odd[name] = values
        elif len(plain.values):
            alike[None if plain.rows is None else plain.rows.tobytes()].append(plain)
    tables = [_table(same) for same in alike.values()]
    if odd:
        tables += packer.tables(rows_of(odd, count), unusable)
    return tuple(tables)


def _plain(name: str, values: Values) -> _Plain | None:
    """Return a column of plain numbers or texts, None if it is none."""
    rows = None
    if not isinstance(values, list):
        if values.ndim != 1:
            return None
        if isinstance(values, np.ma.MaskedArray):
            rows = _places(~np.ma.getmaskarray(values))
            values = values.data if rows is None else values.data[rows]
        kind = values.dtype.kind
        if kind in "ifb" or (kind == "u" and values.max(initial=0) < 1 << 63):
            return _Plain(name, "i" if kind == "u" else kind, values, rows)
        if kind not in "OU" or rows is not None:
            return None
        values = values.tolist()
    kinds = set(map(type, values))
    if type(None) in kinds:
        kinds.discard(type(None))
        has_value = [value is not None for value in values]
        values, rows = list(compress(values, has_value)), _places(np.array(has_value))
    try:
        if kinds == {str}:
            "".join(values).encode()  # or a lone surrogate raises
            return _Plain(name, "s", values, rows)
        letters = set(map(letter_of, kinds))
        letter = letters.pop() if len(letters) == 1 else "f" if "f" in letters else "i"
        if not letters <= {"i", "f", "b"} or letter not in FORMATS:
            return None
        packed = struct.pack(f"<{len(values)}{FORMATS[letter]}", *values)
    except MISFITS:
        return None
    return _Plain(name, letter, np.frombuffer(packed, "<f8" if letter == "f" else "<i8"), rows)


def _places(has_value: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32] | None:
    """Return the rows that have a value, None if all have."""
    return None if has_value.all() else np.flatnonzero(has_value).astype("<u4")


def _table(columns: Sequence[_Plain]) -> Table:
    """Return the table of columns that have the same rows."""
    numbers = [column for column in columns if column.letter != "s"]
    texts = [column for column in columns if column.letter == "s"]
    count, rows = len(columns[0].values), columns[0].rows
    words = np.empty((count, len(numbers)), "<i8")
    for place, column in enumerate(numbers):
        (words.view("<f8") if column.letter == "f" else words)[:, place] = column.values
    return Table(
        tuple(column.name for column in (*numbers, *texts)),
        "".join(column.letter for column in (*numbers, *texts)),
        count,
        words.data.cast("B") if numbers else _EMPTY,
        memoryview(encode_others(list(zip(*(column.values for column in texts), strict=True))))
        if texts
        else _EMPTY,
        None if rows is None else rows.data.cast("B"),
    )
