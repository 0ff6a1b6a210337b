"""The records of one open batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from phase_bus.core.packing import Error, Packer, record_error
from phase_bus.core.values import ListMode
from phase_bus.events import RecordError, Table

Packed: TypeAlias = tuple[tuple[Table, ...], tuple[Table, ...], tuple[RecordError, ...]]
"""The tables of metrics, those of fields, and the errors."""


class Batch(Struct, frozen=True):
    """Records that go together: metrics and fields of each, and the errors of those that failed."""

    metrics: list[Mapping[str, Any]]
    fields: list[Mapping[str, Any]]
    errors: list[RecordError]

    @property
    def count(self) -> int:
        """How many records."""
        return len(self.metrics)

    def halves(self) -> tuple[Batch, Batch]:
        """Return the first and the second half of the records."""
        metrics, fields, errors = self.metrics, self.fields, self.errors
        half = len(metrics) // 2
        later = [replace(error, row=error.row - half) for error in errors if error.row >= half]
        return (
            Batch(metrics[:half], fields[:half], [error for error in errors if error.row < half]),
            Batch(metrics[half:], fields[half:], later),
        )

    def pack(self, metrics: Packer, fields: Packer, unusable: Counter[str]) -> Packed:
        """Return the tables of metrics and of fields, and the errors.

        Args:
            metrics, fields: what packs them.
            unusable: counts, by name, the values that are of no type that can travel.
        """
        tables = metrics.tables(self.metrics, unusable), fields.tables(self.fields, unusable)
        return *tables, tuple(self.errors)


class RecordBuilder:
    """Collects the records of one phase and turns them into tables.

    Adding stores references only; the work is done by :meth:`Batch.pack`, with the builder's ``packers`` of
    metrics and of fields, which keep the shapes of its records from batch to batch.

    Args:
        lists: how metrics that are lists of numbers are sent. ``summary`` makes the metrics
            ``<name>.count``, ``.mean``, ``.min`` and ``.max``; ``omit`` leaves them out; ``full``
            keeps every value.
        field_names: which of the records' fields to send; None for all.
    """

    def __init__(self, lists: ListMode = "summary", field_names: Sequence[str] | None = None) -> None:
        self.packers = Packer(lists), Packer(lists, field_names)
        self._metrics: list[Mapping[str, Any]] = []
        self._fields: list[Mapping[str, Any]] = []
        self._errors: list[RecordError] = []

    def __len__(self) -> int:
        return len(self._metrics)

    def add(
        self,
        metrics: Mapping[str, Any],
        fields: Mapping[str, Any],
        error: Error | None = None,
    ) -> int:
        """Add a record, with its error's type, message and code if it failed; return how many there are.

        Raises:
            TypeError, ValueError: if an argument is malformed.
        """
        # The first comparison is for speed: nearly all are plain dicts.
        if (type(metrics) is not dict and not isinstance(metrics, Mapping)) or (
            type(fields) is not dict and not isinstance(fields, Mapping)
        ):
            raise TypeError(f"metrics and fields are mappings, not {metrics!r:.80} and {fields!r:.80}")
        if error is not None:
            self._errors.append(record_error(len(self._metrics), error))
        self._metrics.append(metrics)
        self._fields.append(fields)
        return len(self._metrics)

    def build(
        self,
    ) -> tuple[tuple[Table, ...], tuple[Table, ...], tuple[RecordError, ...], dict[str, int]]:
        """Return the tables of metrics and of fields, the errors, and how many values were left out.

        The last is by name. The builder is empty then.
        """
        batch = self.take()
        unusable: Counter[str] = Counter()
        return *batch.pack(*self.packers, unusable), unusable

    def take(self) -> Batch:
        """Return the records as they were added, and begin a new batch."""
        batch = Batch(self._metrics, self._fields, self._errors)
        self._metrics, self._fields, self._errors = [], [], []
        return batch
