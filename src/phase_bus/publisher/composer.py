"""From events and records to numbered messages: batches, order, and the counts at a run's end.

This is all of publishing that needs neither thread nor socket; :class:`~phase_bus.Publisher` has those.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from phase_bus.core.control import PARTITIONS
from phase_bus.core.outbox import Outbox
from phase_bus.core.values import ListMode, as_text
from phase_bus.core.wire import encode_event, topic_of
from phase_bus.events import EventBase, PhaseProgress, PhaseRef, Records, RunComplete, RunStart, RunStatus
from phase_bus.publisher.columns import Columns
from phase_bus.publisher.drops import Drops
from phase_bus.publisher.record_builder import Batch, RecordBuilder

RawRecord: TypeAlias = tuple[
    str, PhaseRef, Mapping[str, Any], Mapping[str, Any], tuple[str, str, int | None] | None
]
"""Run id, phase, metrics, fields, error. A plain tuple: making one costs a quarter of a NamedTuple."""

_NOBODY: Any = object()
_FEW = 4


class BatchOptions(Struct, frozen=True):
    """How a :class:`~phase_bus.Publisher` batches records; its arguments of these names say more."""

    lists: ListMode
    batch_records: int
    batch_s: float
    field_names: Sequence[str] | None = None

    def is_few(self, records: int) -> bool:
        """Whether so many by columns go into the open batch; one of their own would cost more for all."""
        return records * _FEW < self.batch_records


class Completion(Struct, frozen=True):  # not a tuple: those are records
    """A run's end, before the counts of what was published are known."""

    run_id: str
    status: RunStatus
    reason: str = ""


class Composer:
    """Puts events, and the records of each run and phase in batches, into an outbox, in order.

    A batch is closed at a size, at an age (``due_s`` is when the oldest is due), or before the next event.
    Not for several threads.

    Args:
        label: what runs that begin are called; empty for what they call themselves.
    """

    def __init__(self, outbox: Outbox, drops: Drops, options: BatchOptions, label: str = "") -> None:
        self.due_s: float | None = None
        self._label = label
        self._options = options
        self._batch_records = options.batch_records
        self._drops = drops
        self._outbox = outbox
        # What was published of each run: events by topic, records, and batches of them.
        self._published: defaultdict[str, Counter[bytes]] = defaultdict(Counter)
        self._records: Counter[str] = Counter()
        self._batches: Counter[str] = Counter()
        self._builders: dict[tuple[str, PhaseRef], RecordBuilder] = {}
        self._add_to_batch: Callable[..., int]  # of the builder of the last record's run and phase
        self._last_run: str = _NOBODY
        self._last_phase: PhaseRef = _NOBODY

    @property
    def open_records(self) -> int:
        """How many records are in open batches; from any thread."""
        return sum(map(len, list(self._builders.values())))

    def add_record(self, record: RawRecord) -> None:
        """Add a record to its batch, and close the batch if it is full.

        Raises:
            TypeError, ValueError: if it is malformed.
        """
        run_id, phase, metrics, fields, error = record
        # Nearly always those of the record before: compared by identity, without a hash.
        if run_id is not self._last_run or phase is not self._last_phase:
            self._turn_to(run_id, phase)
        if self._add_to_batch(metrics, fields, error) >= self._batch_records:
            self._close(run_id, phase)

    def add_columns(self, columns: Columns) -> None:
        """Put records after those of their phase that came before them.

        Raises:
            TypeError, ValueError: if they cannot be used.
        """
        if columns.fault is not None:
            raise columns.fault
        run_id, phase = columns.run_id, columns.phase
        if self._options.is_few(columns.count):
            for record in columns.records():
                self.add_record((run_id, phase, *record))
            return
        self._turn_to(run_id, phase)
        builder = self._builders[run_id, phase]
        if builder:
            self._close(run_id, phase)
        self._put_all(run_id, phase, builder, columns)

    def add(self, event: EventBase) -> None:
        """Put an event after everything that came before it.

        Raises:
            TypeError, ValueError, OverflowError: if it holds something that cannot be encoded.
        """
        if not isinstance(event, PhaseProgress):
            self.close_batches()  # what came before an event goes before it
        if self._label and isinstance(event, RunStart):
            event = msgspec.structs.replace(event, label=self._label)
        self._put(event)

    def complete(self, end: Completion) -> None:
        """Put a run's last event, with the counts of everything published of it, and forget the run."""
        self.close_batches()
        self.report_drops(time.monotonic(), at_once=True)
        self._put(self._run_complete(end))
        for counts in (self._published, self._records, self._batches):
            counts.pop(end.run_id, None)
        self._last_run = self._last_phase = _NOBODY
        for key in [key for key, builder in self._builders.items() if key[0] == end.run_id and not builder]:
            del self._builders[key]

    def close_batches(self) -> None:
        """Close all batches, whatever their size and age."""
        for run_id, phase in [key for key, builder in self._builders.items() if builder]:
            self._close(run_id, phase)

    def close_due(self, now_s: float) -> None:
        """Close all batches if the oldest is due."""
        if self.due_s is None:
            if self._builders and self.open_records:
                self.due_s = now_s + self._options.batch_s
        elif now_s >= self.due_s:
            # The clock goes on while records come, so that they need not wake the thread.
            self.due_s = now_s + self._options.batch_s if self.open_records else None
            self.close_batches()

    def report_drops(self, now_s: float, *, at_once: bool = False) -> None:
        """Put events that report what was dropped, if they are due."""
        for event in self._drops.take(now_s, at_once=at_once):
            self._put(event)

    def drop_unusable(self, item: object) -> None:
        """Count something that could not be encoded."""
        reason = "it could not be encoded"
        if isinstance(item, EventBase):
            self._drops.add(item, reason)
        elif type(item) is tuple and len(item) > 1:
            self._drops.add_records(item[0], item[1], 1, reason)
        elif isinstance(item, Columns):
            self._drops.add_records(item.run_id, item.phase, item.count, reason)

    def _turn_to(self, run_id: str, phase: PhaseRef) -> None:
        builder = self._builders.get((run_id, phase))
        if builder is None:
            builder = RecordBuilder(self._options.lists, self._options.field_names)
            self._builders[run_id, phase] = builder
        self._add_to_batch, self._last_run, self._last_phase = builder.add, run_id, phase

    def _close(self, run_id: str, phase: PhaseRef) -> None:
        builder = self._builders[run_id, phase]
        self._put_all(run_id, phase, builder, builder.take())

    def _put_all(
        self, run_id: str, phase: PhaseRef, builder: RecordBuilder, records: Batch | Columns
    ) -> None:
        """Put records, and count them if they cannot be encoded."""
        try:
            unusable: Counter[str] = Counter()
            self._put_batch(run_id, phase, builder, records, unusable)
            if unusable:
                names = ", ".join(sorted(map(as_text, unusable)))
                self._drops.warn(f"unusable {names}", f"values that are not numbers were left out: {names}")
        except Exception as error:
            # Nothing is known to lead here, but one bad batch must not end publishing.
            self._drops.warn("batch", f"a batch of records could not be encoded: {error!r}")
            self._drops.add_records(run_id, phase, records.count, "it could not be encoded")

    def _put_batch(
        self,
        run_id: str,
        phase: PhaseRef,
        builder: RecordBuilder,
        records: Batch | Columns,
        unusable: Counter[str],
    ) -> None:
        """Put a batch, or its halves if it would be larger than the bus takes."""
        metrics, fields, errors = records.pack(*builder.packers, unusable)
        batch = Records(
            run_id=run_id,
            phase=phase,
            partition=self._batches[run_id] % PARTITIONS,
            count=records.count,
            metrics=metrics,
            fields=fields,
            errors=errors,
        )
        payload = encode_event(batch)
        if batch.count > 1 and self._outbox.is_too_large(topic_of(batch), payload):
            for half in records.halves():
                self._put_batch(run_id, phase, builder, half, unusable)
        elif self._put(batch, payload):
            self._batches[run_id] += 1

    def _put(self, event: EventBase, payload: bytes | None = None) -> bool:
        """Put an event into the outbox, and return whether there was room."""
        topic = self._outbox.put(event, payload)
        if topic is None:
            self._drops.add(event, self._outbox.full)
            return False
        self._published[event.run_id][topic] += 1
        if type(event) is Records:
            self._records[event.run_id] += event.count
        return True

    def _run_complete(self, end: Completion) -> RunComplete:
        published = self._published[end.run_id]
        dropped, dropped_records = self._drops.end_run(end.run_id)
        return RunComplete(
            run_id=end.run_id,
            status=end.status,
            reason=as_text(end.reason),
            published={topic.decode(): count for topic, count in published.items()},
            records=self._records[end.run_id],
            dropped=dropped,
            dropped_records=dropped_records,
        )
