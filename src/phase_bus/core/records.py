"""The reading side of record batches: a numpy array for a metric or field, or one dict a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from phase_bus.core.arrow import array_of
from phase_bus.core.wire import decode
from phase_bus.errors import WireError
from phase_bus.events import EventBase, PhaseRef, RecordError, Records, Table

_decode_others = msgspec.msgpack.Decoder(list[list[str | list[int | float | bool]]]).decode
_decode_rows = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_BYTES = 8  # of a number
_NUMBER = "number"
_NUMBERS = frozenset("ifb")
_T = TypeVar("_T", bound=np.generic)


class Column(Struct, frozen=True):
    """A batch's values of one metric or field.

    Attributes:
        type: ``i`` and ``f`` for 64-bit integers and floats, ``b`` for flags, ``s`` for texts, ``l`` for
            lists of numbers.
        values: the values of the records that have one, in row order, read-only; those of lists follow
            one another.
        rows: the row numbers of those records, None if all have one.
        lengths: for lists, how many of the values belong to each of those records, else None.
    """

    type: str
    values: npt.NDArray[Any]
    rows: npt.NDArray[np.uint32] | None = None
    lengths: npt.NDArray[np.uint32] | None = None

    def items(self) -> Iterator[tuple[int, Any]]:
        """Yield the row number and the value, as a plain one, of each record that has one."""
        values: list[Any] = self.values.tolist()
        if self.lengths is not None:
            ends = np.cumsum(self.lengths).tolist()
            values = [values[end - n : end] for end, n in zip(ends, self.lengths.tolist(), strict=True)]
        rows = range(len(values)) if self.rows is None else self.rows.tolist()
        return zip(rows, values, strict=True)

    def to_arrow(self, count: int) -> Any:
        """Return a ``pyarrow.Array`` of the batch's length, null for each record that has no value.

        Raises:
            ConfigError: if pyarrow is not installed.
        """
        return array_of(self.type, self.values, self.rows, self.lengths, count)


class RecordBatch:
    """A batch of request records, read from a ``records`` event.

    The array of a name has floats if one of its values is a float, and numbers if some are flags. Where
    some records have a number and others a text or a list, the array has the numbers only; iteration over
    the records shows all.

    Args:
        event: the event. Arrays are views on its bytes and keep them alive.

    Raises:
        WireError: if its tables contradict themselves. Every method may raise it.
    """

    def __init__(self, event: Records) -> None:
        self.event = event
        self._metrics = [_Table(table, event.count) for table in event.metrics]
        self._fields = [_Table(table, event.count) for table in event.fields]
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return self.event.count

    def __contains__(self, name: object) -> bool:
        """Return whether at least one record has this metric or field."""
        return any(name in table.places for table in chain(self._metrics, self._fields))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the records as dicts: fields, metrics, ``phase``, ``error`` (None, or a dict)."""
        records: list[dict[str, Any]] = [
            {"phase": self.phase.name, "error": None} for _ in range(len(self))
        ]
        for table in chain(self._fields, self._metrics):
            names = table.places
            for row, values in table.items():
                records[row].update(zip(names, values, strict=True))
        for error in self.errors:
            if not 0 <= error.row < len(records):
                raise WireError(f"an error is that of record {error.row} of {len(records)}")
            told = {"type": error.type, "message": error.message, "code": error.code}
            records[error.row]["error"] = told
        return iter(records)

    def check(self) -> None:
        """Read everything, for one who is to use it later.

        Raises:
            WireError: if something is damaged.
        """
        for table in chain(self._metrics, self._fields):
            if table.width < len(table.types):
                table.others(table.width)
        for error in self.errors:
            if not 0 <= error.row < len(self):
                raise WireError(f"an error is that of record {error.row} of {len(self)}")

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
        return tuple(dict.fromkeys(chain.from_iterable(table.numeric() for table in self._metrics)))

    def metric_columns(self) -> dict[str, Column]:
        """Return the columns of all metrics, by name."""
        return _columns(self._metrics, len(self))

    def field_columns(self) -> dict[str, Column]:
        """Return the columns of all fields, by name."""
        return _columns(self._fields, len(self))

    def column(self, name: str) -> Column:
        """Return the column of a metric or, if there is none of this name, of a field.

        Raises:
            KeyError: if no record of the batch has it.
        """
        column = self._columns.get(name)
        if column is None:
            pieces = _find(self._metrics, name) or _find(self._fields, name)
            if not pieces:
                raise KeyError(name)
            column = self._columns[name] = _column(pieces, len(self))
        return column

    def values(self, name: str) -> npt.NDArray[Any]:
        """Return a metric's or field's values, shape (n,), of the records that have one.

        Times and latencies are in ns where the name says so or AIPerf's raw unit is ns. The array is
        read-only, and of strings (dtype object) for a text field; values of lists follow one another.

        Raises:
            KeyError: if no record of the batch has it.
        """
        return self.column(name).values

    def rows(self, name: str) -> npt.NDArray[np.uint32]:
        """Return the row numbers, shape (n,), of the records that have this metric or field.

        Raises:
            KeyError: if no record of the batch has it.
        """
        rows = self.column(name).rows
        return np.arange(len(self), dtype=np.uint32) if rows is None else rows

    def dense(self, name: str) -> npt.NDArray[np.float64]:
        """Return a numeric metric for every record, shape (len,), with NaN where one has none.

        Raises:
            KeyError: if no record of the batch has it.
        """
        full = np.full(len(self), np.nan)
        full[self.rows(name)] = self.values(name)
        return full


def join_records(events: Sequence[Records]) -> list[tuple[Records, list[int]]]:
    """Join batches: columns of many records are made faster than many columns of a few.

    Each joined batch is of one run and phase, and a name that is a number in one event and a text or list
    in another is in different ones.

    Returns:
        The joined batches, each with the places of the events whose records it has, one after another.

    Raises:
        WireError: if an event is damaged.
    """
    groups: dict[tuple[str, PhaseRef], list[tuple[dict[str, str], list[int]]]] = {}
    for place, event in enumerate(events):
        kinds = {
            name: _NUMBER if type_ in _NUMBERS else type_
            for table in chain(event.metrics, event.fields)
            for name, type_ in zip(table.names, table.types, strict=False)
        }
        alike = groups.setdefault((event.run_id, event.phase), [])
        for known, places in alike:
            if all(known.get(name, kind) == kind for name, kind in kinds.items()):
                known.update(kinds)
                places.append(place)
                break
        else:
            alike.append((kinds, [place]))
    found = [places for alike in groups.values() for _, places in alike]
    return [(_join([events[place] for place in places]), places) for places in found]


def _join(events: Sequence[Records]) -> Records:
    """Return batches as one, in which tables of one shape are one table."""
    if len(events) == 1:
        return events[0]
    firsts = [0, *accumulate(event.count for event in events)]
    errors = [
        msgspec.structs.replace(error, row=error.row + first)
        for event, first in zip(events, firsts, strict=False)
        for error in event.errors
    ]
    metrics, fields = (
        _join_tables([tables(event) for event in events], firsts)
        for tables in (attrgetter("metrics"), attrgetter("fields"))
    )
    return msgspec.structs.replace(
        events[0], count=firsts[-1], metrics=metrics, fields=fields, errors=tuple(errors)
    )


_Piece: TypeAlias = tuple[Table, int, int]  # a table, the first record of its batch, and the next one's


def _join_tables(tables: Sequence[tuple[Table, ...]], firsts: Sequence[int]) -> tuple[Table, ...]:
    shapes: dict[tuple[tuple[str, ...], str, int], list[_Piece]] = {}
    for each, (first, end) in zip(tables, pairwise(firsts), strict=True):
        seen: Counter[tuple[tuple[str, ...], str]] = Counter()
        for table in each:
            shape = (table.names, table.types)
            shapes.setdefault((*shape, seen[shape]), []).append((table, first, end))
            seen[shape] += 1
    return tuple(_joined(pieces, firsts[-1]) for pieces in shapes.values())


def _joined(pieces: Sequence[_Piece], total: int) -> Table:
    """Return tables of one shape as one."""
    count = sum(table.count for table, _, _ in pieces)
    rows = None
    if count < total or any(table.rows is not None for table, _, _ in pieces):
        rows = memoryview(b"".join(_places(*piece) for piece in pieces))
    others = b""
    if pieces[0][0].others:
        rows_of = [
            decode(_decode_rows, table.others, "a table's texts and lists") for table, _, _ in pieces
        ]
        others = msgspec.msgpack.encode(list(chain.from_iterable(rows_of)))
    numbers = memoryview(b"".join(table.numbers for table, _, _ in pieces))
    return Table(pieces[0][0].names, pieces[0][0].types, count, numbers, memoryview(others), rows)


def _places(table: Table, first: int, end: int) -> bytes:
    """Return the row numbers of a table's records in the joined batch."""
    own = np.arange(end - first, dtype="<u4") if table.rows is None else np.frombuffer(table.rows, "<u4")
    return (own + np.uint32(first)).tobytes()


class _Table:
    """A table, checked, and decoded only as far as it is asked for."""

    def __init__(self, table: Table, count: int) -> None:
        self.types = types = table.types
        self._table = table
        self.width = width = len(types.rstrip("sl"))  # of the numbers, which come first
        self.places = dict(zip(table.names, range(len(types)), strict=False))
        self.rows = None if table.rows is None else np.frombuffer(table.rows, "<u4")
        self._words: npt.NDArray[np.int64] | None = None
        self._others: list[tuple[Any, ...]] | None = None
        if (
            len(self.places) != len(types)
            or len(types) != len(table.names)
            or types.strip("ifb") != types[width:]
        ):
            raise WireError("a table's names and types do not match")
        if (count if self.rows is None else len(self.rows)) != table.count:
            raise WireError("a table's rows do not match its count")
        if self.rows is not None and not _ascending(self.rows, count):
            raise WireError(f"a table's rows are not in order, or beyond the batch's {count} records")
        if table.count * width * _BYTES != len(table.numbers):
            raise WireError("a table's numbers do not match its count and types")

    def numbers(self, place: int, type_: str) -> npt.NDArray[Any]:
        """Return a column of numbers, in its own type or one that it is to be joined with."""
        if self._words is None:
            rows = np.frombuffer(self._table.numbers, "<i8").reshape(-1, self.width)
            self._words = np.ascontiguousarray(rows.T)  # at once, as nearly all readers want most of it
            self._words.flags.writeable = False
        letter = self.types[place]
        column: npt.NDArray[Any] = self._words[place].view("<f8" if letter == "f" else "<i8")
        return column != 0 if letter == type_ == "b" else column

    def others(self, place: int) -> tuple[Any, ...]:
        """Return a column of texts or lists."""
        if self._others is None:
            rows = decode(_decode_others, self._table.others, "a table's texts and lists")
            try:
                self._others = list(zip(*rows, strict=True))
            except ValueError as error:
                raise WireError(f"a table's texts and lists: {error}") from error
            if len(rows) != self._table.count or len(self._others) != len(self.places) - self.width:
                raise WireError("a table's texts and lists do not match its count and types")
        return self._others[place - self.width]

    def numeric(self) -> Iterator[str]:
        """Yield the names of what is no text."""
        texts = self.types.count("s", self.width)
        return chain(self._table.names[: self.width], self._table.names[self.width + texts :])

    def items(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield each record's row number and values."""
        columns: list[Sequence[Any]] = [
            self.others(place) if place >= self.width else self.numbers(place, self.types[place]).tolist()
            for place in range(len(self.places))
        ]
        rows = range(self._table.count) if self.rows is None else self.rows.tolist()
        return zip(rows, zip(*columns, strict=True), strict=True)


_Pieces: TypeAlias = list[tuple[_Table, int]]


def _ascending(rows: npt.NDArray[np.uint32], count: int) -> bool:
    return not len(rows) or bool(rows[-1] < count and (rows[1:] > rows[:-1]).all())


def _find(tables: Sequence[_Table], name: str) -> _Pieces:
    return [(table, table.places[name]) for table in tables if name in table.places]


def _columns(tables: Sequence[_Table], count: int) -> dict[str, Column]:
    names = dict.fromkeys(chain.from_iterable(table.places for table in tables))
    return {name: _column(_find(tables, name), count) for name in names}


def _column(pieces: _Pieces, count: int) -> Column:
    """Return the column of one name, from the tables that have it."""
    if len(pieces) == 1:
        ((table, place),) = pieces
        type_ = table.types[place]
        if type_ in _NUMBERS:
            return Column(type_, table.numbers(place, type_), table.rows)
        return _of_others(type_, table.others(place), table.rows)
    letters = {table.types[place] for table, place in pieces}
    type_ = next(letter for letter in "filbs" if letter in letters)
    wanted = _NUMBERS if type_ in _NUMBERS else type_
    pieces = [(table, place) for table, place in pieces if table.types[place] in wanted]
    every = np.arange(count, dtype=np.uint32)
    rows = np.concatenate([every if table.rows is None else table.rows for table, _ in pieces])
    order = np.argsort(rows, kind="stable")
    in_order = None if len(rows) == count else _read_only(rows[order])
    if type_ in _NUMBERS:
        values = np.concatenate([table.numbers(place, type_) for table, place in pieces])
        return Column(type_, _read_only(values[order]), in_order)
    others = [value for table, place in pieces for value in table.others(place)]
    return _of_others(type_, [others[place] for place in order.tolist()], in_order)


def _of_others(type_: str, values: Sequence[Any], rows: npt.NDArray[np.uint32] | None) -> Column:
    """Return the column of texts or lists."""
    if type_ == "s":
        return Column(type_, _read_only(np.array(values, dtype=object)), rows)
    flat = list(chain.from_iterable(values))
    numbers = np.array(flat, dtype=None if flat else np.int64)
    if numbers.dtype.kind not in "if":  # flags, or beyond 64 bits
        numbers = numbers.astype(np.int64 if numbers.dtype.kind == "b" else np.float64)
    lengths = np.fromiter(map(len, values), np.uint32, len(values))
    return Column(type_, _read_only(numbers), rows, _read_only(lengths))


def _read_only(array: npt.NDArray[_T]) -> npt.NDArray[_T]:
    array.flags.writeable = False
    return array


def to_plain(event: EventBase) -> dict[str, Any]:
    """Return an event as plain dicts, lists and numbers, for JSON.

    A batch of records has its metrics and fields by name, each as ``{"values": [...]}``, with
    ``"rows": [...]`` if some records have no value, and ``"lengths"`` for lists. NaN and infinity become
    null, as JSON demands.
    """
    if not isinstance(event, Records):
        plain: dict[str, Any] = msgspec.to_builtins(event)
        return plain
    batch = RecordBatch(event)
    plain = msgspec.to_builtins(msgspec.structs.replace(event, metrics=(), fields=()))
    for group, columns in (("metrics", batch.metric_columns()), ("fields", batch.field_columns())):
        plain[group] = {name: _plain_column(column) for name, column in columns.items()}
    plain["errors"] = [msgspec.structs.asdict(error) for error in event.errors]
    return plain


def _plain_column(column: Column) -> dict[str, Any]:
    arrays = {"values": column.values, "rows": column.rows, "lengths": column.lengths}
    return {name: array.tolist() for name, array in arrays.items() if array is not None}
