"""The journal's file: its tables, how to open it, keep other buses out, and say what is wrong with it.

Tables of ``journal.sqlite``:

- ``events``: one row an event, or a bundle of ``events``: then its numbers are those of the last of them.
  What its columns hold besides the frames is covered by ``crc``.
- ``streams``: one row for each topic of each source: what its events have in common, and their counts.
- ``runs``, ``checkpoints``, ``dead_letters``: as their names say.
- ``dead_letters_left_out``: how many events without a dead letter a consumer failed on, at least.
- ``consumers``: when the bus last saw each consumer or group, and what it takes.
- ``pruned_runs``: what the runs held that were pruned last, and which consumers had not read it.
- ``segments``: one row for each stream, that is each start of a bus, with the offset it begins at.
- ``past``: one row: how far the journal was at the last pruning, and how much of it was pruned.
- ``past_sources``: the last sequence of sources all of whose events were pruned.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias
from zlib import crc32

from phase_bus.core.files import lock_file, make_private_directory, private, tighten
from phase_bus.core.position import Position
from phase_bus.errors import JournalDamagedError, JournalError, JournalInUseError

FILE_NAME = "journal.sqlite"
SCHEMA_VERSION = 4  # of the tables here, and of what the payloads hold

_LOCK_NAME = "journal.lock"
_LOOK_S = 0.05  # longer than somebody who only looks whether a journal is held holds it himself
_PAGE_BYTES = 8192
# More than the log becomes: to cut its file off takes the disk 10 ms and more, in the middle of a commit.
_WAL_KEPT_BYTES = 192 << 20
BUSY_MS = 5000
_NUMBERS = struct.Struct("<QQQQqI")
# Offset, source sequence, records, event number, time, how many events.
Numbers: TypeAlias = tuple[int, int, int, int, int, int]
_TABLES = frozenset(("events", "streams", "past"))

_SCHEMA = """
CREATE TABLE events (
    offset INTEGER PRIMARY KEY, stream INTEGER NOT NULL, partition INTEGER NOT NULL,
    source_seq INTEGER NOT NULL, records INTEGER NOT NULL, event_number INTEGER NOT NULL,
    ts_ns INTEGER NOT NULL, events INTEGER NOT NULL, crc INTEGER NOT NULL, header BLOB NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX events_by_partition ON events (partition, offset, stream);
CREATE TABLE streams (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic BLOB NOT NULL, source BLOB NOT NULL,
    run_id TEXT NOT NULL, kind TEXT NOT NULL, first_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL DEFAULT 0, last_seq INTEGER NOT NULL DEFAULT 0,
    events INTEGER NOT NULL DEFAULT 0, records INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, source)
);
CREATE INDEX streams_of_runs ON streams (run_id);
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, status TEXT NOT NULL, started_ns INTEGER NOT NULL, ended_ns INTEGER,
    publisher TEXT NOT NULL DEFAULT '', pruning INTEGER NOT NULL DEFAULT 0,
    attempt_of TEXT NOT NULL DEFAULT '', parts BLOB
);
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL UNIQUE, first_offset INTEGER NOT NULL
);
CREATE TABLE checkpoints (
    consumer TEXT PRIMARY KEY, stream TEXT NOT NULL, offset INTEGER NOT NULL, state BLOB,
    crc INTEGER NOT NULL
);
CREATE TABLE consumers (name TEXT PRIMARY KEY, seen_ns INTEGER NOT NULL, topics TEXT NOT NULL);
CREATE TABLE pruned_runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, first_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL, topics BLOB NOT NULL, unread BLOB NOT NULL
);
CREATE INDEX pruned_runs_by_end ON pruned_runs (last_offset);
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, consumer TEXT NOT NULL, stream TEXT NOT NULL,
    offset INTEGER NOT NULL, run_id TEXT NOT NULL, kind TEXT NOT NULL, error TEXT NOT NULL,
    traceback TEXT NOT NULL, ts_ns INTEGER NOT NULL, attempts INTEGER NOT NULL,
    UNIQUE (consumer, stream, offset)
);
CREATE TABLE dead_letters_left_out (consumer TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE past (
    id INTEGER PRIMARY KEY CHECK (id = 1), offset INTEGER NOT NULL, event_number INTEGER NOT NULL,
    pruned INTEGER NOT NULL
);
CREATE TABLE past_sources (source BLOB PRIMARY KEY, last_seq INTEGER NOT NULL, ts_ns INTEGER NOT NULL);
INSERT INTO past VALUES (1, 0, 0, 0);
"""
# Who had a name first, unless it was who runs the bus. It came later; older programs do without.
_OWNERS = """
CREATE TABLE IF NOT EXISTS owners (
    kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (kind, name)
);
"""

_DAMAGED = (
    "the file is damaged",
    "'phase-bus journal verify' says where; move it away, and a new one is begun",
)
_UNWRITABLE = ("cannot be written to", "give the bus a directory that it may write to")
# By SQLite's primary result code: what it means for the user, and what to do.
_MEANINGS = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space, or lower the journal's limits"),
    sqlite3.SQLITE_IOERR: ("the disk cannot be read or written", "look at the disk and its space"),
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
    sqlite3.SQLITE_PERM: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "see that the file and its directory are accessible"),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_BUSY: ("another process keeps it locked", "end that process, and try again"),
    sqlite3.SQLITE_LOCKED: ("another process keeps it locked", "end that process, and try again"),
}


def sql_list(kinds: Iterable[str]) -> str:
    """Return kinds of events as a list in SQL."""
    return "({})".format(", ".join(f"'{kind}'" for kind in sorted(kinds)))


# What damage to the schema, or to a text, looks like to SQLite and Python: like somebody's mistake.
_SCHEMA_DAMAGE = re.compile("no such (table|column|index)|unsupported file format|Could not decode")


@contextmanager
def failing_clearly(path: Path) -> Iterator[None]:
    """Turn SQLite's errors that a user can do something about into a :class:`JournalError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code in (None, sqlite3.SQLITE_ERROR) and _SCHEMA_DAMAGE.search(str(error)):
            code = sqlite3.SQLITE_CORRUPT
        meaning = _MEANINGS.get((code or 0) & 0xFF)
        if meaning is None:
            raise
        raise _error(path, meaning, error) from error


def _error(path: Path, meaning: tuple[str, str], details: object) -> JournalError:
    reason, remedy = meaning
    kind = JournalDamagedError if meaning is _DAMAGED else JournalError
    return kind(path, f"{reason} ({details})", remedy)


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        with failing_clearly(path):
            yield
    except UnicodeDecodeError as error:  # SQLite's message quotes a damaged schema
        raise _error(path, _DAMAGED, error.reason) from error


def lock(directory: Path) -> IO[str]:
    """Make a journal's directory, and keep other buses off it until the returned file is closed.

    The lock is on a file beside the journal: closing a file that SQLite has open would end its locks.

    Raises:
        JournalInUseError: if another bus has it.
        JournalError: if the directory cannot be written to.
    """
    path = directory / FILE_NAME
    try:
        make_private_directory(directory)
        try:
            return lock_file(directory / _LOCK_NAME)
        except BlockingIOError:
            time.sleep(_LOOK_S)
            return lock_file(directory / _LOCK_NAME)
    except BlockingIOError as error:
        raise JournalInUseError(
            path, "is in use by another bus", "choose another directory, or end that bus"
        ) from error
    except OSError as error:
        raise _error(path, _UNWRITABLE, error.strerror) from error


def is_held(path: Path) -> bool:
    """Return whether a bus, or whoever else writes a journal, has it now; not if that cannot be told."""
    if path.name != FILE_NAME:
        return False  # a copy, which no bus writes to
    try:
        with path.with_name(_LOCK_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open a journal, or begin one.

    Raises:
        JournalError: if it cannot be written, is damaged, or of a version that this program does not know.
    """
    with _opening(path):
        _make_private(path)
        db = connect(path, "mode=rwc")
        try:
            db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # both count for a new file only
            version = _check_version(db, path)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA secure_delete = OFF")  # on in some builds: pruning would write zeros
            db.execute("PRAGMA wal_autocheckpoint = 0")  # the journal has a thread for it
            db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
            if version == 0:
                db.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
                )
            db.executescript(_OWNERS)
            # Whether one may write shows only here: SQLite opens what it can at least read.
            db.executescript("BEGIN IMMEDIATE; UPDATE past SET id = 1; COMMIT")
        except BaseException:
            db.close()
            raise
    return db


def _make_private(path: Path) -> None:
    """Make a journal's file if there is none; take it, and those beside it, from all but their owner.

    SQLite gives what it makes beside it the same mode.
    """
    with suppress(OSError):  # whatever it is, SQLite meets it as well
        open(path, "x", opener=private).close()
    for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", _LOCK_NAME):
        tighten(path.with_name(name))


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a journal, whether a bus is writing it or not.

    Raises:
        JournalError: if there is none, it is damaged, or of a version that this program does not know.
    """
    if not path.is_file():
        raise JournalError(path, "there is no such file", "give a bus's journal, or its directory")
    with _opening(path):
        try:
            return _connect_to_read(path, "mode=ro")
        except sqlite3.OperationalError:
            # A read-only directory has no place for the file that readers and the writer share. Without
            # a write-ahead log there is no writer.
            if path.with_name(f"{path.name}-wal").exists():
                raise
            return _connect_to_read(path, "immutable=1")


def connect(path: Path, how: str) -> sqlite3.Connection:
    """Open a journal as it is; ``how`` is part of SQLite's URI."""
    uri = f"{path.absolute().as_uri()}?{how}"
    return sqlite3.connect(
        uri, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False, uri=True
    )


def _connect_to_read(path: Path, how: str) -> sqlite3.Connection:
    db = connect(path, how)
    try:
        if _check_version(db, path) == 0:
            raise JournalError(path, "is empty", "give another one, or start a bus on it first")
    except BaseException:
        db.close()
        raise
    return db


def _check_version(db: sqlite3.Connection, path: Path) -> int:
    """Return the schema's version, 0 for a new file."""
    version = pragma(db, "user_version")
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version > SCHEMA_VERSION or (0 < version < SCHEMA_VERSION and names >= _TABLES):
        age = "newer" if version > SCHEMA_VERSION else "older"
        raise JournalError(
            path,
            f"is of schema version {version}, and this program knows {SCHEMA_VERSION}",
            f"use the {age} phase-bus that wrote it, or choose another directory",
        )
    if names and not (version and names >= _TABLES):
        raise JournalError(path, "is not a journal of phase-bus", "choose another directory")
    if version and not names:
        raise JournalDamagedError(path, *_DAMAGED)
    return version


def stream_crc(topic: bytes, source: bytes, run_id: str, kind: str) -> int:
    """Return the checksum of what a stream's events have in common; :func:`event_crc` continues it."""
    return crc32(b"\0".join((topic, source, run_id.encode(), kind.encode())))


def event_crc(start: int, numbers: Numbers, header: bytes, payload: bytes) -> int:
    """Return the checksum of a row of events, from its :func:`stream_crc`, its numbers and its frames."""
    return crc32(payload, crc32(header, crc32(_NUMBERS.pack(*numbers), start)))


def checkpoint_crc(consumer: str, position: Position, state: bytes | None) -> int:
    """Return a checkpoint's checksum."""
    return crc32(state or b"", crc32(f"{consumer}\0{position.stream}\0{position.offset}".encode()))


def sync_directory(directory: Path) -> None:
    """Have a directory on the disk with what it names, so that a power cut takes no new file away."""
    for each in (directory, directory.parent):
        with suppress(OSError):  # one that may not be read, or a file system that cannot: then nobody can
            fd = os.open(each, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def pragma(db: sqlite3.Connection, name: str) -> int:
    """Return a number that SQLite knows of the file."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def size_on_disk(path: Path) -> int:
    """Return the bytes that a journal takes, its write-ahead log included."""
    total = 0
    for part in (path, path.with_name(f"{path.name}-wal")):
        with suppress(FileNotFoundError):
            total += part.stat().st_size
    return total
