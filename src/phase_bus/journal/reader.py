"""Reading a journal, in the bus or beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
from msgspec import Struct

from phase_bus.core.control import PrunedRun, PrunedTopic, UnreadRun
from phase_bus.core.wire import NO_PARTITION, decode_event, parse_topic
from phase_bus.events import EventBase
from phase_bus.journal.files import FILE_NAME, failing_clearly, open_for_reading, size_on_disk
from phase_bus.journal.rows import Checkpoint, DeadLetter, Entry, Head, JournalInfo, RunRow
from phase_bus.journal.verify import find_problems

# CROSS JOIN keeps SQLite from turning the join around: events come in order, none is sorted.
_READ = """
SELECT e.offset, s.topic, e.header, e.payload, s.run_id, s.kind, s.source, e.source_seq, e.records,
    e.event_number, e.ts_ns
FROM events AS e {index} CROSS JOIN streams AS s ON s.id = e.stream
WHERE e.offset > ? AND e.offset <= ? {where} ORDER BY e.offset LIMIT ?
"""
# A run's events are those of its publishers, and its end: one, whoever published how many.
_RUNS = """
WITH publishers AS (
    SELECT DISTINCT run_id, source FROM streams
    WHERE kind NOT IN ('summary', 'receipt', 'drop', 'run_complete')
)
SELECT r.run_id, r.status, r.started_ns, r.ended_ns,
    coalesce(sum(s.events) FILTER (WHERE s.kind <> 'run_complete' AND p.source IS NOT NULL), 0)
        + (r.status NOT IN ('running', 'unknown')),
    coalesce(sum(s.records), 0), coalesce(sum(s.size_bytes), 0), r.publisher
FROM runs AS r LEFT JOIN streams AS s ON s.run_id = r.run_id
LEFT JOIN publishers AS p ON p.run_id = s.run_id AND p.source = s.source WHERE NOT r.pruning
GROUP BY r.run_id ORDER BY r.started_ns, r.rowid
"""
_DEAD_LETTERS = """
SELECT id, consumer, offset, run_id, kind, error, traceback, ts_ns, attempts FROM dead_letters
WHERE ?1 IS NULL OR consumer = ?1 OR substr(consumer, 1, length(?1) + 1) = ?1 || '/' ORDER BY id
"""
_BY_PARTITION = "INDEXED BY events_by_partition"
_NO_END = 2**63 - 1
# What consumers and the bus put on the bus too: having published it makes nobody a run's publisher.
_OF_ANYBODY = frozenset({"summary", "receipt", "drop", "run_complete"})

_decode_topics = msgspec.msgpack.Decoder(dict[str, PrunedTopic]).decode
_decode_unread = msgspec.msgpack.Decoder(list[UnreadRun]).decode

_E = TypeVar("_E", bound=EventBase)
_S = TypeVar("_S", bound=Struct)


class JournalReader:
    """A journal to read from, while a bus writes it or after.

    Use it from one thread at a time. What it returns is as of the moment of the call. Without a connection
    to the file, which may be given by its directory, it opens one that cannot write.

    Raises:
        JournalError: if there is no journal, or it cannot be read. Every method may raise it too.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection | None = None) -> None:
        self.path = path / FILE_NAME if path.is_dir() else path
        self._db = connection or open_for_reading(self.path)

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
        last = "SELECT offset, event_number FROM events ORDER BY offset DESC LIMIT 1"
        past = "SELECT offset, event_number FROM past"
        rows = self._query(
            f"SELECT * FROM (SELECT * FROM ({last}) UNION ALL {past}) ORDER BY offset DESC LIMIT 1"
        )
        return Head(*rows[0]) if rows else Head(0, 0)

    @property
    def journal_id(self) -> str:
        """32 hex digits that tell this journal, and so its offsets, from every other."""
        ((journal_id,),) = self._query("SELECT journal_id FROM past")
        return str(journal_id)

    def topics(self, run_id: str) -> list[tuple[bytes, bytes, int]]:
        """Return topic, source and number of events of each topic of a run."""
        return self._query("SELECT topic, source, events FROM streams WHERE run_id = ?", run_id)

    def read(
        self,
        after_offset: int,
        *,
        records: bool,
        partition: int | None = None,
        limit_bytes: int = 1 << 20,
        limit: int = 1000,
        run_id: str | None = None,
        until: int | None = None,
    ) -> list[Entry]:
        """Return the next events after an offset, in order; nothing only if there are none.

        Args:
            records: whether batches of request records are wanted too.
            partition: only the records of this partition.
            limit_bytes: the size of their frames at most; one event comes in any case.
            until: the last offset that is wanted.
        """
        last = _NO_END if until is None else until
        with failing_clearly(self.path):
            if run_id is not None:
                first, last_of_run = self._range(run_id)
                after_offset, last = max(after_offset, first - 1), min(last, last_of_run)
            parameters: list[int | str] = [after_offset, last]
            index = where = ""
            if partition is not None or not records:
                index, where = _BY_PARTITION, "AND e.partition = ?"
                parameters.append(NO_PARTITION if partition is None else partition)
            if run_id is not None:
                where += " AND s.run_id = ?"
                parameters.append(run_id)
            parameters.append(limit)
            sql = _READ.format(index=index, where=where)
            return _up_to(self._db.execute(sql, parameters), limit_bytes)

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
        sql = _READ.format(index=_BY_PARTITION, where="AND e.partition = ? AND s.run_id = ? AND s.kind = ?")
        first, last = self._range(run_id)
        rows = map(Entry._make, self._query(sql, first - 1, last, NO_PARTITION, run_id, kind.kind, -1))
        events = [decode_event(entry.topic, entry.payload) for entry in rows]
        return [event for event in events if isinstance(event, kind)]

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
        """Return a consumer's checkpoint, None if it has none."""
        rows = self._query("SELECT offset, state FROM checkpoints WHERE consumer = ?", consumer)
        return Checkpoint(*rows[0]) if rows else None

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
            if number.isdigit() and offset > after.get(int(number), -1):
                checkpoint = self.checkpoint(consumer)
                if checkpoint is not None:
                    yield int(number), checkpoint

    def dead_letters(self, consumer: str | None = None) -> list[DeadLetter]:
        """Return the dead letters of one consumer or group, or of all, the oldest first."""
        return self._structs(DeadLetter, _DEAD_LETTERS, consumer)

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

    def unread_runs(self, run_id: str | None = None) -> list[UnreadRun]:
        """Return what consumers lost by the latest prunings, of one run or of all, the latest last."""
        sql = "SELECT unread FROM pruned_runs WHERE ?1 IS NULL OR run_id = ?1 ORDER BY id"
        rows = self._query(sql, run_id)
        return [each for (unread,) in rows for each in _decode_unread(unread)]

    # ---- the whole ----

    def runs(self) -> list[RunRow]:
        """Return all runs, the oldest first."""
        return self._structs(RunRow, _RUNS)

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
            checkpoints=dict(self._query("SELECT consumer, offset FROM checkpoints")),
        )

    def verify(self) -> list[str]:
        """Read everything, and return what is wrong, naming offsets; nothing means that all is well."""
        return find_problems(self._db)

    def _query(self, sql: str, *parameters: object) -> list[Any]:
        with failing_clearly(self.path):
            return self._db.execute(sql, parameters).fetchall()

    def _structs(self, row: type[_S], sql: str, *parameters: object) -> list[_S]:
        """Return a query's rows as Structs, whose fields are in the order of its columns."""
        names = row.__struct_fields__
        return [row(**dict(zip(names, values, strict=True))) for values in self._query(sql, *parameters)]


class PublishedInJournal:
    """The events of past runs that their publishers published, in order.

    Left out is what consumers (summaries, receipts) and the bus itself (the end of a lost run) added: on
    another bus its own consumers and that bus do so.

    Attributes:
        count: how many events there are.
    """

    def __init__(self, reader: JournalReader, run_ids: list[str]) -> None:
        self._reader = reader
        self._run_ids = run_ids
        # A source may publish one run, and only have something to say of another.
        self._wanted: set[tuple[str, bytes]] = set()
        self.count = 0
        for run_id in run_ids:
            topics = reader.topics(run_id)
            sources = {s for topic, s, _ in topics if parse_topic(topic).kind not in _OF_ANYBODY}
            self._wanted |= {(run_id, source) for source in sources}
            self.count += sum(events for _, source, events in topics if source in sources)

    def __iter__(self) -> Iterator[Entry]:
        entries = self._reader.entries(self._run_ids[0] if len(self._run_ids) == 1 else None)
        return (entry for entry in entries if (entry.run_id, entry.source) in self._wanted)


def _up_to(rows: sqlite3.Cursor, limit_bytes: int) -> list[Entry]:
    entries: list[Entry] = []
    size_bytes = 0
    for row in rows:
        entry = Entry._make(row)
        size_bytes += len(entry.topic) + len(entry.header) + len(entry.payload)
        if entries and size_bytes > limit_bytes:
            rows.close()  # what is read no further must not keep the log from being reused
            break
        entries.append(entry)
    return entries
