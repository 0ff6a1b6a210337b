"""Which run a journal lets go of next, which ones it holds back for whom, and what consumers lose by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from phase_bus.core.control import EVENTS, PrunedTopic, UnreadRun
from phase_bus.core.wire import NO_PARTITION, partition_of
from phase_bus.events import BEGIN_NO_RUN
from phase_bus.journal.files import sql_list
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Limits, parse_checkpoint_name

KEPT_PRUNED_RUNS = 1000  # of which the journal still says what they held

_decode_topics = msgspec.json.Decoder(list[str]).decode

# In the order in which they go: by where the bus took in their ends, whatever anybody's clock says.
_OVER = f"""
SELECT r.run_id, r.pruning, max(CASE WHEN s.kind NOT IN {sql_list(BEGIN_NO_RUN)} THEN s.last_offset
    ELSE 0 END) AS end_offset, max(s.last_offset)
FROM runs AS r LEFT JOIN streams AS s ON s.run_id = r.run_id WHERE r.status <> 'running' OR r.pruning
GROUP BY r.run_id ORDER BY r.pruning DESC, r.status <> 'unknown', end_offset, r.rowid
"""  # noqa: S608 - of constants


class Candidate(NamedTuple):
    """A run that has ended.

    Attributes:
        half_gone: some of its events were deleted already.
        end_offset: that of the last event that is not only what consumers say of it.
        last_offset: that of its last event.
    """

    run_id: str
    half_gone: bool
    end_offset: int
    last_offset: int


class _TopicRow(NamedTuple):
    """The events of one topic of a run from one source."""

    id: int
    topic: bytes
    kind: str
    first_offset: int
    last_offset: int
    events: int
    records: int

    @property
    def partition(self) -> int:
        """The partition of the records, or that of all other events."""
        return partition_of(self.topic)


class Standing(NamedTuple):
    """How far a consumer, or one share of a group, has come.

    Attributes:
        consumer: the consumer's or the group's name.
        share: the number of the group's share; None for a consumer on its own.
        wanted: the topic prefixes that it takes.
        is_here: whether it was on the bus lately.
    """

    consumer: str
    share: int | None
    offset: int
    wanted: tuple[bytes, ...]
    is_here: bool

    def lacks(self, row: _TopicRow) -> bool:
        """Return whether it takes a topic, and has not read all that is here of it."""
        if row.last_offset <= self.offset or not row.topic.startswith(self.wanted):
            return False
        partition = EVENTS if row.partition == NO_PARTITION else row.partition
        return self.share is None or self.share == partition


class HoldingJournal(JournalReader):
    """What a journal that is written knows of its consumers and their standings."""

    limits: Limits

    def candidates(self) -> list[Candidate]:
        """Return the runs that have ended, in the order in which they are to go."""
        return [Candidate(*row) for row in self._query(_OVER)]

    def standings(self, now_ns: int | None) -> list[Standing]:
        """Return where all consumers are; without a time, as if they had been on the bus lately."""
        known = {
            name: (seen_ns, tuple(topic.encode() for topic in _decode_topics(topics)))
            for name, seen_ns, topics in self._query("SELECT name, seen_ns, topics FROM consumers")
        }
        found = []
        for name, offset in self._query("SELECT consumer, offset FROM checkpoints"):
            consumer, share = parse_checkpoint_name(name)
            if consumer not in known:  # one on its own, whose name looks like that of a share
                consumer, share = name, None
            seen_ns, wanted = known.get(consumer, (now_ns, ()))
            absent_ns = 0 if now_ns is None or seen_ns is None else now_ns - seen_ns
            is_here = absent_ns <= self.limits.max_absence_s * 1e9
            found.append(Standing(consumer, share, offset, wanted or (b"",), is_here))
        return found

    def is_held(self, run_id: str, standings: Iterable[Standing]) -> bool:
        """Return whether a consumer that was here lately has not read a run to its end."""
        rows = [row for row in self._topic_rows(run_id) if row.kind not in BEGIN_NO_RUN]
        return any(standing.lacks(row) for standing in standings if standing.is_here for row in rows)

    def unread(self, run_id: str) -> list[UnreadRun]:
        """Return what consumers have not read of a run, also those that hold nothing back."""
        events: Counter[str] = Counter()
        records: Counter[str] = Counter()
        rows = self._topic_rows(run_id)
        for standing in self.standings(None):
            for row in filter(standing.lacks, rows):
                lacking = self._beyond(row, standing.offset)
                events[standing.consumer] += lacking[0]
                records[standing.consumer] += lacking[1]
        return [
            UnreadRun(consumer=name, run_id=run_id, events=count, records=records[name])
            for name, count in events.items()
            if count
        ]

    def size_of(self, run_id: str) -> int:
        """Return the bytes of a run's frames."""
        sql = "SELECT coalesce(sum(size_bytes), 0) FROM streams WHERE run_id = ?"
        return int(self._query(sql, run_id)[0][0])

    def content(self, run_id: str) -> dict[str, PrunedTopic]:
        """Return what is here of a run, by topic."""
        found: dict[str, PrunedTopic] = {}
        for row in self._topic_rows(run_id):
            name = row.topic.decode()
            told = found.get(name, PrunedTopic())
            found[name] = PrunedTopic(
                events=told.events + row.events,
                records=told.records + row.records,
                last_offset=max(told.last_offset, row.last_offset),
            )
        return found

    def _topic_rows(self, run_id: str) -> list[_TopicRow]:
        sql = f"SELECT {', '.join(_TopicRow._fields)} FROM streams WHERE run_id = ?"  # noqa: S608 - of constants
        return [_TopicRow(*row) for row in self._query(sql, run_id)]

    def _beyond(self, row: _TopicRow, offset: int) -> tuple[int, int]:
        """Return how many events, and records in them, a topic has after an offset."""
        if offset < row.first_offset:
            return row.events, row.records
        ((events, records),) = self._query(
            # Of a bundle that is read in part, what is left.
            "SELECT coalesce(sum(min(events, offset - ?1)), 0), coalesce(sum(records), 0) FROM events"
            " WHERE partition = ?2 AND offset > ?1 AND offset <= ?3 AND stream = ?4",
            offset,
            row.partition,
            row.last_offset,
            row.id,
        )
        return events, records


def in_words(unread: Iterable[UnreadRun]) -> str:
    """Return who lost how much: ``slow (18 events with 3,050 records)``."""
    return ", ".join(f"{u.consumer} ({u.events:,} events with {u.records:,} records)" for u in unread)
