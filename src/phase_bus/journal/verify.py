"""Looking for damage in a journal."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from phase_bus.core.position import Position
from phase_bus.core.wire import NO_PARTITION, parse_topic, partition_of
from phase_bus.errors import WireError
from phase_bus.journal.bundles import single_events
from phase_bus.journal.files import Numbers, checkpoint_crc, event_crc, stream_crc
from phase_bus.journal.rows import Entry

_COUNTED = ("events", "records", "bytes", "last sequence", "last offset")
_NOTHING = (0, 0, 0, 0, 0)
_ENOUGH = 100  # problems of one sort; a file with more has one cause for them all

_EVENTS = """
SELECT offset, stream, partition, source_seq, records, event_number, ts_ns, events, crc, header, payload
FROM events ORDER BY offset
"""


class _Stream(NamedTuple):
    topic: bytes
    source: bytes
    run_id: str
    kind: str
    pruning: int
    written: tuple[int, ...]
    crc: int
    partition: int | None  # None where the topic is damaged


class _Scan:
    """One pass over all events.

    Attributes:
        found: what each stream has, in the order of :data:`_COUNTED`.
        holes: ranges of offsets, both ends included, that no event has.
        offset: the last one read.
    """

    def __init__(self, streams: dict[int, _Stream]) -> None:
        self.streams = streams
        self.found: dict[int, tuple[int, int, int, int, int]] = {}
        self.events_found = 0
        self.holes: list[tuple[int, int]] = []
        self.offset = 0
        self._event_number = 0
        self._seqs: dict[bytes, int] = {}

    def events(self, db: sqlite3.Connection) -> Iterator[str]:
        """Yield what is wrong with the events, one by one and in their order."""
        for row in db.execute(_EVENTS):
            offset, stream_id, partition, *numbers, crc, header, payload = row
            seq, records, number, ts_ns, count = numbers
            first = max(offset - count, self.offset) + 1  # the number of them may be what is damaged
            where = f"offset {offset}:" if count == 1 else f"offsets {first}-{offset}:"
            hole = first - self.offset - 1
            if hole:
                self.holes.append((self.offset + 1, first - 1))
            least = self._event_number + (count if partition == NO_PARTITION else 0)
            if not least <= number <= least + hole:
                yield f"{where} event number {number} after {self._event_number}"
            self.offset, self._event_number = offset, number
            self.events_found += count
            stream = self.streams.get(stream_id)
            if stream is None:
                yield f"{where} its topic is missing"
                continue
            events, total, size, *_last = self.found.get(stream_id, _NOTHING)
            size += len(stream.topic) + len(header) + len(payload)
            self.found[stream_id] = (events + count, total + records, size, seq, offset)
            if stream.partition is not None and partition != stream.partition:
                yield f"{where} wrongly marked as of partition {partition}"
            if _crc(stream, (offset, seq, records, number, ts_ns, count), header, payload) != crc:
                yield f"{where} its content does not match its checksum"
                continue
            first_seq = seq - count + 1
            if first_seq <= self._seqs.get(stream.source, 0):
                yield f"{where} source sequence {first_seq} of {stream.source.hex()} is there twice"
            self._seqs[stream.source] = seq
            try:
                single_events(_entry(stream, offset, header, payload, numbers))
            except WireError as error:
                yield f"{where} {error}"

    def missing(self) -> Iterator[str]:
        """Yield the topics whose events are not what was written to them."""
        for stream_id, stream in self.streams.items():
            found = self.found.get(stream_id, _NOTHING)
            if found == stream.written or stream.pruning:
                continue
            pairs = zip(_COUNTED, found, stream.written, strict=True)
            differing = ", ".join(
                f"{name} {is_} instead of {was}" for name, is_, was in pairs if is_ != was
            )
            holes = ", ".join(f"{first}-{last}" for first, last in self.holes[:_ENOUGH]) or "none"
            topic = stream.topic.decode(errors="replace")
            yield f"topic {topic!r}: {differing}; offsets without an event: {holes}"


def find_problems(db: sqlite3.Connection) -> list[str]:
    """Read everything, and return what is wrong, naming offsets; nothing means that all is well."""
    problems: list[str] = []
    scan: _Scan | None = None
    mine = not db.in_transaction
    try:
        if mine:
            db.execute("BEGIN")  # so that all is of one moment while a bus goes on writing
        scan = _Scan(_read_streams(db))
        problems += _some(_stream_problems(scan.streams))
        problems += _some(scan.events(db))
        problems += _some(scan.missing())
        problems += _count_problems(db, scan)
        problems += _checkpoint_problems(db)
    except (sqlite3.DatabaseError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        where = f"after offset {scan.offset}" if scan else "in the list of topics"
        problems.append(f"{where}: the file cannot be read on ({error})")
    try:
        checks = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
        problems += [f"the file's structure: {check}" for check in checks if check != "ok"]
    except sqlite3.DatabaseError as error:
        problems.append(f"the file's structure: {error}")
    finally:
        if mine and db.in_transaction:
            db.execute("ROLLBACK")
    return problems


def _read_streams(db: sqlite3.Connection) -> dict[int, _Stream]:
    rows = db.execute(
        "SELECT s.id, s.topic, s.source, s.run_id, s.kind, coalesce(r.pruning, 0), s.events, s.records,"
        " s.size_bytes, s.last_seq, s.last_offset"
        " FROM streams AS s LEFT JOIN runs AS r ON r.run_id = s.run_id"
    )
    return {
        row[0]: _Stream(
            row[1], row[2], row[3], row[4], row[5], row[6:], stream_crc(*row[1:5]), _partition(row[1])
        )
        for row in rows
    }


def _partition(topic: bytes) -> int | None:
    try:
        return partition_of(topic)
    except WireError:
        return None


def _stream_problems(streams: dict[int, _Stream]) -> Iterator[str]:
    for stream in streams.values():
        try:
            parsed = parse_topic(stream.topic)
        except WireError as error:
            yield str(error)
            continue
        if parsed != (stream.kind, stream.run_id):
            yield f"topic {stream.topic.decode()!r} stands for {stream.kind!r} of run {stream.run_id!r}"


def _count_problems(db: sqlite3.Connection, scan: _Scan) -> list[str]:
    offset, pruned = db.execute("SELECT offset, pruned FROM past").fetchone()
    head = max(offset, scan.offset)
    here = scan.events_found
    if here + pruned == head:
        return []
    return [f"of {head} offsets {pruned} were pruned and {here} are here: {head - pruned - here} missing"]


def _checkpoint_problems(db: sqlite3.Connection) -> list[str]:
    rows = db.execute("SELECT consumer, stream, offset, state, crc FROM checkpoints")
    return [
        f"the checkpoint of consumer {consumer!r} does not match its checksum"
        for consumer, stream, offset, state, crc in rows
        if checkpoint_crc(consumer, Position(stream, offset), state) != crc
    ]


def _entry(stream: _Stream, offset: int, header: bytes, payload: bytes, numbers: list[int]) -> Entry:
    topic, source, run_id, kind, *_ = stream
    return Entry(offset, topic, header, payload, run_id, kind, source, *numbers)


def _crc(stream: _Stream, numbers: Numbers, header: bytes, payload: bytes) -> int:
    try:
        return event_crc(stream.crc, numbers, header, payload)
    except (TypeError, struct.error):  # damage can change a value's type and range as well
        return -1


def _some(problems: Iterator[str]) -> list[str]:
    found = list(islice(problems, _ENOUGH))
    more = sum(1 for _ in problems)  # to the end: a scan counts on its way
    return [*found, "and more like these"] if more else found
