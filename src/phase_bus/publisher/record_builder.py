"""The records of one open batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from phase_bus.core.packing import Packer
from phase_bus.core.values import ListMode, as_text
from phase_bus.events import RecordError, Table


class RecordBuilder:
    """Collects the records of one phase and turns them into tables.

    Adding stores references only; the work is done by :meth:`build`, which leaves the builder empty but
    keeps the shapes of its records.

    Args:
        lists: how metrics that are lists of numbers are sent. ``summary`` makes the metrics
            ``<name>.count``, ``.mean``, ``.min`` and ``.max``; ``omit`` leaves them out; ``full``
            keeps every value.
        field_names: which of the records' fields to send; None for all.
    """

    def __init__(self, lists: ListMode = "summary", field_names: Sequence[str] | None = None) -> None:
        self._pack_metrics = Packer(lists).tables
        self._pack_fields = Packer(lists, field_names).tables
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
            kind, message, code = error
            usable = isinstance(code, int) and abs(code) < 1 << 63
            row = len(self._metrics)
            self._errors.append(RecordError(row, as_text(kind), as_text(message), code if usable else None))
        self._metrics.append(metrics)
        self._fields.append(fields)
        return len(self._metrics)

    def build(
        self,
    ) -> tuple[tuple[Table, ...], tuple[Table, ...], tuple[RecordError, ...], dict[str, int]]:
        """Return the tables of metrics and of fields, the errors, and how many values were left out.

        The last is by name; such values are of a type that cannot be encoded.
        """
        metrics, fields, errors = self._metrics, self._fields, tuple(self._errors)
        self._metrics, self._fields, self._errors = [], [], []
        unusable: Counter[str] = Counter()
        return self._pack_metrics(metrics, unusable), self._pack_fields(fields, unusable), errors, unusable
