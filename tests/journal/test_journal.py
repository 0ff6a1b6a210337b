"""The journal: what is appended stays, in order and once, whatever happens to the bus or the disk."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from phase_bus.core.control import DeadLetterNote
from phase_bus.core.wire import encode_event, topic_of
from phase_bus.errors import JournalError
from phase_bus.events import EventBase, Receipt, RunStart, TopicReceipt
from phase_bus.journal import checkpointer
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Checkpoint, Entry, Head, Limits
from phase_bus.journal.writer import Journal
from tests.helpers import DEADLINE_S, wait_until

_S = 1_000_000_000
_SOURCE = b"s" * 16


class Log:
    """Numbers entries as a bus does, and remembers them."""

    def __init__(self, head: Head | None = None) -> None:
        self.offset, self.event_number = head or (0, 0)
        self.entries: list[Entry] = []

    def entry(
        self,
        kind: str = "phase_progress",
        run_id: str = "r1",
        payload: bytes = b"x",
        source: bytes = _SOURCE,
    ) -> Entry:
        """Return the next entry."""
        self.offset += 1
        self.event_number += kind != "records"
        infix = "03." if kind == "records" else ""
        entry = Entry(
            offset=self.offset,
            topic=f"{kind}.{infix}{run_id}$".encode(),
            header=self.offset.to_bytes(56, "little"),
            payload=payload,
            run_id=run_id,
            kind=kind,
            source=source,
            source_seq=self.offset,
            records=7 if kind == "records" else 0,
            event_number=self.event_number,
            ts_ns=self.offset * _S,
        )
        self.entries.append(entry)
        return entry

    def of(self, event: EventBase) -> Entry:
        """Return the next entry, of an event."""
        entry = self.entry(event.kind, event.run_id, encode_event(event))
        assert entry.topic == topic_of(event)
        return entry


@pytest.fixture
def journal(tmp_path: Path, no_leaks: None) -> Iterator[Journal]:
    """An empty journal."""
    with Journal(tmp_path) as opened:
        yield opened


def read_all(journal: JournalReader, records: bool = True, run_id: str | None = None) -> list[Entry]:
    """Return everything, piece by piece."""
    found: list[Entry] = []
    while piece := journal.read(
        found[-1].offset if found else 0, records=records, run_id=run_id, limit=100
    ):
        found += piece
    return found


def run_child(code: str, *args: object, prefix: tuple[str, ...] = ()) -> str:
    """Run a Python program to its end; return what it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- appending and reading ----


def test_what_is_appended_is_read_back_after_reopening(tmp_path: Path) -> None:
    """Entries, head and the sources' sequences outlive the process that wrote them."""
    log = Log()
    with Journal(tmp_path) as journal:
        assert journal.head == Head(0, 0)
        assert journal.read(0, records=True) == []
        journal.append([log.entry(), log.entry("records"), log.entry("phase_complete")])
        journal.append([log.entry(source=b"t" * 16)])
    with Journal(tmp_path) as journal:
        assert journal.head == Head(4, 3)
        assert journal.read(0, records=True) == log.entries
        assert journal.last_seqs() == {_SOURCE: 3, b"t" * 16: 4}
        assert journal.verify() == []


def test_read_selects_by_records_run_and_end(journal: Journal) -> None:
    """Each filter of read, alone and together."""
    log = Log()
    for i in range(40):
        journal.append([log.entry("records" if i % 4 else "phase_progress", f"r{i % 3}")])
    assert [e.offset for e in journal.read(3, records=True, until=6)] == [4, 5, 6]
    assert journal.read(0, records=False) == [e for e in log.entries if e.kind != "records"]
    assert read_all(journal, run_id="r1") == [e for e in log.entries if e.run_id == "r1"]
    assert (
        journal.read(8, records=False, run_id="r2", until=30, limit=2)
        == [e for e in log.entries if e.kind != "records" and e.run_id == "r2" and 8 < e.offset <= 30][:2]
    )
    assert journal.read(0, records=True, run_id="unheard of") == []


def test_read_keeps_to_its_limits_but_brings_at_least_one(journal: Journal) -> None:
    """A piece has a bounded size; an event larger than that comes alone."""
    log = Log()
    journal.append([log.entry(payload=bytes(size)) for size in (10, 5000, 10, 10)])
    size = sum(map(len, (log.entries[2].topic, log.entries[2].header, log.entries[2].payload)))
    assert [e.offset for e in journal.read(0, records=True, limit=3)] == [1, 2, 3]
    assert [e.offset for e in journal.read(0, records=True, limit_bytes=1000)] == [1]
    assert [e.offset for e in journal.read(1, records=True, limit_bytes=1000)] == [2]
    assert [e.offset for e in journal.read(2, records=True, limit_bytes=2 * size)] == [3, 4]
    assert [e.offset for e in journal.read(2, records=True, limit_bytes=2 * size - 1)] == [3]


def test_reading_without_records_does_not_scan_them(journal: Journal) -> None:
    """The index is used: the cost is that of what is read, not of the records between."""
    log = Log()
    journal.append([log.entry("records") for _ in range(20_000)] + [log.entry()])
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    journal._db.set_progress_handler(count, 100)
    assert journal.read(0, records=False) == log.entries[-1:]
    journal._db.set_progress_handler(None, 0)
    assert steps < 20  # 2,000 instructions; the records alone would take 100,000


@pytest.mark.parametrize(("offset", "event_number"), [(1, 1), (3, 2), (2, 1), (2, 3)])
def test_numbers_that_do_not_go_on_are_refused(journal: Journal, offset: int, event_number: int) -> None:
    """A double, a hole, or a wrong event number is the caller's mistake, and changes nothing."""
    log = Log()
    journal.append([log.entry()])
    wrong = log.entry()._replace(offset=offset, event_number=event_number)
    with pytest.raises(ValueError, match=f"offset {offset}, event number {event_number} instead of 2, 2"):
        journal.append([wrong])
    assert read_all(journal) == log.entries[:1]
    journal.append([log.entries[1]])


def test_a_transaction_is_kept_whole_or_not_at_all(journal: Journal) -> None:
    """Events, the run's end and a checkpoint go together, also those of a topic that is new."""
    log = Log()
    first, second = log.entry(), log.entry("summary", "r2")
    with suppress(ZeroDivisionError), journal.transaction():
        journal.append([first, second])
        journal.note_run("r1", "completed", 1, 2, "p")
        journal.commit("c", 1)
        assert journal.head == Head(2, 2)
        _ = 1 // 0
    assert (journal.head, journal.runs(), journal.checkpoints()) == (Head(0, 0), [], {})
    journal.append([first, second])
    assert read_all(journal) == log.entries
    assert journal.verify() == []


# ---- consumers and runs ----


def test_checkpoints_are_kept_by_name(tmp_path: Path) -> None:
    """A position with and without state; the last one counts; both outlive a restart."""
    with Journal(tmp_path) as journal:
        assert journal.checkpoint("sql") is None
        journal.commit("sql", 5, b"state")
        journal.commit("agg", 7)
        journal.commit("sql", 6, b"\0later")
    with Journal(tmp_path) as journal:
        assert journal.checkpoint("sql") == Checkpoint(6, b"\0later")
        assert journal.checkpoints() == {"agg": Checkpoint(7, None), "sql": Checkpoint(6, b"\0later")}


def set_aside(journal: Journal, consumer: str, offset: int, run_id: str = "r1", attempts: int = 3) -> int:
    """Add a dead letter; return its number."""
    letter = DeadLetterNote(
        offset=offset,
        run_id=run_id,
        kind="records",
        error="KeyError: 'x'",
        traceback="Traceback ...",
        attempts=attempts,
    )
    return journal.add_dead_letter(consumer, letter, ts_ns=9)


def test_dead_letters(journal: Journal) -> None:
    """Set aside, listed, shown, removed; the same one twice is one, and no number is used again."""
    first, second = set_aside(journal, "sql", 4), set_aside(journal, "log", 4)
    assert set_aside(journal, "sql", 4, attempts=6) == first
    assert [(d.id, d.consumer, d.attempts) for d in journal.dead_letters()] == [
        (first, "sql", 6),
        (second, "log", 3),
    ]
    assert [d.id for d in journal.dead_letters("log")] == [second]
    letter = journal.dead_letter(first)
    assert letter is not None
    assert (letter.offset, letter.run_id, letter.error) == (4, "r1", "KeyError: 'x'")
    assert journal.settle_dead_letter(second, None)
    assert not journal.settle_dead_letter(second, None)
    assert journal.dead_letter(second) is None
    assert set_aside(journal, "log", 4) > second


def test_runs_and_info_count_what_is_there(journal: Journal) -> None:
    """A run is there from its first event; what consumers say of an unknown one does not begin it."""
    log = Log()
    journal.append([log.entry(), log.entry("records"), log.entry("receipt", "old")])
    first, old = journal.runs()
    assert (first.run_id, first.status, first.ended_ns, first.events, first.records) == (
        "r1", "running", None, 2, 7,
    )  # fmt: skip
    assert (old.run_id, old.status, old.ended_ns) == ("old", "unknown", 3 * _S)
    assert first.size_bytes == sum(len(e.topic + e.header + e.payload) for e in log.entries[:2])
    journal.note_run("r1", "completed", 5, 6, "aiperf")
    journal.commit("sql", 2)
    old, first = sorted(journal.runs(), key=lambda run: run.run_id)
    assert (first.status, first.started_ns, first.ended_ns, first.publisher) == (
        "completed",
        5,
        6,
        "aiperf",
    )
    info = journal.info()
    assert (info.events, info.records, info.runs, info.head) == (3, 7, 2, Head(3, 2))
    assert (info.oldest_ts_ns, info.checkpoints) == (_S, {"sql": 2})
    assert info.size_bytes > 10_000


def test_receipts_of_a_run(journal: Journal) -> None:
    """The receipts are found among the other events and other runs."""
    log = Log()
    receipts = [
        Receipt(run_id=run_id, consumer=name, topics={"phase_start.r1$": TopicReceipt(received=3)})
        for run_id, name in (("r1", "sql"), ("r2", "sql"), ("r1", "log"))
    ]
    journal.append([log.of(RunStart(run_id="r1")), *map(log.of, receipts), log.entry("records")])
    assert journal.receipts("r1") == [receipts[0], receipts[2]]
    assert journal.receipts("r3") == []


# ---- pruning ----


def fill(
    journal: Journal, log: Log, run_id: str, ended_s: int | None, size: int = 10, count: int = 5
) -> None:
    """Append a run's events, and note how it is."""
    kinds = ("phase_start", "records", "receipt")
    journal.append([log.entry(kinds[i % 3], run_id, bytes(size)) for i in range(count)])
    ended_ns = None if ended_s is None else ended_s * _S
    journal.note_run(run_id, "running" if ended_s is None else "completed", log.offset, ended_ns, "p")


def test_the_oldest_finished_runs_go_first(tmp_path: Path) -> None:
    """Over the number of runs: by their end, never one going on, and all that belongs to them."""
    log = Log()
    with Journal(tmp_path, Limits(max_runs=2)) as journal:
        for run_id, ended_s in (("a", None), ("b", 30), ("c", 20), ("d", 40)):
            fill(journal, log, run_id, ended_s)
        for offset, run_id in ((6, "b"), (16, "d")):
            set_aside(journal, "x", offset, run_id)
        assert journal.prune(50 * _S) == ["c", "b"]
        assert [run.run_id for run in journal.runs()] == ["a", "d"]
        assert read_all(journal) == [e for e in log.entries if e.run_id in "ad"]
        assert [letter.run_id for letter in journal.dead_letters()] == ["d"]
        assert journal.receipts("b") == []
        assert journal.prune(50 * _S) == []
        assert journal.verify() == []


def test_old_runs_go_and_the_head_stays(tmp_path: Path) -> None:
    """With everything pruned the numbers go on where they were, after a restart too."""
    log = Log()
    with Journal(tmp_path, Limits(max_age_s=10)) as journal:
        fill(journal, log, "a", 30)
        assert journal.prune(40 * _S) == []
        assert journal.prune(40 * _S + 1) == ["a"]
        assert read_all(journal) == []
    head = Head(log.offset, log.event_number)
    with Journal(tmp_path) as journal:
        assert (journal.head, journal.info().head) == (head, head)
        assert journal.last_seqs() == {_SOURCE: log.offset}
        assert journal.verify() == []
        journal.append([log.entry(run_id="b")])
        assert [e.offset for e in read_all(journal)] == [head.offset + 1]
        assert journal.verify() == []


def test_pruning_by_size_gives_the_space_back(tmp_path: Path) -> None:
    """The file shrinks to the limit, and not further than it has to."""
    log = Log()
    with Journal(tmp_path, Limits(max_bytes=4 << 20)) as journal:
        for i in range(10):
            fill(journal, log, f"r{i}", i, size=100_000, count=10)
        assert journal.prune(10 * _S) == [f"r{i}" for i in range(6)]
        assert len(read_all(journal)) == 40
    assert (tmp_path / FILE_NAME).stat().st_size < 4 << 20


def test_pruning_that_ran_out_of_time_goes_on_later(tmp_path: Path) -> None:
    """A run half deleted is no longer listed, does no harm, and goes with the next call."""
    log = Log()
    with Journal(tmp_path, Limits(max_runs=1)) as journal:
        fill(journal, log, "a", 1, count=2000)
        fill(journal, log, "b", 2)
        assert journal.prune(_S, budget_s=0) == []
        assert [run.run_id for run in journal.runs()] == ["b"]
        assert journal.verify() == []
    with Journal(tmp_path, Limits(max_runs=1)) as journal:
        assert journal.prune(_S) == ["a"]
        assert read_all(journal) == log.entries[2000:]
        assert journal.verify() == []


class JournalModel(RuleBasedStateMachine):
    """A journal beside a plain list that is to hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="pb-"))
        self.limits = Limits(max_runs=3, max_age_s=20)
        self.journal = Journal(self.directory, self.limits)
        self.log = Log()
        self.ended: dict[str, int | None] = {}
        self.now_s = 0

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.directory)

    @rule(
        events=st.lists(
            st.tuples(
                st.sampled_from(["phase_start", "records"]), st.integers(0, 5), st.binary(max_size=40)
            ),
            max_size=8,
        )
    )
    def append(self, events: list[tuple[str, int, bytes]]) -> None:
        events = [e for e in events if self.ended.get(f"r{e[1]}") is None]
        self.ended.update({f"r{number}": None for _, number, _ in events})
        self.journal.append([self.log.entry(kind, f"r{n}", payload) for kind, n, payload in events])

    @precondition(lambda self: None in self.ended.values())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.now_s += 3
        run_id = data.draw(st.sampled_from([r for r, ended in self.ended.items() if ended is None]))
        self.ended[run_id] = self.now_s
        self.journal.note_run(run_id, "failed", 0, self.now_s * _S, "p")

    @rule()
    def prune(self) -> None:
        expected = []
        finished = sorted((ended, r) for r, ended in self.ended.items() if ended is not None)
        for ended, run_id in finished:
            if len(self.ended) > self.limits.max_runs or self.now_s - ended > self.limits.max_age_s:
                expected.append(run_id)
                del self.ended[run_id]
        self.log.entries = [e for e in self.log.entries if e.run_id not in expected]
        assert self.journal.prune(self.now_s * _S) == expected

    @rule()
    def refuse(self) -> None:
        log = Log(self.journal.head)
        with pytest.raises(ValueError, match="instead of"):
            self.journal.append([log.entry(run_id="new"), log.entry()._replace(event_number=0)])

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.directory, self.limits)

    @rule(
        share=st.floats(0, 1),
        records=st.booleans(),
        limit=st.integers(1, 10),
        limit_bytes=st.integers(0, 600),
        run=st.none() | st.integers(0, 6),
        until=st.none() | st.integers(0, 60),
    )
    def read(
        self, share: float, records: bool, limit: int, limit_bytes: int, run: int | None, until: int | None
    ) -> None:
        after = int(share * (self.log.offset + 1))
        expected: list[Entry] = []
        size = 0
        for e in self.log.entries:
            if e.offset <= after or (until is not None and e.offset > until):
                continue
            if (e.kind == "records" and not records) or (run is not None and e.run_id != f"r{run}"):
                continue
            size += len(e.topic) + len(e.header) + len(e.payload)
            if len(expected) == limit or (expected and size > limit_bytes):
                break
            expected.append(e)
        run_id = None if run is None else f"r{run}"
        assert expected == self.journal.read(
            after, records=records, limit=limit, limit_bytes=limit_bytes, run_id=run_id, until=until
        )

    @invariant()
    def holds_the_same(self) -> None:
        assert self.journal.head == Head(self.log.offset, self.log.event_number)
        assert {run.run_id for run in self.journal.runs()} == set(self.ended)
        assert self.journal.info().events == len(self.log.entries)

    @rule()
    def verify(self) -> None:
        assert self.journal.verify() == []


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


# ---- others at the same file ----


def test_two_buses_cannot_write_one_journal(tmp_path: Path, no_leaks: None) -> None:
    """The second is told; when the first is done it may."""
    with Journal(tmp_path), pytest.raises(JournalError, match="in use by another bus") as caught:
        Journal(tmp_path)
    assert caught.value.path == tmp_path / FILE_NAME
    Journal(tmp_path).close()


def test_a_reader_follows_while_the_bus_writes(tmp_path: Path, no_leaks: None) -> None:
    """Another connection, in another thread, sees whole transactions in order and keeps nobody waiting."""
    log = Log()
    seen: list[Entry] = []
    heads: list[Head] = []

    def follow() -> None:
        with JournalReader(tmp_path) as reader:
            while len(seen) < 5000:
                heads.append(reader.head)
                seen.extend(reader.read(seen[-1].offset if seen else 0, records=True))

    with Journal(tmp_path) as journal:
        thread = threading.Thread(target=follow)
        thread.start()
        for _ in range(500):
            journal.append([log.entry() for _ in range(10)])
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert seen == log.entries
    assert heads == sorted(heads)
    assert all(head.offset % 10 == 0 for head in heads)


def test_a_reader_of_a_closed_journal_leaves_it_as_it_is(tmp_path: Path) -> None:
    """By directory or by file; verify and info work, and writing does not."""
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry()])
    before = (tmp_path / FILE_NAME).read_bytes()
    for path in (tmp_path, tmp_path / FILE_NAME):
        with JournalReader(path) as reader:
            assert read_all(reader) == log.entries
            assert reader.verify() == []
            assert reader.info().head == Head(1, 1)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_reader_needs_a_journal(tmp_path: Path, no_leaks: None) -> None:
    """No file, an empty one, and a database of something else."""
    with pytest.raises(JournalError, match="there is no such file"):
        JournalReader(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").touch()
    with pytest.raises(JournalError, match="is empty"):
        JournalReader(tmp_path / "empty")
    other = sqlite3.connect(tmp_path / FILE_NAME)
    other.execute("CREATE TABLE songs (title TEXT)")
    other.close()
    with pytest.raises(JournalError, match="not a journal of phase-bus"):
        JournalReader(tmp_path)
    with pytest.raises(JournalError, match="not a journal of phase-bus"):
        Journal(tmp_path)


# ---- merging the log ----


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge after 64 KiB; a log of 512 KiB is long."""
    monkeypatch.setattr(checkpointer, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(checkpointer, "_LONG_BYTES", 1 << 19)


def log_bytes(journal: Journal) -> int:
    """Return the size of the write-ahead log."""
    return journal.path.with_name(f"{FILE_NAME}-wal").stat().st_size


def test_the_log_is_copied_while_nobody_writes(small_steps: None, journal: Journal) -> None:
    """What was appended reaches the file by itself; before, not even the tables were in it."""
    log = Log()
    journal.append([log.entry("records", payload=bytes(30_000))])
    assert journal.path.stat().st_size < 30_000
    journal.append([log.entry("records", payload=bytes(200_000))])
    wait_until(lambda: journal.path.stat().st_size > 230_000)
    assert read_all(journal) == log.entries


def test_the_log_does_not_grow_for_ever(small_steps: None, journal: Journal) -> None:
    """A writer never pauses, and for a while a reader stands still: only the log waits for him."""
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
from tests.helpers import wait_until
from tests.journal.test_journal import Log, read_all
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


# ---- trouble ----

_WRITER = """
import sys
from pathlib import Path
from tests.journal.test_journal import Log
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
from tests.journal.test_journal import Log, read_all
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
from tests.journal.test_journal import read_all
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
    """Whoever may not write there is told so, for a new journal and an old, and may still read."""
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
    told = rf"schema version {version}, and this program knows 2; use the {which}"
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
    """A changed payload, an event gone, one twice: each is found, with its place."""
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
    """Neither the lock nor the file stays held: the next one can open."""
    (tmp_path / FILE_NAME).write_bytes(os.urandom(5000))
    with pytest.raises(JournalError):
        Journal(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    Journal(tmp_path).close()
