"""Reading a journal, in the bus or beside it."""

from __future__ import annotations

import logging
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
from msgspec import Struct

from phase_bus.core.control import PrunedRun, PrunedTopic, UnreadRun
from phase_bus.core.position import Lineage, Position, Segment
from phase_bus.core.wire import BUNDLED_MOST, NO_PARTITION, decode_event, parse_topic, partition_of
from phase_bus.errors import WireError
from phase_bus.events import BEGIN_NO_RUN, EventBase, RunComplete
from phase_bus.journal.bundles import most_events, single_events
from phase_bus.journal.files import (
    FILE_NAME,
    checkpoint_crc,
    event_crc,
    failing_clearly,
    open_for_reading,
    size_on_disk,
    sql_list,
    stream_crc,
)
from phase_bus.journal.rows import Checkpoint, DeadLetter, Entry, Head, JournalInfo, RunRow, StreamRow
from phase_bus.journal.verify import find_problems

logger = logging.getLogger("phase_bus.bus")

# CROSS JOIN keeps SQLite from turning the join around: events come in order, none is sorted. So does LEFT
# JOIN, which also returns an event whose stream is missing: as damaged.
_READ = """
SELECT e.offset, s.topic, e.header, e.payload, s.run_id, s.kind, s.source, e.source_seq, e.records,
    e.event_number, e.ts_ns, e.events, e.crc
FROM events AS e {index} {join} JOIN streams AS s ON s.id = e.stream
WHERE e.offset > ? AND e.offset <= ? {where} ORDER BY e.offset LIMIT ?
"""
# What consumers and the bus put on the bus too: having published it makes nobody a run's publisher.
_OF_ANYBODY = BEGIN_NO_RUN | {RunComplete.kind}
# A run's events are those of its publishers, and its end: one, whoever published how many.
_RUNS = f"""
WITH publishers AS (SELECT DISTINCT run_id, source FROM streams WHERE kind NOT IN {sql_list(_OF_ANYBODY)})
SELECT r.run_id, r.status, r.started_ns, r.ended_ns,
    coalesce(sum(s.events) FILTER (WHERE s.kind <> 'run_complete' AND p.source IS NOT NULL), 0)
        + (r.status NOT IN ('running', 'unknown')),
    coalesce(sum(s.records), 0), coalesce(sum(s.size_bytes), 0), r.publisher
FROM runs AS r LEFT JOIN streams AS s ON s.run_id = r.run_id
LEFT JOIN publishers AS p ON p.run_id = s.run_id AND p.source = s.source WHERE NOT r.pruning
GROUP BY r.run_id ORDER BY r.started_ns, r.rowid
"""  # noqa: S608 - of constants
_OF_CONSUMER = "?1 IS NULL OR consumer = ?1 OR substr(consumer, 1, length(?1) + 1) = ?1 || '/'"
_DEAD_LETTERS = f"""
SELECT id, consumer, stream, offset, run_id, kind, error, traceback, ts_ns, attempts FROM dead_letters
WHERE ({_OF_CONSUMER}) AND id > ?2 ORDER BY id LIMIT ?3
"""  # noqa: S608 - of constants
_LEFT_OUT = f"SELECT consumer, count FROM dead_letters_left_out WHERE {_OF_CONSUMER} ORDER BY consumer"  # noqa: S608 - likewise
_BY_PARTITION = "INDEXED BY events_by_partition"
_NO_END = 2**63 - 1
_LAST = _NO_END - BUNDLED_MOST  # offset
_NAMED_OFFSETS = 10

_decode_topics = msgspec.msgpack.Decoder(dict[str, PrunedTopic]).decode
_decode_unread = msgspec.msgpack.Decoder(list[UnreadRun]).decode

_E = TypeVar("_E", bound=EventBase)
_S = TypeVar("_S", bound=Struct)


class _Wanted(NamedTuple):
    """What of the journal is wanted in one piece.

    Attributes:
        after, until: offsets: the last one before it, and its last one.
    """

    after: int = 0
    until: int = _LAST
    bundled: bool = False
    partition: int | None = None
    limit: int = -1
    limit_bytes: int = _NO_END

    def has_all_of(self, entry: Entry) -> bool:
        """Return whether all events of a row are between the offsets."""
        return entry.offset - entry.events >= self.after and entry.offset <= self.until


_ALL = _Wanted()


class JournalReader:
    """A journal to read from, while a bus writes it or after.

    Use it from one thread at a time. What it returns is as of the moment of the call. Without a connection
    to the file, which may be given by its directory, it opens one that cannot write.

    Attributes:
        damaged: the offsets of events that were come upon and do not match their checksums, by whatever
            reads events. They are left out.
        damaged_checkpoints: likewise the consumers whose checkpoints were come upon.

    Raises:
        JournalError: if there is no journal, or it cannot be read. Every method may raise it too.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection | None = None) -> None:
        self.path = path / FILE_NAME if path.is_dir() else path
        self._db = connection or open_for_reading(self.path)
        self.damaged: set[int] = set()
        self.damaged_checkpoints: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Doing so twice does no harm."""
        self._db.close()

    # ---- events ----

    @property
    def head(self) -> Head:
        """How far the journal is."""
        # Numbers never go down, so the greater one of what is here and what was pruned is the latest.
        rows = self._query(
            "SELECT * FROM"
            " (SELECT * FROM (SELECT offset, event_number FROM events ORDER BY offset DESC LIMIT 1)"
            " UNION ALL SELECT offset, event_number FROM past) ORDER BY offset DESC LIMIT 1"
        )
        return Head(*rows[0]) if rows else Head(0, 0)

    @property
    def lineage(self) -> Lineage:
        """The streams whose events are here, or were."""
        rows = self._query("SELECT stream, first_offset FROM segments ORDER BY id")
        return Lineage(Segment(*row) for row in rows)

    @property
    def last_stream(self) -> str:
        """The stream of the bus that has the journal, or had it last; empty before the first."""
        rows = self._query("SELECT stream FROM segments ORDER BY id DESC LIMIT 1")
        return rows[0][0] if rows else ""

    def streams(self, run_id: str) -> list[StreamRow]:
        """Return what there is of a run, by topic and source, in the order of the first events."""
        sql = (
            "SELECT topic, source, events, records, last_offset FROM streams WHERE run_id = ?"
            " ORDER BY first_offset"
        )
        return [StreamRow._make(row) for row in self._query(sql, run_id)]

    def run_state(self, run_id: str) -> tuple[str, bytes | None]:
        """Return which run it is a further attempt of, if any, and what the bus keeps of its publishers."""
        rows = self._query("SELECT attempt_of, parts FROM runs WHERE run_id = ?", run_id)
        return rows[0] if rows else ("", None)

    def read(
        self,
        after_offset: int,
        *,
        records: bool,
        partition: int | None = None,
        limit_bytes: int = 1 << 20,
        limit: int = 1000,
        run_id: str | None = None,
        kinds: Sequence[str] = (),
        until: int | None = None,
        bundled: bool = False,
    ) -> list[Entry]:
        """Return the next events after an offset, in order; nothing only if there are none.

        Events that do not match their checksums are left out, and added to :attr:`damaged`.

        Args:
            records: whether batches of request records are wanted too.
            partition: only the records of this partition.
            kinds: only events of these kinds; empty for all.
            limit_bytes: the size of their frames at most; one event comes in any case.
            until: the last offset that is wanted.
            bundled: leave bundles as they are, but for one that is wanted in part. One comes in any case.
        """
        last = _LAST if until is None else min(until, _LAST)
        with failing_clearly(self.path):
            if run_id is not None:
                first, last_of_run = self._range(run_id)
                after_offset, last = max(after_offset, first - 1), min(last, last_of_run)
            parameters: list[int | str] = [after_offset, last]
            index = where = ""
            wanted = None
            if until is not None:  # the row that it is in may end beyond it
                where = "AND e.offset - e.events < ?"
                parameters[1:] = [last + BUNDLED_MOST, last]
            if partition is not None or not records:
                index = _BY_PARTITION
                where += " AND e.partition = ?"
                wanted = NO_PARTITION if partition is None else partition
                parameters.append(wanted)
            if run_id is not None:
                where += " AND s.run_id = ?"
                parameters.append(run_id)
            if kinds:
                where += f" AND s.kind IN ({', '.join('?' * len(kinds))})"
                parameters += kinds
            join = "LEFT" if run_id is None and not kinds else "CROSS"
            sql = _READ.format(index=index, join=join, where=where)
            while True:
                found = self._db.execute(sql, (*parameters, limit))
                events = _Wanted(after_offset, last, bundled, wanted, limit, limit_bytes)
                entries, after_offset = self._up_to(found, events)
                if entries or not after_offset:
                    return entries
                parameters[0] = after_offset

    def entries(self, run_id: str | None = None, until: int | None = None) -> Iterator[Entry]:
        """Yield the events of one run or of all, up to an offset or to the last one that there is now.

        They come in order, and are read a bounded piece at a time.
        """
        offset = 0
        until = self.head.offset if until is None else until
        while piece := self.read(offset, records=True, run_id=run_id, until=until):
            offset = piece[-1].offset
            yield from piece

    def events(self, run_id: str, kind: type[_E]) -> list[_E]:
        """Return all events of one kind, records excepted, of a run, in order.

        Raises:
            WireError: if one cannot be decoded.
        """
        entries = self.entries_of(run_id, kind.kind)
        events = [decode_event(entry.topic, entry.payload) for entry in entries]
        return [event for event in events if isinstance(event, kind)]

    def entries_of(self, run_id: str, kind: str) -> list[Entry]:
        """Return all events of one kind, records excepted, of a run as they are, in order."""
        where = "AND e.partition = ? AND s.run_id = ? AND s.kind = ?"
        sql = _READ.format(index=_BY_PARTITION, join="CROSS", where=where)
        first, last = self._range(run_id)
        rows = self._query(sql, first - 1, last, NO_PARTITION, run_id, kind, -1)
        return list(self._whole(rows))

    def _range(self, run_id: str) -> tuple[int, int]:
        """Return a run's first and last offset."""
        sql = "SELECT min(first_offset), max(last_offset) FROM streams WHERE run_id = ?"
        ((first, last),) = self._query(sql, run_id)
        return first or 0, last or 0

    def last_offsets(self) -> dict[int, int]:
        """Return the last offset in each partition of the records that are here."""
        rows = self._query("SELECT partition, max(offset) FROM events GROUP BY partition")
        return {partition: offset for partition, offset in rows if partition != NO_PARTITION}

    def last_seqs(self) -> dict[bytes, int]:
        """Return the last sequence of each source, by which repetitions are recognised."""
        return dict(
            self._query(
                "SELECT source, max(last_seq) FROM (SELECT source, last_seq FROM streams"
                " UNION ALL SELECT source, last_seq FROM past_sources) GROUP BY source"
            )
        )

    # ---- consumers ----

    def checkpoint(self, consumer: str) -> Checkpoint | None:
        """Return a consumer's checkpoint, None if it has none or, which is logged, it is damaged."""
        sql = "SELECT stream, offset, state, crc FROM checkpoints WHERE consumer = ?"
        for stream, offset, state, crc in self._query(sql, consumer):
            position = Position(stream, offset)
            if checkpoint_crc(consumer, position, state) == crc:
                return Checkpoint(position, state)
            if consumer not in self.damaged_checkpoints:
                self.damaged_checkpoints.add(consumer)
                logger.error(
                    "phase-bus: %s: the checkpoint of consumer %r is damaged and not used; "
                    "the consumer begins at the start of the journal",
                    self.path,
                    consumer,
                )
        return None

    def group_checkpoints(self, group: str, after: Mapping[int, int]) -> Iterator[tuple[int, Checkpoint]]:
        """Yield the partitions of a group, in their order, with their checkpoints.

        Left out is what is not beyond the offset in ``after``, which is known already.
        """
        found = self._query(
            "SELECT consumer, offset FROM checkpoints WHERE consumer > ? AND consumer < ?"
            " ORDER BY length(consumer), consumer",
            f"{group}/",
            f"{group}0",  # 0 follows on / in ASCII
        )
        for consumer, offset in found:
            number = consumer.removeprefix(f"{group}/")
            if number.isascii() and number.isdigit() and offset > after.get(int(number), -1):
                checkpoint = self.checkpoint(consumer)
                if checkpoint is not None:
                    yield int(number), checkpoint

    def dead_letters(
        self, consumer: str | None = None, after: int = 0, limit: int = -1
    ) -> list[DeadLetter]:
        """Return the dead letters of one consumer or group, or of all, the oldest first.

        Args:
            after: only those of higher numbers.
            limit: how many at most; -1 for all.
        """
        return self._structs(DeadLetter, _DEAD_LETTERS, consumer, after, limit)

    def dead_letter_count(self) -> int:
        """Return how many dead letters there are."""
        ((count,),) = self._query("SELECT count(*) FROM dead_letters")
        return int(count)

    def dead_letters_left_out(self, consumer: str | None = None) -> dict[str, int]:
        """Return how many more events a consumer or group, or each, failed on, at least, by name."""
        return {name: int(count) for name, count in self._query(_LEFT_OUT, consumer)}

    # ---- what is gone ----

    def pruned_runs(self, after: int = 0, until: int = _NO_END) -> list[PrunedRun]:
        """Return the latest pruned runs that had events after an offset, and began up to another."""
        rows = self._query(
            "SELECT id, run_id, last_offset, topics FROM pruned_runs"
            " WHERE last_offset > ? AND first_offset <= ? ORDER BY id",
            after,
            until,
        )
        return [
            PrunedRun(number=row[0], run_id=row[1], last_offset=row[2], topics=_decode_topics(row[3]))
            for row in rows
        ]

    @property
    def prunings(self) -> int:
        """How many runs were pruned since the journal was begun."""
        rows = self._query("SELECT seq FROM sqlite_sequence WHERE name = 'pruned_runs'")
        return int(rows[0][0]) if rows else 0

    def unread_runs(self) -> list[UnreadRun]:
        """Return what consumers lost by the latest prunings, the latest last."""
        rows = self._query("SELECT unread FROM pruned_runs ORDER BY id")
        return [each for (unread,) in rows for each in _decode_unread(unread)]

    def unread_of(self, run_id: str) -> list[UnreadRun]:
        """Return what consumers lost by the last pruning of a run: one of its id may have gone before."""
        rows = self._query(
            "SELECT unread FROM pruned_runs WHERE run_id = ? ORDER BY id DESC LIMIT 1", run_id
        )
        return [each for (unread,) in rows for each in _decode_unread(unread)]

    # ---- the whole ----

    def runs(self) -> list[RunRow]:
        """Return all runs, the oldest first."""
        return self._structs(RunRow, _RUNS)

    def taken_ns(self, run_id: str) -> int | None:
        """Return when the bus took in the first event of a run, in Unix ns; None if there is none."""
        sql = "SELECT ts_ns FROM events WHERE offset >= ?1 AND offset - events < ?1 ORDER BY offset LIMIT 1"
        rows = self._query(sql, self._range(run_id)[0])
        return int(rows[0][0]) if rows else None

    def has_run(self, run_id: str) -> bool:
        """Return whether there is anything of a run."""
        return bool(self._query("SELECT 1 FROM runs WHERE run_id = ? AND NOT pruning", run_id))

    def info(self) -> JournalInfo:
        """Return the journal at a glance."""
        totals = "SELECT coalesce(sum(events), 0), coalesce(sum(records), 0) FROM streams"
        ((events, records),) = self._query(totals)
        ((runs,),) = self._query("SELECT count(*) FROM runs WHERE NOT pruning")
        oldest = self._query("SELECT ts_ns FROM events ORDER BY offset LIMIT 1")
        return JournalInfo(
            path=str(self.path),
            size_bytes=size_on_disk(self.path),
            events=events,
            records=records,
            runs=runs,
            head=self.head,
            oldest_ts_ns=oldest[0][0] if oldest else None,
            checkpoints={
                consumer: Position(*position)
                for consumer, *position in self._query("SELECT consumer, stream, offset FROM checkpoints")
            },
            streams=len(self.lineage.segments),
        )

    def verify(self) -> list[str]:
        """Read everything, and return what is wrong, naming offsets; nothing means that all is well."""
        return find_problems(self._db)

    def _up_to(self, rows: sqlite3.Cursor, wanted: _Wanted) -> tuple[list[Entry], int]:
        """Return the first whole events up to a size, and the last offset that was come to, 0 for none."""
        entries: list[Entry] = []
        offset = size_bytes = 0
        _, _, _, partition, limit, limit_bytes = wanted
        for row in rows:
            offset = row[0]
            for entry in self._whole((row,), wanted):
                if partition is not None and partition_of(entry.topic) != partition:
                    self._note_damage(entry)  # the column is what no checksum covers
                    continue
                size_bytes += len(entry.topic) + len(entry.header) + len(entry.payload)
                if entries and (size_bytes > limit_bytes or len(entries) == limit):
                    rows.close()  # what is read no further must not keep the log from being reused
                    return entries, offset
                entries.append(entry)
        return entries, offset

    def _whole(self, rows: Iterable[tuple[Any, ...]], wanted: _Wanted = _ALL) -> Iterator[Entry]:
        """Yield the events that match their checksums; note the others. Here bundles are taken apart."""
        for *values, crc in rows:
            entry = Entry(*values)
            if not _matches(entry, crc):
                self._note_damage(entry)
            elif entry.events == 1 or (wanted.bundled and wanted.has_all_of(entry)):
                yield entry
            else:
                try:
                    events = single_events(entry)
                except WireError:
                    self._note_damage(entry)
                else:
                    yield from (event for event in events if wanted.after < event.offset <= wanted.until)

    def _note_damage(self, entry: Entry) -> None:
        """Note all offsets that a damaged row had: those after the row before it, as far as it says."""
        rows = self._query("SELECT max(offset) FROM events WHERE offset < ?", entry.offset)
        first = max((rows[0][0] or 0) + 1, entry.offset - most_events(entry) + 1)
        self.damaged.update(range(first, entry.offset + 1))

    def damage(self, missing: int = 0) -> str:
        """Return in words what was left out so far; empty if nothing was.

        Args:
            missing: how many events less were read than there were, the damaged ones among them.
        """
        count = max(len(self.damaged), missing)
        if not count:
            return ""
        offsets = ", ".join(map(str, sorted(self.damaged)[:_NAMED_OFFSETS]))
        more = " ..." if count > min(len(self.damaged), _NAMED_OFFSETS) else ""
        where = f" (offset {offsets}{more})" if offsets else ""
        return f"{count:,} {'event is' if count == 1 else 'events are'} damaged and left out{where}"

    def _query(self, sql: str, *parameters: object) -> list[Any]:
        with failing_clearly(self.path):
            return self._db.execute(sql, parameters).fetchall()

    def _structs(self, row: type[_S], sql: str, *parameters: object) -> list[_S]:
        """Return a query's rows as Structs, whose fields are in the order of its columns."""
        names = row.__struct_fields__
        return [row(**dict(zip(names, values, strict=True))) for values in self._query(sql, *parameters)]


class PublishedInJournal:
    """The events of past runs that their publishers published, in order.

    Left out is what consumers (summaries, receipts) added: on another bus its own consumers do so. Of the
    ends of a run only the last one counts; one that its publishers did not end has none.

    Attributes:
        count: how many events there are.

    Raises:
        JournalError, WireError: if the journal cannot be read.
    """

    def __init__(self, reader: JournalReader, run_ids: list[str]) -> None:
        self._reader = reader
        self._run_ids = run_ids
        # A source may publish one run, and only have something to say of another.
        self._wanted: set[tuple[str, bytes]] = set()
        self._ends: set[int] = set()
        self.count = 0
        for run_id in run_ids:
            streams = [(parse_topic(stream.topic).kind, stream) for stream in reader.streams(run_id)]
            sources = {stream.source for kind, stream in streams if kind not in _OF_ANYBODY}
            self._wanted |= {(run_id, source) for source in sources}
            self.count += sum(
                stream.events
                for kind, stream in streams
                if stream.source in sources and kind != RunComplete.kind
            )
            if (end := self._end(run_id)) is not None:
                self._ends.add(end)
                self.count += 1

    def _end(self, run_id: str) -> int | None:
        """Return the offset of a run's last end, None if it goes on or its publishers did not end it."""
        last = None
        for entry in self._reader.entries_of(run_id, RunComplete.kind):
            end = decode_event(entry.topic, entry.payload)
            if isinstance(end, RunComplete) and not end.running:
                last = None if end.status == "lost" and end.is_of_bus(entry.source) else entry.offset
        return last

    def __iter__(self) -> Iterator[Entry]:
        entries = self._reader.entries(self._run_ids[0] if len(self._run_ids) == 1 else None)
        for entry in entries:
            if entry.kind == RunComplete.kind:
                if entry.offset in self._ends:
                    yield entry
            elif (entry.run_id, entry.source) in self._wanted:
                yield entry


# The same few streams come again and again; a checksum of their texts would cost more than one of the rest.
_stream_crc = lru_cache(maxsize=1024)(stream_crc)


def _matches(entry: Entry, crc: int) -> bool:
    """Return whether an event is what was written."""
    numbers = (entry.offset, entry.source_seq, entry.records, entry.event_number, entry.ts_ns, entry.events)
    try:
        start = _stream_crc(entry.topic, entry.source, entry.run_id, entry.kind)
        return event_crc(start, numbers, entry.header, entry.payload) == crc
    except (TypeError, AttributeError, struct.error):  # damage can change a type, or lose the stream
        return False
