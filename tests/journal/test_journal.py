"""The journal: what is appended stays, in order and once, and is found again."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from phase_bus.errors import JournalError
from phase_bus.events import Receipt, RunStart, TopicReceipt
from phase_bus.journal import writer
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Checkpoint, Entry, Head
from phase_bus.journal.writer import Journal
from phase_bus.testing.waiting import DEADLINE_S
from tests.support.entries import _S, _SOURCE, Log, dead_letter_at, read_all


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
    """A duplicate, a gap, or a wrong event number is the caller's mistake, and changes nothing."""
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
        journal.commit("c", journal.lineage.position(1))
        assert journal.head == Head(2, 2)
        _ = 1 // 0
    assert (journal.head, journal.runs(), journal.info().checkpoints) == (Head(0, 0), [], {})
    journal.append([first, second])
    assert read_all(journal) == log.entries
    assert journal.verify() == []


def test_checkpoints_are_kept_by_name(tmp_path: Path) -> None:
    """A checkpoint with and without state; the last one counts; both outlive a restart."""
    with Journal(tmp_path) as journal:
        assert journal.checkpoint("sql") is None
        at = journal.lineage.position
        journal.commit("sql", at(5), b"state")
        journal.commit("agg", at(7))
        journal.commit("sql", at(6), b"\0later")
    with Journal(tmp_path) as journal:
        assert journal.checkpoint("sql") == Checkpoint(at(6), b"\0later")
        assert journal.checkpoint("agg") == Checkpoint(at(7), None)
        assert journal.info().checkpoints == {"agg": at(7), "sql": at(6)}


def test_dead_letters(journal: Journal) -> None:
    """Added, listed, shown, removed; the same one twice is one, and no number is used again."""
    first, second = dead_letter_at(journal, "sql", 4), dead_letter_at(journal, "log", 4)
    assert dead_letter_at(journal, "sql", 4, attempts=6) == first
    assert [(d.id, d.consumer, d.attempts) for d in journal.dead_letters()] == [
        (first, "sql", 6),
        (second, "log", 3),
    ]
    assert [d.id for d in journal.dead_letters("log")] == [second]
    letter = journal.dead_letters("sql")[0]
    assert (letter.offset, letter.run_id, letter.error) == (4, "r1", "KeyError: 'x'")
    assert journal.settle_dead_letter(second, None)
    assert not journal.settle_dead_letter(second, None)
    assert journal.dead_letters("log") == []
    assert dead_letter_at(journal, "log", 4) > second


def test_dead_letters_are_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a consumer that fails on everything the first are kept, and the number of the others."""
    monkeypatch.setattr(writer, "MAX_DEAD_LETTERS", 3)
    ids = [dead_letter_at(journal, "sql", offset) for offset in range(1, 11)]
    other = dead_letter_at(journal, "log", 1, skipped=40)
    assert [letter.id for letter in journal.dead_letters()] == [*ids[:3], other]
    assert ids[3:] == [0] * 7
    assert dead_letter_at(journal, "sql", 2) == ids[1], "one that is there is changed"
    assert journal.dead_letters_left_out() == {"log": 40, "sql": 7}
    assert journal.settle_dead_letter(ids[0], None)
    assert dead_letter_at(journal, "sql", 11) > 0
    assert journal.dead_letters_left_out("sql") == {"sql": 7}


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
    at = journal.lineage.position(2)
    journal.commit("sql", at)
    old, first = sorted(journal.runs(), key=lambda run: run.run_id)
    assert (first.status, first.started_ns, first.ended_ns, first.publisher) == (
        "completed",
        5,
        6,
        "aiperf",
    )
    info = journal.info()
    assert (info.events, info.records, info.runs, info.head) == (3, 7, 2, Head(3, 2))
    assert (info.oldest_ts_ns, info.checkpoints) == (_S, {"sql": at})
    assert info.size_bytes > 10_000


def test_receipts_of_a_run(journal: Journal) -> None:
    """The receipts are found among the other events and other runs."""
    log = Log()
    receipts = [
        Receipt(run_id=run_id, consumer=name, topics={"phase_start.r1$": TopicReceipt(received=3)})
        for run_id, name in (("r1", "sql"), ("r2", "sql"), ("r1", "log"))
    ]
    journal.append([log.of(RunStart(run_id="r1")), *map(log.of, receipts), log.entry("records")])
    assert journal.events("r1", Receipt) == [receipts[0], receipts[2]]
    assert journal.events("r3", Receipt) == []


def test_two_buses_cannot_write_one_journal(tmp_path: Path, no_leaks: None) -> None:
    """The second is refused until the first is done."""
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
