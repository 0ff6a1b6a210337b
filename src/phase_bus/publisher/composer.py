"""From events and records to numbered messages: batches, order, and the counts at a run's end.

This is all of publishing that needs neither thread nor socket; :class:`~phase_bus.Publisher` has those.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from msgspec import Struct

from phase_bus.core.outbox import Outbox
from phase_bus.core.values import as_text
from phase_bus.events import EventBase, PhaseProgress, Records, RunComplete, RunStatus
from phase_bus.publisher.batcher import Batcher, BatchOptions
from phase_bus.publisher.drops import Drops


class Completion(Struct, frozen=True):  # not a tuple: those are records
    """A run's end, before the counts of what was published are known."""

    run_id: str
    status: RunStatus
    reason: str = ""


class Composer:
    """Puts events and records into an outbox, in order. Not for several threads.

    Attributes:
        batcher: the batches of records that are still open; records are added to it.
    """

    def __init__(self, outbox: Outbox, drops: Drops, options: BatchOptions) -> None:
        self.batcher = Batcher(options, self._put, drops)
        self._drops = drops
        self._outbox = outbox
        # What was published of each run: events by topic, and records.
        self._published: defaultdict[str, Counter[bytes]] = defaultdict(Counter)
        self._records: Counter[str] = Counter()

    def add(self, event: EventBase) -> None:
        """Put an event after everything that came before it.

        Raises:
            TypeError, ValueError, OverflowError: if it holds something that cannot be encoded.
        """
        if not isinstance(event, PhaseProgress):
            self.batcher.close_all()  # what came before an event goes before it
        self._put(event)

    def complete(self, end: Completion) -> None:
        """Put a run's last event, with the counts of everything published of it."""
        self.batcher.close_all()
        self.report_drops(time.monotonic(), at_once=True)
        self._put(self._run_complete(end))
        self._published.pop(end.run_id, None)
        self._records.pop(end.run_id, None)
        self.batcher.end_run(end.run_id)

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

    def _put(self, event: EventBase) -> bool:
        topic = self._outbox.put(event)
        if topic is None:
            self._drops.add(event, f"the buffer of {self._outbox.limit_bytes} bytes is full")
            return False
        self._published[event.run_id][topic] += 1
        if type(event) is Records:
            self._records[event.run_id] += event.count
        return True

    def _run_complete(self, end: Completion) -> RunComplete:
        published = self._published[end.run_id]
        return RunComplete(
            run_id=end.run_id,
            status=end.status,
            reason=as_text(end.reason),
            published={topic.decode(): count for topic, count in published.items()},
            records=self._records[end.run_id],
            dropped=self._drops.end_run(end.run_id),
        )
