"""The write-ahead log is merged into the journal's file while nobody waits for it."""

from __future__ import annotations

import random
import re
import shlex
import threading
from pathlib import Path

import pytest

from phase_bus.journal import checkpointer
from phase_bus.journal.files import FILE_NAME, pragma
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Limits
from phase_bus.journal.writer import Journal
from phase_bus.testing.waiting import wait_until
from tests.guards.syscalls import needs_strace
from tests.support.entries import Log, read_all, run_child


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge after 64 KiB; a log of 512 KiB is long."""
    monkeypatch.setattr(checkpointer, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(checkpointer, "_LONG_BYTES", 1 << 19)


def log_bytes(journal: Journal) -> int:
    """Return the size of the write-ahead log."""
    return journal.path.with_name(f"{FILE_NAME}-wal").stat().st_size


def test_the_log_is_copied_while_nobody_writes(small_steps: None, journal: Journal) -> None:
    """What was appended reaches the file by itself; before, only the tables are in it."""
    log = Log()
    empty_bytes = journal.path.stat().st_size
    journal.append([log.entry("records", payload=bytes(30_000))])
    assert journal.path.stat().st_size == empty_bytes

    def is_copied() -> bool:  # what comes while the thread copies waits for the next one to be told
        journal.append([log.entry("records", payload=bytes(100_000))])
        return journal.path.stat().st_size > empty_bytes + 200_000

    wait_until(is_copied)
    assert read_all(journal) == log.entries


def test_the_log_does_not_grow_for_ever(small_steps: None, journal: Journal) -> None:
    """A writer never pauses, and for a while a reader stands still: only the log waits for it."""
    log = Log()
    for _ in range(300):
        journal.append([log.entry("records", payload=bytes(50_000))])
    assert log_bytes(journal) < 2 << 20  # of 15 MB
    with JournalReader(journal.path) as reader:
        standing = reader._db.execute("SELECT payload FROM events ORDER BY offset")
        standing.fetchone()
        for _ in range(300):
            journal.append([log.entry("records", payload=bytes(50_000))])
        assert log_bytes(journal) > 14 << 20
        standing.close()
    kept = log_bytes(journal)
    for _ in range(600):
        journal.append([log.entry("records", payload=bytes(50_000))])
    assert log_bytes(journal) < kept + (2 << 20)
    assert journal.verify() == []


_UNMERGEABLE = """
import logging, resource, sys
from pathlib import Path
from phase_bus.testing.waiting import wait_until
from tests.support.entries import Log, read_all
from phase_bus.journal import checkpointer
from phase_bus.journal.writer import Journal
logging.basicConfig(stream=sys.stdout, format="%(message)s")
directory, log = Path(sys.argv[1]), Log()
with Journal(directory) as journal:
    journal.append([log.entry(payload=bytes(2_000_000))])
checkpointer._COPY_BYTES = 1 << 16
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with Journal(directory) as journal:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # below the file's size, above the log's
    for _ in range(4):
        journal.append([log.entry(payload=bytes(100_000))])
        wait_until(journal._checkpointer._idle.is_set)
    assert read_all(journal) == log.entries
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append([log.entry(payload=bytes(100_000))])
    wait_until(lambda: not journal._checkpointer._failed)
    assert read_all(journal) == log.entries
    assert journal.verify() == []
"""


def test_a_log_that_cannot_be_copied_is_told_once(tmp_path: Path) -> None:
    """The log keeps all of it meanwhile, and is merged as soon as that can be done again."""
    (told,) = run_child(_UNMERGEABLE, tmp_path).splitlines()
    log = f"the write-ahead log of {tmp_path / FILE_NAME}"
    assert told == f"phase-bus bus: {log} cannot be copied into it: disk I/O error"


_LONG_LOG = """
import sys
from pathlib import Path
from tests.support.entries import Log
from phase_bus.journal import checkpointer
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
checkpointer._LONG_BYTES = 8 << 20
log = Log()
with Journal(Path(sys.argv[1])) as journal, JournalReader(Path(sys.argv[1]) / FILE_NAME) as reader:
    for _ in range(1000):
        standing = reader._db.execute("SELECT offset FROM events")  # no copy goes beyond it, to the end
        standing.fetchone()
        journal.append([log.entry("records", payload=bytes(60_000))])
        journal._checkpointer.wait()
        standing.close()
"""
_CALL = re.compile(r" (pwrite64|fdatasync|ftruncate)\(\d+<\S+/journal\.sqlite>(?:, \"\"\.\.\., (\d+))?")


@pytest.mark.slow
def test_a_log_starts_over_with_little_left_to_do(tmp_path: Path) -> None:
    """The writer waits for it: by then nearly all of what was copied is on the disk."""
    needs_strace()
    trace = tmp_path / "trace"
    strace = f"strace -f -y -s 0 -e trace=pwrite64,fdatasync,ftruncate -o {trace}"
    run_child(_LONG_LOG, tmp_path, prefix=tuple(shlex.split(strace)))
    written = unsynced = 0
    left = []
    for call, size in _CALL.findall(trace.read_text()):
        if call == "pwrite64":
            written += int(size)
            unsynced += int(size)
        elif call == "fdatasync":
            unsynced = 0
        else:  # to its size, when all of the log is in it
            left.append(unsynced)
    assert written > 50 << 20
    assert len(left) >= 3
    assert max(left) < 2 << 20


def test_a_log_that_starts_over_is_not_cut_off(journal: Journal) -> None:
    """That takes the disk long, in the middle of a commit."""
    assert pragma(journal._db, "journal_size_limit") >= 1.5 * checkpointer._LONG_BYTES


@pytest.mark.slow
def test_checkpoints_readers_and_pruning_at_once(small_steps: None, journal: Journal) -> None:
    """Logs that start over thousands of times under a merge, readers and pruning: nothing is lost."""
    journal.limits = Limits(max_runs=2)
    rng, log, stop = random.Random(7), Log(), threading.Event()
    seen: list[int] = []

    def follow() -> None:
        with JournalReader(journal.path) as reader:
            at = 0
            while not stop.is_set():
                for entry in reader.read(at, records=True, limit=50):
                    assert int(entry.payload[:10]) == entry.offset
                    at = entry.offset
                    seen.append(at)

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1500):
        run, size = f"r{number // 150}", rng.choice((100, 1000, 66_000, 140_000))
        payloads = [b"%010d" % (log.offset + i + 1) + bytes(size) for i in range(rng.randint(1, 3))]
        journal.append([log.entry(run_id=run, payload=payload) for payload in payloads])
        if number % 150 == 149:
            journal.note_run(run, "completed", 1, log.offset, "p")
            journal.prune(log.offset)
    wait_until(lambda: len(seen) > 100)
    stop.set()
    for thread in threads:
        thread.join()
    assert journal.verify() == []
    kept = read_all(journal)
    assert kept == log.entries[-len(kept) :]
    assert len(kept) > 150
