"""Packing records into tables: by a few calls into C for each shape, not by Python for each value.

Records are packed by the shape that those with as many names had last time. If that does not fit, they are
grouped by their names, and the shape is found anew; values of odd types are looked at one by one. There are
few shapes in a run (successes, failures). This runs inside the benchmark's process;
:mod:`phase_bus.core.records` is the reading side.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, compress, repeat, starmap
from numbers import Integral, Number, Real
from operator import is_, itemgetter
from typing import Any, TypeAlias

import msgspec

from phase_bus.core.values import ListMode, as_text
from phase_bus.events import RecordError, Table

Record: TypeAlias = Mapping[str, Any]
Error: TypeAlias = tuple[str, str, int | None]
"""Type, message, and code or None."""
_Key: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]

encode_others = msgspec.msgpack.Encoder(decimal_format="number").encode
_EMPTY = memoryview(b"")
_NOTHING, _FLAGS = frozenset((None,)), frozenset((True, False))
_LETTERS = {int: "i", float: "f", bool: "b", str: "s", list: "l", type(None): ""}
FORMATS = {"i": "q", "f": "d", "b": "q"}
MISFITS = (struct.error, KeyError, TypeError, ValueError, OverflowError)  # what a misfit raises


class Packer:
    """Turns records' metrics, or their fields, into tables. It remembers shapes from batch to batch.

    So a name that had floats keeps floats, should whole numbers follow; and one that had whole numbers
    keeps them exact, except in batches that hold floats as well.

    Args:
        lists: what becomes of lists (:class:`~phase_bus.publisher.record_builder.RecordBuilder`).
        names: the names that are wanted; None for all.

    Attributes:
        wanted: these names.
    """

    def __init__(self, lists: ListMode, names: Sequence[str] | None = None) -> None:
        self._lists = lists
        self.wanted = None if names is None else tuple(names)
        self._usual: dict[int, _Shape] = {}
        self._known: dict[_Key, _Shape] = {}

    def tables(self, records: Sequence[Record], unusable: Counter[str]) -> tuple[Table, ...]:
        """Return the tables of some records.

        Args:
            records: what is to be packed; their places in here become the row numbers.
            unusable: counts, by name, the values that are of no type that can travel.
        """
        tables: list[Table] = []
        for count, group in _Group(records, None).split(len).items():
            try:
                tables += self._usual[count].tables(group)
            except MISFITS:
                for key, part in group.split(self._key).items():
                    tables += self._tables(key, part, count, unusable)
        return tuple(tables)

    def _key(self, record: Record) -> _Key:
        """Return a record's names, and those of them that have no value."""
        names = tuple(record) if self.wanted is None else tuple(filter(record.__contains__, self.wanted))
        values = tuple(map(record.__getitem__, names))
        if not any(map(is_, values, repeat(None))):
            return names, ()
        return names, tuple(name for name, value in zip(names, values, strict=True) if value is None)

    def _tables(self, key: _Key, group: _Group, count: int, unusable: Counter[str]) -> list[Table]:
        """Return the tables of records that have the same names."""
        try:
            return self._known[key].tables(group)
        except MISFITS:
            pass
        try:
            shape, uniform = self._shape(key[0], group.records)
            tables = shape.tables(group)
        except MISFITS:
            return self._one_by_one(key[0], group, unusable)
        if uniform:  # whole numbers are not to become floats because of another batch
            self._known[key] = self._usual[count] = shape
        return tables

    def _shape(self, names: Sequence[str], records: Sequence[Record]) -> tuple[_Shape, bool]:
        """Return the shape that fits all, and whether each name has one type only, or raise a misfit."""
        types: dict[str, str] = {}
        uniform = True
        if len(set(map(as_text, names))) != len(names):
            raise TypeError
        for name in names:
            if not isinstance(name, str):
                raise TypeError
            letters = {letter_of(kind) for kind in set(map(type, map(itemgetter(name), records)))}
            if len(letters) > 1:
                uniform = False
                if not letters <= {"i", "f", "b"}:
                    raise TypeError
                letters = {"f"} if "f" in letters else {"i"}
            types[name] = letters.pop()
        return _Shape(types, self._lists), uniform

    def _one_by_one(self, names: Iterable[str], group: _Group, unusable: Counter[str]) -> list[Table]:
        """Return the tables of records with values of odd types, numpy's for instance."""
        plain = _Group([_plain_record(record, names, unusable) for record in group.records], group.rows)
        tables: list[Table] = []
        for types, part in plain.split(_types).items():
            tables += _Shape(dict(types), self._lists).tables(part)
        return tables


class _Group:
    """Some records of a batch, and their row numbers there (None: 0 to the number of records - 1)."""

    def __init__(self, records: Sequence[Record], rows: Sequence[int] | None) -> None:
        self.records = records
        self.rows = rows

    def split(self, key: Callable[[Any], Any]) -> dict[Any, _Group]:
        """Return the records by a key that has few different values."""
        keys = list(map(key, self.records))
        different = dict.fromkeys(keys)
        if len(different) <= 1:
            return dict.fromkeys(different, self)
        rows = range(len(keys)) if self.rows is None else self.rows
        parts = {}
        for value in different:
            chosen = list(map(value.__eq__, keys))
            parts[value] = _Group(list(compress(self.records, chosen)), list(compress(rows, chosen)))
        return parts


class _Shape:
    """How to pack records that have values of certain types under certain names.

    The types are a letter for each name (:class:`~phase_bus.events.Table`), "" for one without a value.
    """

    def __init__(self, types: Mapping[str, str], lists: ListMode) -> None:
        def names(letters: str) -> tuple[str, ...]:
            return tuple(name for name, letter in types.items() if letter in letters.split())

        self._missing = tuple(name for name, letter in types.items() if not letter)
        self._flags, self._texts, all_lists = names("b"), names("s"), names("l")
        self._summarised = all_lists if lists == "summary" else ()
        self._lists = all_lists if lists == "full" else ()
        self._numbers, self._others = names("i f b"), (*self._texts, *self._lists)
        travelling = (*self._numbers, *self._others)
        self._names = tuple(map(as_text, travelling))
        self._types = "".join(types[name] for name in travelling)
        self._pack = struct.Struct("<" + "".join(FORMATS[types[n]] for n in self._numbers)).pack

    def tables(self, group: _Group) -> list[Table]:
        """Return the tables of some records, or raise a misfit if they are not of this shape."""
        records, rows = group.records, _u4(group.rows)
        others = list(_tuples(self._others, records)) if self._others else []
        self._check(records, others)
        tables = []
        if self._names:
            numbers = encoded = _EMPTY
            if self._numbers:
                numbers = memoryview(b"".join(starmap(self._pack, _tuples(self._numbers, records))))
            if others:
                encoded = memoryview(encode_others(others))
            tables.append(Table(self._names, self._types, len(records), numbers, encoded, rows))
        for name in self._summarised:
            tables += _summaries(as_text(name), list(map(itemgetter(name), records)), group.rows)
        return tables

    def _check(self, records: Sequence[Record], others: Sequence[tuple[Any, ...]]) -> None:
        """Check what packing would not notice: a number packs as a flag, and a dict as a text."""
        if self._missing and not _NOTHING.issuperset(_values(self._missing, records)):
            raise TypeError
        if self._flags and not _FLAGS.issuperset(_values(self._flags, records)):
            raise TypeError
        if self._texts:
            texts = others if not self._lists else _tuples(self._texts, records)
            "".join(chain.from_iterable(texts))
        for name in self._lists:
            lists = list(map(itemgetter(name), records))
            if set(map(type, lists)) != {list}:
                raise TypeError
            sum(map(sum, lists))


def letter_of(kind: type) -> str:
    """Return the letter for values of a Python type: numpy's numbers and enums pack as their base types."""
    if kind in _LETTERS:
        return _LETTERS[kind]
    for known, letter in ((Integral, "i"), (Real, "f"), (str, "s")):
        if issubclass(kind, known):
            return letter
    raise TypeError


def _tuples(names: Sequence[str], records: Iterable[Record]) -> Iterable[tuple[Any, ...]]:
    values = map(itemgetter(*names), records)
    return zip(values) if len(names) == 1 else values


def _values(names: Sequence[str], records: Iterable[Record]) -> Iterable[Any]:
    values = map(itemgetter(*names), records)
    return values if len(names) == 1 else chain.from_iterable(values)


def _summaries(name: str, lists: Sequence[list[Any]], rows: Sequence[int] | None) -> list[Table]:
    """Return the tables with count, mean, min and max of lists; an empty one has a count only."""
    # Late: a benchmark without such metrics need not load it. AIPerf has loaded it anyway.
    import numpy as np

    if set(map(type, lists)) != {list}:
        raise TypeError
    lengths = np.fromiter(map(len, lists), "<i8", len(lists))
    if not lengths.all():
        places = range(len(lists)) if rows is None else rows
        empty = [place for place, length in zip(places, lengths, strict=True) if not length]
        full = [place for place, length in zip(places, lengths, strict=True) if length]
        zeros = memoryview(bytes(8 * len(empty)))
        count = Table((f"{name}.count",), "i", len(empty), zeros, rows=_u4(empty))
        return [count, *(_summaries(name, list(filter(None, lists)), full) if full else ())]
    flat = list(chain.from_iterable(lists))
    letter, data = "i", b""
    try:
        data = struct.pack(f"<{len(flat)}q", *flat)
    except struct.error:  # a float among them, or beyond 64 bits: a float keeps the magnitude
        letter, data = "f", struct.pack(f"<{len(flat)}d", *flat)
    values = np.frombuffer(data, "<i8" if letter == "i" else "<f8")
    starts = lengths.cumsum() - lengths
    table = np.empty((len(lists), 4), "<i8")
    table[:, 0] = lengths
    with np.errstate(all="ignore"):  # infinities have no mean, and that is all there is to it
        table.view("<f8")[:, 1] = np.add.reduceat(values.astype("<f8"), starts) / lengths
    extremes = table.view(values.dtype)
    extremes[:, 2] = np.minimum.reduceat(values, starts)
    extremes[:, 3] = np.maximum.reduceat(values, starts)
    names = tuple(f"{name}.{suffix}" for suffix in ("count", "mean", "min", "max"))
    return [Table(names, f"if{2 * letter}", len(lists), table.data.cast("B"), rows=_u4(rows))]


def record_error(row: int, error: Error) -> RecordError:
    """Return a record's error as it travels.

    Raises:
        TypeError, ValueError: if it is malformed.
    """
    kind, message, code = error
    usable = isinstance(code, int) and abs(code) < 1 << 63
    return RecordError(row, as_text(kind), as_text(message), code if usable else None)


# ---- values of odd types ----


def _plain_record(record: Record, names: Iterable[Any], unusable: Counter[str]) -> dict[str, Any]:
    """Return the values of a record that can travel, as plain ones."""
    plain: dict[str, Any] = {}
    for name in names:
        value = record[name]
        if value is None:
            continue
        made = _plain(value) if isinstance(name, str) else None
        if made is None:
            unusable[str(name)] += 1
        else:
            plain[as_text(name)] = made
    return plain


def _plain(value: Any, *, convert: bool = True) -> Any:
    """Return the value as a plain int, float, bool, str or list of numbers, or None."""
    try:
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            # A float keeps the magnitude of what 64 bits cannot hold; if that cannot either, it raises.
            return int(value) if -(1 << 63) <= value < 1 << 63 else float(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return as_text(value)
        if isinstance(value, list | tuple):
            numbers = [_plain(part) for part in value]
            return numbers if all(isinstance(number, int | float) for number in numbers) else None
        if isinstance(value, Number) and not hasattr(value, "tolist"):
            return float(value)  # type: ignore[arg-type] # a complex one raises
        return _plain(value.tolist(), convert=False) if convert else None  # of numpy and its kin
    except Exception:  # not a number of any library: the caller counts it
        return None


def _types(record: Record) -> tuple[tuple[str, str], ...]:
    return tuple((name, _LETTERS[type(value)]) for name, value in record.items())


def _u4(numbers: Sequence[int] | None) -> memoryview | None:
    return None if numbers is None else memoryview(struct.pack(f"<{len(numbers)}I", *numbers))
