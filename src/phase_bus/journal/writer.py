"""The bus's durable, ordered log of events, with what consumers and runs need kept beside it."""

from __future__ import annotations

import math
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from phase_bus.core.control import DeadLetterNote, JournalFile
from phase_bus.core.files import inode_of
from phase_bus.core.position import KEPT_STREAMS, Position
from phase_bus.core.wire import NO_PARTITION, partition_of
from phase_bus.errors import JournalError
from phase_bus.events import BEGIN_NO_RUN
from phase_bus.journal.checkpointer import WalCheckpointer
from phase_bus.journal.files import (
    BUSY_MS,
    FILE_NAME,
    checkpoint_crc,
    event_crc,
    failing_clearly,
    lock,
    open_for_writing,
    pragma,
    stream_crc,
    sync_directory,
)
from phase_bus.journal.holding import KEPT_PRUNED_RUNS, Candidate, HoldingJournal
from phase_bus.journal.rows import Durability, Entry, Head, Limits, PrunedRow, parse_checkpoint_name

RUNNING = "running"
UNKNOWN = "unknown"

_READERS_MS = 200  # how long readers may keep the log from being copied when a bus is started
_PRUNED_AT_ONCE = 500  # offsets in one transaction
_VACUUMED_AT_ONCE = 1000  # pages in one transaction
_PAGES_AT_LEAST = 4  # that a transaction writes

_INSERT_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COUNT = (
    "UPDATE streams SET events = events + ?, records = records + ?, size_bytes = size_bytes + ?,"
    " last_seq = ?, last_offset = ? WHERE id = ?"
)
_BEGIN_RUN = """
INSERT INTO runs (run_id, status, started_ns, ended_ns) VALUES (?, ?, ?, ?)
ON CONFLICT (run_id) DO UPDATE SET status = excluded.status, ended_ns = excluded.ended_ns
WHERE status = 'unknown' AND excluded.status = 'running'
"""
_NOTE_RUN = """
INSERT INTO runs (run_id, status, started_ns, ended_ns, publisher, attempt_of, parts)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id) DO UPDATE SET status = excluded.status, started_ns = excluded.started_ns,
    ended_ns = excluded.ended_ns, publisher = excluded.publisher, attempt_of = excluded.attempt_of,
    parts = excluded.parts
"""
_COMMIT = """
INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?)
ON CONFLICT (consumer) DO UPDATE SET stream = excluded.stream, offset = excluded.offset,
    state = excluded.state, crc = excluded.crc
"""
_FORGET_STREAMS = """
DELETE FROM segments WHERE id NOT IN (
    SELECT min(id) FROM segments UNION ALL SELECT * FROM (SELECT id FROM segments ORDER BY id DESC LIMIT ?)
)
"""
_SEE = """
INSERT INTO consumers VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET seen_ns = excluded.seen_ns, topics = excluded.topics
"""
_NOTE_PRUNED = """
INSERT INTO pruned_runs (run_id, first_offset, last_offset, topics, unread) VALUES (?, ?, ?, ?, ?)
RETURNING id
"""
_ADD_DEAD_LETTER = """
INSERT INTO dead_letters (consumer, stream, offset, run_id, kind, error, traceback, ts_ns, attempts)
VALUES (:consumer, :stream, :offset, :run_id, :kind, :error, :traceback, :ts_ns, :attempts)
ON CONFLICT (consumer, stream, offset) DO UPDATE SET error = excluded.error, traceback = excluded.traceback,
    ts_ns = excluded.ts_ns, attempts = excluded.attempts
RETURNING id
"""
# Of a consumer, or a share of a group: whoever fails on everything is not worth more of them.
MAX_DEAD_LETTERS = 1000
_LEAVE_OUT_DEAD_LETTERS = """
INSERT INTO dead_letters_left_out VALUES (?, ?)
ON CONFLICT (consumer) DO UPDATE SET count = count + excluded.count
"""
_ORPHANED_NAMES = """
SELECT kind, name FROM owners WHERE
    (kind = 'run' AND name NOT IN (SELECT run_id FROM runs UNION SELECT attempt_of FROM runs))
    OR (kind = 'consumer' AND name NOT IN (SELECT name FROM consumers))
"""
_ORPHANED_SOURCES = """
SELECT kind, name FROM owners WHERE kind = 'source' AND name NOT IN (
    SELECT lower(hex(source)) FROM streams UNION SELECT lower(hex(source)) FROM past_sources)
"""
_KEEP_SEQS = """
INSERT INTO past_sources SELECT source, max(last_seq), ? FROM streams WHERE run_id = ? GROUP BY source
ON CONFLICT (source) DO UPDATE SET ts_ns = excluded.ts_ns, last_seq = max(last_seq, excluded.last_seq)
"""
_DELETE_RUN = {
    "streams": "DELETE FROM streams WHERE run_id = ?",
    "dead_letters": "DELETE FROM dead_letters WHERE run_id = ?",
    "runs": "DELETE FROM runs WHERE run_id = ?",
}


class _Stream(NamedTuple):
    """What is common to the events of one topic from one source."""

    id: int
    crc: int
    partition: int


class Journal(HoldingJournal):
    """The bus's durable, ordered log: append, read on from an offset, prune whole runs.

    It is a SQLite file in WAL mode: what was appended survives any kill of the process. A power cut may
    lose the last moments, unless the durability is ``fsync``, but never damages the file. One bus has it
    at a time; others read it by :class:`~phase_bus.journal.reader.JournalReader`. Use it from one thread
    at a time.

    The directory is made if it is not there; the limits say how much :meth:`prune` leaves.

    Attributes:
        held: the runs that the last :meth:`prune` held back, beyond the other limits.
        stream: the id of the stream that events are appended to; a new one each time.

    Raises:
        JournalInUseError: if another bus has it.
        JournalError: if it cannot be written, or is damaged. Every method may raise it too, for instance if
            the disk is full; nothing has changed then.
    """

    def __init__(
        self, directory: Path, limits: Limits | None = None, durability: Durability = "write"
    ) -> None:
        self.limits = limits or Limits()
        self.held: list[str] = []
        self._held_bytes = 0
        path = directory / FILE_NAME
        with ExitStack() as stack:
            self._lock = stack.enter_context(lock(directory))
            super().__init__(path, stack.enter_context(closing(open_for_writing(path))))
            with failing_clearly(path):
                self._head = super().head
                self._streams: dict[tuple[bytes, bytes], _Stream] = {}
                self._parts = [str(path), *(f"{path}{end}" for end in ("-wal", "-shm"))]
                self._inodes = [inode_of(part) for part in self._parts]
                self._rescued = False
                self._page_bytes = pragma(self._db, "page_size")
                self._main_file = stack.enter_context(path.open("rb"))
                self._checkpointer = WalCheckpointer(path, self._main_file.fileno())
                self._written_bytes = 0  # by the current transaction, about
                stack.callback(self._checkpointer.close)
                self.stream = self._begin_stream(durability)
            stack.pop_all()

    @property
    def file(self) -> JournalFile | None:
        """Where the files are, for readers on this machine; None if that cannot be said."""
        path = self.path.absolute()
        with suppress(OSError, UnicodeEncodeError):  # a path need not be text
            str(path).encode()
            inodes = tuple(inode or 0 for inode in self._inodes)
            return JournalFile(path=str(path), device=path.stat().st_dev, inodes=inodes)
        return None

    def close(self) -> None:
        """Close the file and let others have it. Doing so twice does no harm."""
        self._checkpointer.close()
        super().close()
        self._main_file.close()  # not before SQLite has closed it: that would end its locks
        self._lock.close()

    @property
    def head(self) -> Head:
        """How far the journal is; it never goes back, not even by pruning."""
        return self._head

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what is done inside one change: all of it is kept, or nothing.

        Every method that writes is a transaction of its own, or joins the one it is called in. Do not catch
        errors inside: they undo what was done.
        """
        if self._db.in_transaction:
            yield
            return
        head = self._head
        with failing_clearly(self.path):
            self.check_in_place()
            self._checkpointer.begin()
            self._written_bytes = _PAGES_AT_LEAST * self._page_bytes
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                    self._db.execute("ROLLBACK")
                self._head = head
                self._streams.clear()
                raise
            self._checkpointer.committed(self._written_bytes)

    def check_in_place(self) -> None:
        """See that the files are where they were: SQLite would go on writing to what nobody can find.

        If only the log is gone, which SQLite has open still, what is in it is brought into the main file.

        Raises:
            JournalError: if they are not.
        """
        there = list(map(inode_of, self._parts))
        if there == self._inodes:
            return
        what, remedy = "", "start the bus again"
        if there[0] == self._inodes[0]:
            what = "the log beside it "
            remedy = "stop the bus by SIGTERM, which saves what is in the log, and start it again"
            if self._rescue():
                remedy = "start the bus again: all that it acknowledged is saved"
        raise JournalError(self.path, f"{what}was moved or deleted while the bus had it open", remedy)

    def check_writable(self) -> None:
        """Write a little, to see whether it can be written again after it could not."""
        with self.transaction():
            self._db.execute("UPDATE past SET id = 1")

    def _rescue(self) -> bool:
        """Copy the log, which has no name any more, into the main file; return whether all of it is."""
        if not self._rescued:
            self._checkpointer.wait()
            ((_, size, copied),) = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._rescued = size == copied
        return self._rescued

    def _set_durability(self, durability: Durability) -> None:
        self._db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'fsync' else 'NORMAL'}")

    def _begin_stream(self, durability: Durability) -> str:
        """Begin the stream of those who have opened the journal now; return its id.

        It is on the disk, in the main file if no reader prevents that, before this returns: whatever is
        lost of the log later, nobody can take events of this stream for those of another one.
        """
        stream = uuid.uuid4().hex
        self._set_durability("fsync")
        with self.transaction():
            sql = "INSERT INTO segments (stream, first_offset) VALUES (?, ?)"
            self._db.execute(sql, (stream, self._head.offset + 1))
            self._db.execute(_FORGET_STREAMS, (KEPT_STREAMS - 1,))
        self._db.execute(f"PRAGMA busy_timeout = {_READERS_MS}")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        self._set_durability(durability)
        with self.transaction():  # the log's first, which is synced: now, and not when events wait for it
            self._db.execute("UPDATE past SET id = 1")
        sync_directory(self.path.parent)
        return stream

    # ---- events ----

    def append(self, entries: Sequence[Entry]) -> None:
        """Add events, all or none. Once this returns they may be acknowledged.

        Raises:
            ValueError: if an offset or event number does not continue from :attr:`head`.
        """
        with self.transaction():
            offset, event_number = self._head
            rows = []
            counts: dict[int, list[int]] = {}
            for entry in entries:
                stream = self._streams.get((entry.topic, entry.source)) or self._find_stream(entry)
                offset += entry.events
                if stream.partition == NO_PARTITION:
                    event_number += entry.events
                if entry.offset != offset or entry.event_number != event_number:
                    raise ValueError(
                        f"offset {entry.offset}, event number {entry.event_number} instead of "
                        f"{offset}, {event_number}"
                    )
                rows.append(_row(entry, stream))
                _count(counts.setdefault(stream.id, [0, 0, 0, 0, 0]), entry)
            self._db.executemany(_INSERT_EVENT, rows)
            self._db.executemany(_COUNT, [(*count, id_) for id_, count in counts.items()])
            self._head = Head(offset, event_number)
            self._written_bytes += sum(count[2] for count in counts.values())

    def _find_stream(self, entry: Entry) -> _Stream:
        """Return the stream of an event; the first one begins the stream, and maybe a run."""
        find = "SELECT id FROM streams WHERE topic = ? AND source = ?"
        row = self._db.execute(find, (entry.topic, entry.source)).fetchone()
        if row is None:
            orphan = entry.kind in BEGIN_NO_RUN
            status, ended_ns = (UNKNOWN, entry.ts_ns) if orphan else (RUNNING, None)
            self._db.execute(_BEGIN_RUN, (entry.run_id, status, entry.ts_ns, ended_ns))
            row = self._db.execute(
                "INSERT INTO streams (topic, source, run_id, kind, first_offset) VALUES (?, ?, ?, ?, ?)",
                (entry.topic, entry.source, entry.run_id, entry.kind, entry.offset - entry.events + 1),
            )
            row = (row.lastrowid,)
        crc = stream_crc(entry.topic, entry.source, entry.run_id, entry.kind)
        stream = _Stream(row[0], crc, partition_of(entry.topic))
        self._streams[entry.topic, entry.source] = stream
        return stream

    # ---- consumers ----

    def commit(self, consumer: str, position: Position, state: bytes | None = None) -> None:
        """Keep a consumer's checkpoint, its position and state, instead of its last one."""
        crc = checkpoint_crc(consumer, position, state)
        with self.transaction():
            self._db.execute(_COMMIT, (consumer, position.stream, position.offset, state, crc))
            self._written_bytes += len(state or b"")

    def add_dead_letter(self, consumer: str, letter: DeadLetterNote, ts_ns: int) -> int:
        """Add a dead letter of a consumer; return its number, 0 if that has too many: then it is counted.

        A consumer that does so again with the same event changes its first dead letter.
        """
        row = {**msgspec.structs.asdict(letter), "consumer": consumer, "ts_ns": ts_ns}
        count = "SELECT count(*) FROM dead_letters WHERE consumer = :consumer"
        find = f"{count} AND stream = :stream AND offset = :offset"
        with self.transaction():
            (known,) = self._db.execute(find, row).fetchone()
            left_out = not known and self._db.execute(count, row).fetchone()[0] >= MAX_DEAD_LETTERS
            if left_out or letter.skipped:
                self._db.execute(_LEAVE_OUT_DEAD_LETTERS, (consumer, letter.skipped + left_out))
            if left_out:
                return 0
            (letter_id,) = self._db.execute(_ADD_DEAD_LETTER, row).fetchone()
        return int(letter_id)

    def settle_dead_letter(self, letter_id: int, saved: bytes | None) -> bool:
        """Forget a dead letter that was handled after all; return whether there was one of this number.

        The consumer's state with it is kept with its checkpoint; None leaves that as it is.
        """
        with self.transaction():
            of = self._query("SELECT consumer FROM dead_letters WHERE id = ?", letter_id)
            kept = self.checkpoint(of[0][0]) if of and saved is not None else None
            if kept is not None:
                self.commit(of[0][0], kept.position, saved)
            return self._db.execute("DELETE FROM dead_letters WHERE id = ?", (letter_id,)).rowcount > 0

    # ---- runs ----

    def note_run(
        self,
        run_id: str,
        status: str,
        started_ns: int,
        ended_ns: int | None,
        publisher: str,
        *,
        attempt_of: str = "",
        parts: bytes | None = None,
    ) -> None:
        """Keep a run's status; any but ``running`` means that it is over and may be pruned.

        ``attempt_of`` is the run that it is a further attempt of, ``parts`` what the bus keeps of its
        publishers.
        """
        row = (run_id, status, started_ns, ended_ns, publisher, attempt_of, parts)
        with self.transaction():
            self._db.execute(_NOTE_RUN, row)
            self._written_bytes += len(parts or b"")

    def see(self, consumers: Mapping[str, Sequence[str]], now_ns: int) -> None:
        """Note that consumers or groups, by their names, are on the bus now, and which topics they take."""
        rows = [(name, now_ns, msgspec.json.encode(topics).decode()) for name, topics in consumers.items()]
        with self.transaction():
            self._db.executemany(_SEE, rows)

    def make_room_for(self, name: str, most: int, now_ns: int) -> bool:
        """Return whether a consumer or group may be one of so many names, at most, that are kept here.

        If there are as many already, the one that was away longest is forgotten, with its place, if it has
        been away for longer than the limits say.
        """
        if self.knows_consumer(name):
            return True
        (count,) = self._query("SELECT count(*) FROM consumers")[0]
        if count < most:
            return True
        (oldest, seen_ns) = self._query("SELECT name, seen_ns FROM consumers ORDER BY seen_ns LIMIT 1")[0]
        if now_ns - seen_ns <= self.limits.max_absence_s * 1e9:
            return False
        places = [row[0] for row in self._query("SELECT consumer FROM checkpoints")]
        of_oldest = [(place,) for place in places if oldest in (place, parse_checkpoint_name(place)[0])]
        with self.transaction():
            self._db.executemany("DELETE FROM checkpoints WHERE consumer = ?", of_oldest)
            self._db.execute("DELETE FROM consumers WHERE name = ?", (oldest,))
        return True

    def knows_consumer(self, name: str) -> bool:
        """Return whether a consumer or group of this name was on the bus."""
        return bool(self._query("SELECT 1 FROM consumers WHERE name = ?", name))

    # ---- what belongs to whom ----

    def owners(self) -> dict[tuple[str, str], str]:
        """Return whose the publishers, consumers and runs are, by kind and name, as far as it is noted."""
        rows = self._query("SELECT kind, name, owner FROM owners")
        return {(kind, name): owner for kind, name, owner in rows}

    def note_owners(self, owners: Mapping[tuple[str, str], str]) -> None:
        """Keep whose publishers, consumers or runs are, by kind and name."""
        rows = [(kind, name, owner) for (kind, name), owner in owners.items()]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO owners VALUES (?, ?, ?)", rows)

    def forget_owners(self, here: Set[tuple[str, str]], *, sources: bool) -> list[tuple[str, str]]:
        """Forget whose those were that are here no more, but for some; return which, by kind and name.

        Publishers are looked for only if it is said: for them all streams are read.
        """
        found = self._query(_ORPHANED_NAMES) + (self._query(_ORPHANED_SOURCES) if sources else [])
        gone = [(kind, name) for kind, name in found if (kind, name) not in here]
        if gone:
            with self.transaction():
                self._db.executemany("DELETE FROM owners WHERE kind = ? AND name = ?", gone)
        return gone

    # ---- pruning ----

    def prune(self, now_ns: int, budget_s: float = math.inf, *, by_age: bool = True) -> list[PrunedRow]:
        """Delete the oldest runs that ended until the limits hold; return those that are gone now.

        A run goes with its events, summaries, receipts and dead letters, and its space is given back to the
        disk; what it held is kept in short. One that a consumer has not read is held back as far as the
        limits allow. This works in small transactions; what ``budget_s`` interrupts in the middle of a run
        the next call takes up, also after a restart.

        Without ``by_age`` the time is not relied upon: nothing is too old, and nobody absent for too long.
        """
        deadline_s = time.monotonic() + budget_s
        gone = []
        with failing_clearly(self.path):
            standings = self.standings(now_ns if by_age else None)
            self.held, self._held_bytes = [], 0
            for run in self.candidates():
                if not self._is_beyond(run, now_ns if by_age else None):
                    continue
                if not self._must_go(run) and self.is_held(run.run_id, standings):
                    self.held.append(run.run_id)
                    self._held_bytes += self.size_of(run.run_id)
                    continue
                if not run.half_gone:
                    self._begin_pruning(run)
                if not self._delete_events(run.run_id, deadline_s):
                    break
                gone.append(self._delete_run(run.run_id, now_ns))
            if by_age:
                with self.transaction():
                    oldest_ns = now_ns - int(self.limits.max_age_s * 1e9)
                    self._db.execute("DELETE FROM past_sources WHERE ts_ns < ?", (oldest_ns,))
            while time.monotonic() < deadline_s and self._vacuum():
                pass
        return gone

    def _vacuum(self) -> bool:
        """Give some unused pages back to the disk; return whether there were any."""
        before = pragma(self._db, "freelist_count")
        if not before:
            return False
        self._checkpointer.begin()
        # It has a step for each page and no result, and execute() stops after one step of such.
        self._db.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_AT_ONCE})")
        done = pragma(self._db, "freelist_count") < before
        if done:
            self._checkpointer.committed(_VACUUMED_AT_ONCE * self._page_bytes)
        return done

    def _is_beyond(self, run: Candidate, now_ns: int | None) -> bool:
        """Return whether the limits do not hold as long as a run is there, those held back not counted."""
        ((runs,),) = self._query("SELECT count(*) FROM runs")
        too_many = runs - len(self.held) > self.limits.max_runs
        too_large = self._used_bytes() - self._held_bytes > self.limits.max_bytes
        return run.half_gone or too_many or too_large or self._is_old(run, now_ns)

    def _must_go(self, run: Candidate) -> bool:
        """Return whether a run goes even if a consumer has not read it."""
        limits = self.limits
        return run.half_gone or self._used_bytes() > limits.max_bytes + limits.max_unread_bytes

    def _is_old(self, run: Candidate, now_ns: int | None) -> bool:
        """Return whether the bus took in a run's end too long ago; a time in the future is no age."""
        if now_ns is None:
            return False
        rows = self._query("SELECT ts_ns FROM events WHERE offset = ?", run.end_offset or run.last_offset)
        return not rows or now_ns - rows[0][0] > self.limits.max_age_s * 1e9

    def _used_bytes(self) -> int:
        pages = pragma(self._db, "page_count") - pragma(self._db, "freelist_count")
        return pages * self._page_bytes

    def _begin_pruning(self, run: Candidate) -> None:
        """Note what a run held, and who has not read it, before anything of it goes."""
        unread, (first, last) = self.unread(run.run_id), self._range(run.run_id)
        topics = self.content(run.run_id)
        with self.transaction():
            self._db.execute("UPDATE runs SET pruning = 1 WHERE run_id = ?", (run.run_id,))
            row = (run.run_id, first, last, msgspec.msgpack.encode(topics), msgspec.msgpack.encode(unread))
            (number,) = self._db.execute(_NOTE_PRUNED, row).fetchone()
            self._db.execute("DELETE FROM pruned_runs WHERE id <= ?", (number - KEPT_PRUNED_RUNS,))

    def _delete_events(self, run_id: str, deadline_s: float) -> bool:
        """Delete a run's events; return whether there was time for all."""
        first, last = self._range(run_id)
        while (start := self._offset_from(first)) is not None and start <= last:
            if time.monotonic() >= deadline_s:
                return False
            first = start + _PRUNED_AT_ONCE
            with self.transaction():
                deleted = self._query(
                    "DELETE FROM events WHERE offset BETWEEN ? AND ?"
                    " AND stream IN (SELECT id FROM streams WHERE run_id = ?) RETURNING events",
                    start,
                    min(first - 1, last),
                    run_id,
                )
                self._db.execute(
                    "UPDATE past SET offset = ?, event_number = ?, pruned = pruned + ?",
                    (*self._head, sum(events for (events,) in deleted)),
                )
                self._written_bytes += len(deleted) * self._page_bytes
        return True

    def _offset_from(self, offset: int) -> int | None:
        """Return the offset of the first row that is here, from a given one on."""
        rows = self._query("SELECT offset FROM events WHERE offset >= ? ORDER BY offset LIMIT 1", offset)
        return int(rows[0][0]) if rows else None

    def _delete_run(self, run_id: str, now_ns: int) -> PrunedRow:
        with self.transaction():
            self._db.execute(_KEEP_SEQS, (now_ns, run_id))
            deleted = {
                table: self._db.execute(sql, (run_id,)).rowcount for table, sql in _DELETE_RUN.items()
            }
        self._streams.clear()
        return PrunedRow(run_id=run_id, unread=self.unread_of(run_id), dead_letters=deleted["dead_letters"])


def _row(entry: Entry, stream: _Stream) -> tuple[object, ...]:
    numbers = (entry.offset, entry.source_seq, entry.records, entry.event_number, entry.ts_ns, entry.events)
    crc = event_crc(stream.crc, numbers, entry.header, entry.payload)
    offset, *between = numbers
    return (offset, stream.id, stream.partition, *between, crc, entry.header, entry.payload)


def _count(count: list[int], entry: Entry) -> None:
    count[0] += entry.events
    count[1] += entry.records
    count[2] += len(entry.topic) + len(entry.header) + len(entry.payload)
    count[3] = entry.source_seq
    count[4] = entry.offset
