"""What a publisher could not publish: counted, and reported in ``drop`` events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress

from phase_bus.core import threads
from phase_bus.core.wire import topic_of
from phase_bus.events import Drop, EventBase, PhaseRef, Records

DROP_EVERY_S = 1.0


class Drops:
    """Counts what is dropped, by run and topic, and reports it in at most one event a second for each run.

    All methods but :meth:`refuse` are for the publisher's thread only; ``refusal`` says in words why that
    one is called. ``warn(key, text)`` logs a warning, once for each key.
    """

    def __init__(self, name: str, refusal: str, warn: Callable[[str, str], None]) -> None:
        self.total = 0
        self._name = name
        self._refusal = refusal
        self.warn = warn
        self._unreported: dict[str, Drop] = {}
        self._by_run: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._records: Counter[str] = Counter()
        self._next_s = 0.0
        self._refused: Counter[tuple[str, PhaseRef, str]] = Counter()
        self.renew_lock()

    def __bool__(self) -> bool:
        return bool(self._unreported or self._refused)

    def renew_lock(self) -> None:
        """Call this after a fork, in the child: the thread that held the lock may not exist here."""
        self._lock = threads.make_lock()

    def refuse(self, run_id: str, phase: PhaseRef, count: int, reason: str = "") -> None:
        """Count records that there was no room for before they were batched; from any thread."""
        with self._lock, suppress(TypeError):  # a run or phase that cannot be hashed
            self._refused[run_id, phase, reason or self._refusal] += count

    def add(self, event: EventBase, reason: str) -> None:
        """Count an event that is dropped, with the records in it."""
        try:
            topic = topic_of(event).decode()
            self._count(event.run_id, topic, event.count if isinstance(event, Records) else 0, reason)
        except Exception as error:  # it has no kind, or its run no proper name
            self.warn("topic", f"an event has no topic, and its loss is not counted: {error!r}")

    def add_records(self, run_id: str, phase: PhaseRef, count: int, reason: str) -> None:
        """Count records that are dropped together."""
        self.add(Records(run_id=run_id, phase=phase, count=count), reason)

    def take(self, now_s: float, *, at_once: bool = False) -> list[Drop]:
        """Return the events that report what was dropped since the last time, if they are due."""
        if self._refused:
            with self._lock:
                refused, self._refused = self._refused, Counter()
            for (run_id, phase, reason), count in refused.items():
                self.add_records(run_id, phase, count, reason)
        if not self._unreported or (now_s < self._next_s and not at_once):
            return []
        self._next_s = now_s + DROP_EVERY_S
        reported, self._unreported = self._unreported, {}
        return list(reported.values())

    def end_run(self, run_id: str) -> tuple[dict[str, int], int]:
        """Return how many events of each topic of a run were dropped, and how many request records.

        The run is forgotten then.
        """
        return dict(self._by_run.pop(run_id, ())), self._records.pop(run_id, 0)

    def _count(self, run_id: str, topic: str, records: int, reason: str) -> None:
        self.total += 1
        self._by_run[run_id][topic] += 1
        self._records[run_id] += records
        events: dict[str, int] = {}
        if so_far := self._unreported.get(run_id):
            events, records = so_far.events, records + so_far.records
        self._unreported[run_id] = Drop(
            run_id=run_id,
            source=self._name,
            reason=reason,
            events=events | {topic: events.get(topic, 0) + 1},
            records=records,
        )
        self.warn(reason, f"events are being dropped: {reason}")
