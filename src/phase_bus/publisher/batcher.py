"""The publisher's batches of request records that are still open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from phase_bus.core.control import PARTITIONS
from phase_bus.core.values import ListMode
from phase_bus.events import PhaseRef, Records
from phase_bus.publisher.drops import Drops, Warn
from phase_bus.publisher.record_builder import RecordBuilder

RawRecord: TypeAlias = tuple[
    str, PhaseRef, Mapping[str, Any], Mapping[str, Any], tuple[str, str, int | None] | None
]
"""Run id, phase, metrics, fields, error. A plain tuple: making one costs a quarter of a NamedTuple."""

_NOBODY: Any = object()


class Batcher:
    """Puts the records of each run and phase together, up to a size or an age. Not for several threads.

    Args:
        lists: what becomes of metrics that are lists (see :class:`~.RecordBuilder`).
        batch_records: a batch is closed at this size ...
        batch_s: ... or at this age, in seconds.
        put: takes a closed batch; returns False if there is no room for it.
        drops: where batches are counted that cannot be encoded.
        warn: where values are told of that cannot travel.
        field_names: which of the records' fields travel; None for all.
    """

    def __init__(
        self,
        lists: ListMode,
        batch_records: int,
        batch_s: float,
        put: Callable[[Records], bool],
        drops: Drops,
        warn: Warn,
        field_names: Sequence[str] | None = None,
    ) -> None:
        self.due_s: float | None = None
        self._lists = lists
        self._field_names = field_names
        self._batch_records = batch_records
        self._batch_s = batch_s
        self._put = put
        self._drops = drops
        self._warn = warn
        self._builders: dict[tuple[str, PhaseRef], RecordBuilder] = {}
        self._batches: Counter[str] = Counter()
        self._add: Callable[..., int]  # of the builder of the last record's run and phase
        self._last_run: str = _NOBODY
        self._last_phase: PhaseRef = _NOBODY

    def __bool__(self) -> bool:
        return any(self._builders.values())

    def __len__(self) -> int:
        """Return how many records wait; from any thread."""
        return sum(map(len, list(self._builders.values())))

    def add(self, record: RawRecord) -> None:
        """Add a record to its batch, and close the batch if it is full.

        Raises:
            TypeError, ValueError: it is no record.
        """
        run_id, phase, metrics, fields, error = record
        # Nearly always that of the record before: a comparison by identity, and no hash.
        if run_id is not self._last_run or phase is not self._last_phase:
            self._turn_to(run_id, phase)
        if self._add(metrics, fields, error) >= self._batch_records:
            self._close(run_id, phase)

    def close_all(self) -> None:
        """Close all batches, whatever their size and age."""
        for run_id, phase in [key for key, builder in self._builders.items() if builder]:
            self._close(run_id, phase)

    def close_due(self, now_s: float) -> None:
        """Close all batches if it is time to."""
        if self.due_s is None:
            if self:
                self.due_s = now_s + self._batch_s
        elif now_s >= self.due_s:
            # It goes on ticking while records come, so that they need not wake the thread.
            self.due_s = now_s + self._batch_s if self else None
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
            builder = self._builders[run_id, phase] = RecordBuilder(self._lists, self._field_names)
        self._add, self._last_run, self._last_phase = builder.add, run_id, phase

    def _close(self, run_id: str, phase: PhaseRef) -> None:
        builder = self._builders[run_id, phase]
        count = len(builder)
        try:
            self._finish(run_id, phase, builder, count)
        except Exception as error:
            # Nothing is known to lead here, but it would be a poor reason to end the benchmark's story.
            self._warn("batch", f"a batch of records could not be encoded: {error!r}")
            self._drops.add_records(run_id, phase, count, "it could not be encoded")

    def _finish(self, run_id: str, phase: PhaseRef, builder: RecordBuilder, count: int) -> None:
        metrics, fields, errors, unusable = builder.build()
        if unusable:
            names = ", ".join(sorted(unusable))
            self._warn(f"unusable {names}", f"values that are no numbers were left out: {names}")
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
