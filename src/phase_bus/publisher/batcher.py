"""The publisher's batches of request records that are still open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from phase_bus.core.control import PARTITIONS
from phase_bus.core.values import ListMode
from phase_bus.events import PhaseRef, Records
from phase_bus.publisher.drops import Drops
from phase_bus.publisher.record_builder import RecordBuilder

RawRecord: TypeAlias = tuple[
    str, PhaseRef, Mapping[str, Any], Mapping[str, Any], tuple[str, str, int | None] | None
]
"""Run id, phase, metrics, fields, error. A plain tuple: making one costs a quarter of a NamedTuple."""

_NOBODY: Any = object()


class BatchOptions(Struct, frozen=True):
    """How a :class:`~phase_bus.Publisher` batches records; its arguments of these names say more."""

    lists: ListMode = "summary"
    batch_records: int = 256
    batch_s: float = 0.1
    field_names: Sequence[str] | None = None


class Batcher:
    """Collects the records of each run and phase, up to a size or an age. Not for several threads.

    ``put`` takes a closed batch; it returns False if there is no room for it.
    """

    def __init__(self, options: BatchOptions, put: Callable[[Records], bool], drops: Drops) -> None:
        self.due_s: float | None = None
        self._options = options
        self._batch_records = options.batch_records
        self._put = put
        self._drops = drops
        self._builders: dict[tuple[str, PhaseRef], RecordBuilder] = {}
        self._batches: Counter[str] = Counter()
        self._add: Callable[..., int]  # of the builder of the last record's run and phase
        self._last_run: str = _NOBODY
        self._last_phase: PhaseRef = _NOBODY

    def __bool__(self) -> bool:
        return any(self._builders.values())

    def __len__(self) -> int:
        """Return how many records are in open batches; from any thread."""
        return sum(map(len, list(self._builders.values())))

    def add(self, record: RawRecord) -> None:
        """Add a record to its batch, and close the batch if it is full.

        Raises:
            TypeError, ValueError: if it is malformed.
        """
        run_id, phase, metrics, fields, error = record
        # Nearly always those of the record before: compared by identity, without a hash.
        if run_id is not self._last_run or phase is not self._last_phase:
            self._turn_to(run_id, phase)
        if self._add(metrics, fields, error) >= self._batch_records:
            self._close(run_id, phase)

    def close_all(self) -> None:
        """Close all batches, whatever their size and age."""
        for run_id, phase in [key for key, builder in self._builders.items() if builder]:
            self._close(run_id, phase)

    def close_due(self, now_s: float) -> None:
        """Close all batches if the oldest is due."""
        if self.due_s is None:
            if self:
                self.due_s = now_s + self._options.batch_s
        elif now_s >= self.due_s:
            # The clock goes on while records come, so that they need not wake the thread.
            self.due_s = now_s + self._options.batch_s if self else None
            self.close_all()

    def end_run(self, run_id: str) -> None:
        """Forget a run."""
        self._batches.pop(run_id, None)
        self._last_run = self._last_phase = _NOBODY
        for key in [key for key, builder in self._builders.items() if key[0] == run_id and not builder]:
            del self._builders[key]

    def _turn_to(self, run_id: str, phase: PhaseRef) -> None:
        builder = self._builders.get((run_id, phase))
        if builder is None:
            builder = RecordBuilder(self._options.lists, self._options.field_names)
            self._builders[run_id, phase] = builder
        self._add, self._last_run, self._last_phase = builder.add, run_id, phase

    def _close(self, run_id: str, phase: PhaseRef) -> None:
        builder = self._builders[run_id, phase]
        count = len(builder)
        try:
            self._finish(run_id, phase, builder, count)
        except Exception as error:
            # Nothing is known to lead here, but one bad batch must not end publishing.
            self._drops.warn("batch", f"a batch of records could not be encoded: {error!r}")
            self._drops.add_records(run_id, phase, count, "it could not be encoded")

    def _finish(self, run_id: str, phase: PhaseRef, builder: RecordBuilder, count: int) -> None:
        metrics, fields, errors, unusable = builder.build()
        if unusable:
            names = ", ".join(sorted(unusable))
            self._drops.warn(f"unusable {names}", f"values that are not numbers were left out: {names}")
        batch = Records(
            run_id=run_id,
            phase=phase,
            partition=self._batches[run_id] % PARTITIONS,
            count=count,
            metrics=metrics,
            fields=fields,
            errors=errors,
        )
        if self._put(batch):
            self._batches[run_id] += 1
