"""Tables: the form in which request records travel, and the builder that makes them.

Records whose metrics have the same names and the same types of values are rows of one table. There are
few such shapes in a run (successes, failures), so a record is packed by a few calls into C, and numpy
reads the numbers as they are. This module runs inside the benchmark's process; :mod:`phase_bus.packing`
does the packing and :mod:`phase_bus.records` is the reading side.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

ListMode: TypeAlias = Literal["summary", "omit", "full"]


class Table(Struct, frozen=True, array_like=True):
    """Metrics or fields of records that have all of the same names, with values of the same types.

    Attributes:
        names: the names, those of numbers before those of texts and lists.
        types: a letter for each name. ``i`` and ``f`` are 64-bit integers and floats, ``b`` a flag as a
            64-bit 0 or 1, ``s`` a text, ``l`` a list of numbers.
        count: the number of rows.
        numbers: the values of ``i``, ``f`` and ``b``, row after row, 8 bytes each, little-endian.
        others: a msgpack array of rows, each an array of the row's values of ``s`` and ``l``; empty
            without any.
        rows: the records' row numbers in the batch (u4, little-endian), None for 0 to count - 1.
    """

    names: tuple[str, ...]
    types: str
    count: int
    numbers: memoryview = memoryview(b"")
    others: memoryview = memoryview(b"")
    rows: memoryview | None = None


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


def as_text(value: Any) -> str:
    """Return the value as a text that UTF-8 can carry (an enum's is its value)."""
    text = str.__str__(value) if isinstance(value, str) else str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
