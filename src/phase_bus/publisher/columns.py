"""Records that come as columns: copied at the call, in batches."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from phase_bus.core.packing import Error, Packer, record_error
from phase_bus.publisher.record_builder import Packed

if TYPE_CHECKING:
    from phase_bus.core.columns import Values

# A batch of columns is no larger than this. More is no faster for anybody (measured_once.md), and whoever
# handles a batch as one, a sink for instance, has to hold it.
_MOST_RECORDS = 8192
_MOST_BYTES = 1 << 20


class Columns(Struct, frozen=True):
    """Some records of one phase, by columns that nobody else changes.

    Attributes:
        count: how many records.
        metrics, fields: the values by name, each of one value a record.
        errors: the failed ones in order, each with its row number.
        size_bytes: about how much memory they take.
        fault: why they cannot be published, if so.
    """

    run_id: Any
    phase: Any
    count: int
    metrics: dict[Any, Values] = {}
    fields: dict[Any, Values] = {}
    errors: Sequence[tuple[int, Error]] = ()
    size_bytes: int = 0
    fault: Exception | None = None

    def part(self, first: int, end: int) -> Columns:
        """Return a copy of the records from ``first`` to the one before ``end``."""
        from phase_bus.core.columns import part_of

        ends = (bisect_left(self.errors, row, key=itemgetter(0)) for row in (first, end))
        return Columns(
            self.run_id,
            self.phase,
            end - first,
            {name: part_of(values, first, end) for name, values in self.metrics.items()},
            {name: part_of(values, first, end) for name, values in self.fields.items()},
            [(row - first, error) for row, error in self.errors[slice(*ends)]],
            self.size_bytes * (end - first) // self.count,
        )

    def halves(self) -> tuple[Columns, Columns]:
        """Return the first and the second half of the records."""
        half = self.count // 2
        return self.part(0, half), self.part(half, self.count)

    def pack(self, metrics: Packer, fields: Packer, unusable: Counter[str]) -> Packed:
        """Return the tables of metrics and of fields, and the errors.

        Args:
            metrics, fields: what packs what is not plain.
            unusable: counts, by name, the values that are of no type that can travel.
        """
        from phase_bus.core.columns import tables_of

        return (
            tables_of(self.metrics, self.count, metrics, unusable),
            tables_of(self.fields, self.count, fields, unusable),
            tuple(record_error(row, error) for row, error in self.errors),
        )

    def records(self) -> list[tuple[dict[Any, Any], dict[Any, Any], Error | None]]:
        """Return the metrics, fields and error of each record."""
        from phase_bus.core.columns import rows_of

        errors = dict(self.errors)
        rows = zip(rows_of(self.metrics, self.count), rows_of(self.fields, self.count), strict=True)
        return [(metrics, fields, errors.get(row)) for row, (metrics, fields) in enumerate(rows)]


def cut(
    run_id: Any,
    phase: Any,
    metrics: Mapping[str, Any],
    fields: Mapping[str, Any] | None,
    errors: Mapping[int, Error] | None,
) -> list[Columns]:
    """Return records in batches that are copies; never raises.

    If the columns cannot be used, that is one batch which says why.
    """
    lengths: list[int] = []
    try:
        from phase_bus.core.columns import column_of, size_of  # it loads numpy

        made: tuple[dict[Any, Values], dict[Any, Values]] = ({}, {})
        for columns, given in zip(made, (metrics, fields or {}), strict=True):
            for name, values in given.items():
                columns[name] = column = column_of(values)
                lengths.append(len(column))
        count = lengths[0] if lengths else 0
        if lengths != [count] * len(lengths):
            told = {name: len(column) for each in made for name, column in each.items()}
            raise ValueError(f"columns are not of the same length: {told}")
        size_bytes = sum(size_of(column) for each in made for column in each.values())
        whole = Columns(run_id, phase, count, made[0], made[1], _in_order(errors, count), size_bytes)
        step = min(_MOST_RECORDS, max(_MOST_BYTES * count // max(size_bytes, 1), 1))
        return [whole.part(first, min(first + step, count)) for first in range(0, count, step)]
    except Exception as error:  # whatever a caller's objects may do
        return [Columns(run_id, phase, max(lengths, default=0) or 1, fault=error)]


def _in_order(errors: Mapping[int, Error] | None, count: int) -> list[tuple[int, Error]]:
    """Return errors in the order of their row numbers, having checked these."""
    found = sorted(
        ((operator.index(row), error) for row, error in (errors or {}).items()), key=itemgetter(0)
    )
    for row, (_kind, _message, _code) in found:
        if not 0 <= row < count:
            raise ValueError(f"an error is that of record {row} of {count}")
    return found
