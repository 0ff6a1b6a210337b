"""Kills, full and read-only disks, damage: the journal refuses clearly, and what it reported stays."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from phase_bus.errors import JournalError
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Head, Limits
from phase_bus.journal.writer import Journal
from tests.support.entries import _S, Log, read_all, run_child

_WRITER = """
import sys
from pathlib import Path
from tests.support.entries import Log
from phase_bus.journal import checkpointer
from phase_bus.journal.rows import Limits
from phase_bus.journal.writer import Journal
checkpointer._COPY_BYTES, checkpointer._LONG_BYTES = 1 << 16, 1 << 19  # many checkpoints to be killed in
with Journal(Path(sys.argv[1]), Limits(max_runs=3)) as journal:
    log = Log(journal.head)
    while True:
        run = f"r{log.offset // 2000}"
        kinds = ["records" if i % 3 else "phase_progress" for i in range(70)]
        batch = [log.entry(kind, run, b"%d" % log.offset) for kind in kinds]
        journal.append(batch)
        print(journal.head.offset, flush=True)
        if int(sys.argv[2]) and log.offset % 2100 == 0:
            journal.note_run(run, "completed", 1, log.offset, "p")
            journal.prune(log.offset)
"""


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("pruning", [0, 1])
def test_a_killed_writer_leaves_all_that_it_reported(tmp_path: Path, pruning: int) -> None:
    """SIGKILL at any moment, several times over: nothing reported is missing, nothing is there twice."""
    rng = random.Random(3)
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(pruning)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        with writer, writer.stdout as said:
            lines = [said.readline() for _ in range(rng.randint(1, 120))]
            writer.kill()
            lines += said.read().splitlines()  # what it said until it died
        reported = int(lines[-1])
        with JournalReader(tmp_path) as reader:
            assert reader.verify() == []
            assert reader.head.offset >= reported
        with Journal(tmp_path) as journal:
            offsets = [e.offset for e in read_all(journal)]
            assert journal.head.offset % 70 == 0
            if not pruning:
                assert offsets == list(range(1, journal.head.offset + 1))
            assert all(int(e.payload) == e.offset - 1 for e in read_all(journal))


def test_a_full_file_refuses_and_takes_more_when_there_is_room(journal: Journal) -> None:
    """SQLite's own 'database or disk is full': nothing of the batch stays, and the rest is unharmed."""
    log = Log()
    journal.append([log.entry()])
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages + 5}")
    batch = [log.entry("records", "r2", bytes(10_000)) for _ in range(20)]
    with pytest.raises(JournalError, match=r"the disk is full .*; free some space"):
        journal.append(batch)
    assert journal.head == Head(1, 1)
    assert read_all(journal) == log.entries[:1]
    assert [run.run_id for run in journal.runs()] == ["r1"]
    journal._db.execute("PRAGMA max_page_count = 1000000")
    journal.append(batch)
    assert read_all(journal) == log.entries
    assert journal.verify() == []


_UNTIL_FULL = """
import resource, subprocess, sys
from pathlib import Path
from tests.support.entries import Log, read_all
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Head
from phase_bus.journal.writer import Journal
from phase_bus.errors import JournalError
directory, how = Path(sys.argv[1]), sys.argv[2]
ballast = directory / "ballast"
if how == "tmpfs":
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", directory], check=True)
    ballast.write_bytes(bytes(1 << 20))
journal, log = Journal(directory), Log()
if how == "rlimit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
appended = 0
try:
    while True:
        batch = [log.entry(payload=bytes(3000)) for _ in range(10)]
        journal.append(batch)
        appended += 10
except JournalError as error:
    print(error)
assert 10 <= appended == journal.head.offset, journal.head
assert len(read_all(journal)) == appended
if how == "tmpfs":
    ballast.unlink()
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(batch)
journal.close()
if how == "tmpfs":
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    try:
        Journal(directory)
    except JournalError as error:
        print(error)
with JournalReader(directory) as reader:
    assert read_all(reader) == log.entries
    assert reader.verify() == []
"""


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    """A file that may not grow (RLIMIT_FSIZE): the error is clear, and it goes on afterwards."""
    assert "the disk cannot be read or written" in run_child(_UNTIL_FULL, tmp_path, "rlimit")


def test_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    """A real small disk, in a mount namespace: full, with room again, then mounted read-only."""
    namespace = ("unshare", "--map-root-user", "--mount")
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no right to make a mount namespace")
    full, read_only = run_child(_UNTIL_FULL, tmp_path, "tmpfs", prefix=namespace).splitlines()
    assert "the disk is full" in full
    assert "cannot be written to" in read_only


_AS_NOBODY = """
import os, sys
import urllib.parse  # for Path.as_uri(): nobody may not read every Python's library
from pathlib import Path
from tests.support.entries import read_all
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.errors import JournalError
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for directory in map(Path, sys.argv[1:]):
    try:
        Journal(directory)
    except JournalError as error:
        print(error)
with JournalReader(Path(sys.argv[1])) as reader:
    print(len(read_all(reader)), reader.verify())
"""


def test_a_directory_without_the_right_to_write(ipc_dir: Path) -> None:
    """Opening fails clearly, for a new journal and an old one; reading still works."""
    with Journal(ipc_dir / "old") as journal:
        journal.append([Log().entry()])
    (ipc_dir / "new").mkdir()
    (ipc_dir / "old" / FILE_NAME).chmod(0o444)
    (ipc_dir / "old" / "journal.lock").chmod(0o666)
    for directory in (ipc_dir / "old", ipc_dir / "new", ipc_dir):
        directory.chmod(0o555)
    try:
        old, new, missing, read = run_child(
            _AS_NOBODY, ipc_dir / "old", ipc_dir / "new", ipc_dir / "sub" / "missing"
        ).splitlines()
    finally:
        for directory in (ipc_dir, ipc_dir / "old", ipc_dir / "new"):
            directory.chmod(0o755)
    for line in (old, new, missing):
        assert "cannot be written to" in line
        assert "give the bus a directory that it may write to" in line
    assert read == "1 []"


def test_a_journal_that_was_moved_away_takes_nothing_more(tmp_path: Path) -> None:
    """Acknowledging what is written to a file nobody can find would lose it."""
    log = Log()
    with Journal(tmp_path / "a") as journal:
        journal.append([log.entry()])
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(JournalError, match="was moved or deleted"):
            journal.append([log.entry()])
        (tmp_path / "b").rename(tmp_path / "a")
        journal.append([log.entries[-1]])


@pytest.mark.parametrize(("version", "which"), [(99, "newer"), (1, "older")])
def test_another_schema_is_left_alone(tmp_path: Path, version: int, which: str, no_leaks: None) -> None:
    """A journal of another phase-bus is neither read nor written, and the message says so."""
    Journal(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE_NAME)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    told = rf"schema version {version}, and this program knows 4; use the {which}"
    for opening in (Journal, JournalReader):
        with pytest.raises(JournalError, match=told):
            opening(tmp_path)


@pytest.mark.parametrize("content", [b"hello" * 1000, b"SQLite format 3\0" + b"\x07" * 5000])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes, no_leaks: None) -> None:
    """The message names the file and what to do; the file stays."""
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    for opening in (Journal, JournalReader):
        with pytest.raises(JournalError, match=r"the file is damaged .*move it away") as caught:
            opening(tmp_path)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_damage_is_found_or_did_no_harm(tmp_path: Path, no_leaks: None) -> None:
    """Bytes changed anywhere in the file: opening fails clearly, or verify says so, or all is there."""
    log, rng = Log(), random.Random(11)
    with Journal(tmp_path, Limits(max_runs=2)) as journal:
        for run in range(4):
            for _ in range(20):
                kind = rng.choice(["records", "phase_start", "summary"])
                journal.append([log.entry(kind, f"r{run}", rng.randbytes(rng.choice([20, 300, 9000])))])
            journal.note_run(f"r{run}", "completed", run, run * _S, "p")
        journal.prune(4 * _S)
        expected, seqs = read_all(journal), journal.last_seqs()
    whole = (tmp_path / FILE_NAME).read_bytes()
    damaged = tmp_path / "damaged"
    found = 0
    for i in range(600):
        place = rng.randrange(len(whole) if i % 3 else 8192)  # the first page holds the schema
        content = bytearray(whole)
        content[place] ^= rng.randint(1, 255)
        damaged.write_bytes(content)
        with suppress(JournalError), JournalReader(damaged) as reader:
            if not reader.verify():
                assert (read_all(reader), reader.last_seqs()) == (expected, seqs), f"byte {place}"
                continue
        found += 1
    assert found > 100  # much of such a small file is unused


def test_verify_names_the_offset(tmp_path: Path) -> None:
    """A changed payload, a missing event, a duplicate: each is found, with its place."""
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry(payload=b"payload %d." % i) for i in range(9)])
    db = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    for damage, problem in (
        ("UPDATE events SET payload = 'x' WHERE offset = 4", "offset 4: its content does not match"),
        ("DELETE FROM events WHERE offset BETWEEN 5 AND 6", "offsets without an event: 5-6"),
        ("DELETE FROM events WHERE offset = 9", "events 8 instead of 9, "),
        ("UPDATE events SET source_seq = 2 WHERE offset = 3", "offset 3: "),
        ("UPDATE events SET event_number = 9 WHERE offset = 3", "offset 3: event number 9 after 2"),
        ("UPDATE streams SET run_id = 'r2'", "stands for 'phase_progress' of run 'r2'"),
        ("UPDATE past SET pruned = 1", "of 9 offsets 1 were pruned and 9 are here"),
    ):
        db.execute("BEGIN")
        db.execute(damage)
        assert any(problem in found for found in JournalReader(tmp_path, db).verify()), damage
        db.execute("ROLLBACK")
    assert JournalReader(tmp_path, db).verify() == []
    db.close()


def test_an_opening_that_fails_lets_go_of_all(tmp_path: Path, no_leaks: None) -> None:
    """Neither the lock nor the file stays held: the next process can open it."""
    (tmp_path / FILE_NAME).write_bytes(os.urandom(5000))
    with pytest.raises(JournalError):
        Journal(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    Journal(tmp_path).close()
