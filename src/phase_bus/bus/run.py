"""A run as the bus sees it: a part for each publisher that published of it, and their totals at its end."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import msgspec
from msgspec import Struct, field

from phase_bus.core.control import RunInfo
from phase_bus.core.wire import decode, end_topic
from phase_bus.errors import WireError
from phase_bus.events import LARGEST_COUNT, LATEST_NS, Drop, EventBase, RunComplete, RunPart, RunStart
from phase_bus.journal.writer import RUNNING

logger = logging.getLogger("phase_bus.bus")

_KEPT_TOPICS = 12_000  # names in one count of a publisher; its end, and what it drops, may name others
_KEPT_LETTERS = 1000  # of why it ended
_FROM_BEST_TO_WORST = ("completed", "cancelled", "lost", "failed")


class Part(Struct, kw_only=True):
    """What one publisher published of a run.

    Attributes:
        status: ``running``, or how it ended. One that did not begin the run, as a worker process does not,
            has ``completed`` its part if it left and the bus has everything that it sent.
        began: whether it published the run's start.
        said: how it ended the run the last time, empty if it never did.
        published: how many of its events were taken in so far, by topic.
        before: how many of each topic it had published in earlier attempts.
    """

    publisher: str = ""
    status: str = RUNNING
    began: bool = False
    said: str = ""
    reason: str = ""
    published: dict[str, int] = {}
    records: int = 0
    dropped: dict[str, int] = {}
    dropped_records: int = 0
    before: dict[str, int] = {}

    def take_end(self, end: RunComplete, source: bytes) -> None:
        """Take in what the publisher says at its end; what was counted here includes what came before."""
        mine = end.parts.get(source.hex(), end)
        self.status = self.said = mine.status
        self.reason = end.reason[:_KEPT_LETTERS]
        self.take_counts(mine.published, mine.records)
        self.dropped = _most(self.dropped, mine.dropped)
        self.dropped_records = max(self.dropped_records, mine.dropped_records)

    def take_counts(self, published: dict[str, int], records: int) -> None:
        """Take in counts of what it published, by topic, which include what was counted here."""
        self.published = _most(self.published, published)
        self.records = max(self.records, records)

    def take_drop(self, drop: Drop) -> None:
        """Take in what the publisher dropped."""
        self.dropped = _first(_added((self.dropped, drop.events)))
        self.dropped_records = _total((self.dropped_records, drop.records))

    def told(self, end_topic: str) -> RunPart:
        """Return what consumers are told of it."""
        return msgspec.convert(
            {**msgspec.structs.asdict(self), "published": _without(self.published, end_topic)}, RunPart
        )


class Run(Struct, kw_only=True):
    """A run as the bus sees it.

    Attributes:
        attempt_of: the id that its publishers give it, if it is a further attempt.
        status: ``running``, or how it ended.
        started_ns, ended_ns: when it began and ended, by its events' own times.
        behind_ns: by how much these are behind the time at which the bus takes them in: that of a replayed
            run by days.
        last_ns: the latest of them.
        parts: what each publisher published of it, by source.
        end_offset: the offset of its last end.
        until_s: while all publishers have left and none has ended it: how long to wait for another one,
            by :func:`time.monotonic`.
    """

    run_id: str
    attempt_of: str = ""
    status: str = RUNNING
    started_ns: int = field(default_factory=time.time_ns)
    ended_ns: int | None = None
    behind_ns: int = 0
    last_ns: int = 0
    parts: dict[bytes, Part] = field(default_factory=dict)
    end_offset: int = 0
    until_s: float = math.inf

    @property
    def publisher(self) -> str:
        """What a person calls its publishers."""
        names = [part.publisher for part in self.parts.values()]
        return f"{names[0]} +{len(names) - 1}" if len(names) > 1 else "".join(names)

    @property
    def going_on(self) -> int:
        """How many publishers have not ended it."""
        return sum(part.status == RUNNING for part in self.parts.values())

    def info(self) -> RunInfo:
        """Return what others may know of it."""
        return RunInfo(
            run_id=self.run_id,
            status=self.status,
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            events=_total(self._published().values()) + (self.status != RUNNING),
            publisher=self.publisher,
            dropped=_total(_total(part.dropped.values()) for part in self.parts.values()),
            dropped_records=_total(part.dropped_records for part in self.parts.values()),
        )

    def end(self) -> RunComplete:
        """Return its end, with what all publishers published of it."""
        statuses = [part.status for part in self.parts.values() if part.status != RUNNING]
        status = max(statuses, key=_FROM_BEST_TO_WORST.index, default="lost")
        reasons = [part.reason for part in self.parts.values() if part.status == status and part.reason]
        return RunComplete(
            run_id=self.run_id,
            ts_ns=min(max(time.time_ns() - self.behind_ns, self.last_ns), LATEST_NS),
            status=status,  # type: ignore[arg-type] # it is one of those
            reason=reasons[0] if reasons else "",
            published=self._published(),
            records=_total(part.records for part in self.parts.values()),
            dropped=_added(part.dropped for part in self.parts.values()),
            dropped_records=_total(part.dropped_records for part in self.parts.values()),
            running=self.going_on,
            # Never empty, so that nobody takes the bus for one of the publishers.
            parts={source.hex(): part.told(end_topic(self.run_id)) for source, part in self.parts.items()}
            or {"": RunPart(status="lost")},
        )

    def take_time(self, event: EventBase) -> None:
        """Take in an event's time; the run began with its first start, or without one its first event."""
        is_start, began = isinstance(event, RunStart), any(part.began for part in self.parts.values())
        if not self.last_ns or (is_start and not began):
            self.started_ns, self.behind_ns = event.ts_ns, time.time_ns() - event.ts_ns
        elif is_start:
            self.started_ns = min(self.started_ns, event.ts_ns)
        self.last_ns = max(self.last_ns, event.ts_ns)

    def _published(self) -> dict[str, int]:
        return _added(_without(part.published, end_topic(self.run_id)) for part in self.parts.values())


_decode_parts = msgspec.msgpack.Decoder(dict[bytes, Part]).decode


def decode_parts(run_id: str, noted: bytes | None) -> dict[bytes, Part]:
    """Return what was noted of a run's publishers; without it they are what the run's events say."""
    if not noted:
        return {}
    try:
        return decode(msgspec.msgpack.Decoder(dict[bytes, Part]).decode, noted, "not a note")
    except WireError as error:
        logger.error(
            "phase-bus bus: the note on run %s is damaged (%s); its events are counted", run_id, error
        )
        return {}


def _total(counts: Iterable[int]) -> int:
    """Return a sum that can be told."""
    return min(sum(counts), LARGEST_COUNT)


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sum for each name."""
    added: Counter[str] = Counter()
    for each in counts:
        added.update(each)
    return {name: min(count, LARGEST_COUNT) for name, count in added.items()}


def _most(counts: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    return _first(dict(Counter(counts) | Counter(others)))


def _first(counts: dict[str, int]) -> dict[str, int]:
    return counts if len(counts) <= _KEPT_TOPICS else dict(islice(counts.items(), _KEPT_TOPICS))


def _without(counts: dict[str, int], topic: str) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name != topic}
