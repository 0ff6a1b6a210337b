"""Streams in the journal's file: what survives when its parts are cut, deleted, moved, or damaged."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from phase_bus.core.position import KEPT_STREAMS
from phase_bus.errors import JournalDamagedError, JournalError
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from tests.support.entries import Log, dead_letter_at, read_all

pytestmark = pytest.mark.usefixtures("no_leaks")


def copy_of(directory: Path, to: Path) -> Path:
    """Copy a journal that is open as the disk would have it now."""
    to.mkdir()
    for end in ("", "-wal"):
        shutil.copy(directory / f"{FILE_NAME}{end}", to / f"{FILE_NAME}{end}")
    return to


def test_each_start_begins_a_stream(tmp_path: Path) -> None:
    log = Log()
    ids = []
    for _ in range(3):
        with Journal(tmp_path) as journal:
            ids.append(journal.stream)
            journal.append([log.entry(), log.entry()])
    with JournalReader(tmp_path) as reader:
        assert [(s.stream, s.first_offset) for s in reader.lineage.segments] == [
            (ids[0], 1),
            (ids[1], 3),
            (ids[2], 5),
        ]
        assert reader.lineage.journal_id == ids[0]
        assert reader.info().streams == 3


def test_a_stream_outlives_its_log(tmp_path: Path) -> None:
    """However much of the log is lost, even all of it: what was begun is in the main file."""
    log = Log()
    with Journal(tmp_path / "a") as journal:
        journal.append([log.entry() for _ in range(50)])
        copy = copy_of(tmp_path / "a", tmp_path / "b")
        before = journal.lineage
    whole = (copy / f"{FILE_NAME}-wal").read_bytes()
    for size in (0, 31, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (copy / f"{FILE_NAME}-wal").write_bytes(whole[:size])
        with JournalReader(copy) as reader:
            assert reader.lineage.segments[0] == before.segments[0]
        shutil.copytree(copy, tmp_path / str(size))
        with Journal(tmp_path / str(size)) as cut:
            lost = before.position(50)
            place = cut.lineage.find(lost)
            assert place == ("cut", cut.head.offset)
            assert cut.head.offset < 50
            assert cut.verify() == []


def test_the_first_stream_and_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT_STREAMS == 1000
    monkeypatch.setattr("phase_bus.journal.writer.KEPT_STREAMS", 3)
    log = Log()
    ids = []
    for _ in range(6):
        with Journal(tmp_path) as journal:
            journal.append([log.entry()])
            ids.append(journal.stream)
    with JournalReader(tmp_path) as reader:
        assert [segment.stream for segment in reader.lineage.segments] == [ids[0], *ids[-2:]]


@pytest.mark.parametrize("ends", [("-wal",), ("-shm",), ("-wal", "-shm")])
def test_a_log_that_is_deleted_under_the_bus_is_saved(tmp_path: Path, ends: tuple[str, ...]) -> None:
    """Nothing more is taken in, and what was is in the main file, whatever ends the bus then."""
    log = Log()
    with Journal(tmp_path / "a") as journal:
        journal.append([log.entry() for _ in range(20)])
        for end in ends:
            (tmp_path / "a" / f"{FILE_NAME}{end}").unlink()
        with pytest.raises(JournalError, match=r"log beside it was moved or deleted.*all.* saved"):
            journal.append([log.entry()])
        with pytest.raises(JournalError, match="was moved or deleted"):
            journal.check_in_place()
        shutil.copytree(tmp_path / "a", tmp_path / "b")  # as SIGKILL would leave it
    with Journal(tmp_path / "b") as journal:
        assert read_all(journal) == log.entries[:20]
        assert journal.verify() == []


def test_a_directory_that_is_moved_under_the_bus(tmp_path: Path) -> None:
    log = Log()
    with Journal(tmp_path / "a") as journal:
        journal.append([log.entry()])
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(JournalError, match=r"was moved or deleted.*start the bus again"):
            journal.append([log.entry()])
        with Journal(tmp_path / "a") as other:
            assert other.lineage.find(journal.lineage.position(1)).found == "elsewhere"


# ---- checksums ----


def flip(directory: Path, sql: str) -> None:
    """Change something in a journal behind its back."""
    db = sqlite3.connect(directory / FILE_NAME)
    with db:
        db.execute(sql)
    db.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE events SET payload = x'79' WHERE offset = 3",
        "UPDATE events SET header = zeroblob(56) WHERE offset = 3",
        "UPDATE events SET records = 8 WHERE offset = 3",
        "UPDATE events SET source_seq = 'x' WHERE offset = 3",
        "UPDATE events SET payload = 5 WHERE offset = 3",
        "UPDATE events SET stream = 99 WHERE offset = 3",
        "UPDATE events SET stream = 1 WHERE offset = 3",
        "UPDATE events SET crc = crc + 1 WHERE offset = 3",
    ],
)
def test_what_is_damaged_is_not_read(tmp_path: Path, sql: str) -> None:
    """A reader leaves it out, and says where; what is around it is read."""
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry(), log.entry(), log.entry("records"), log.entry("records")])
    flip(tmp_path, sql)
    with JournalReader(tmp_path) as reader:
        assert [entry.offset for entry in reader.entries()] == [1, 2, 4]
        assert reader.damaged == {3}
        assert "1 event is damaged and left out (offset 3)" in reader.damage()
        assert reader.verify() != []


def test_a_stretch_of_damage_does_not_end_a_replay(tmp_path: Path) -> None:
    """Also one that is longer than a piece."""
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry("records") for _ in range(500)])
    flip(tmp_path, "UPDATE events SET payload = x'00' WHERE offset BETWEEN 101 AND 450")
    with JournalReader(tmp_path) as reader:
        assert [entry.offset for entry in read_all(reader)] == [*range(1, 101), *range(451, 501)]
        assert reader.damaged == set(range(101, 451))
        assert [e.offset for e in reader.read(100, records=True, limit=10)] == list(range(451, 461))


def test_a_topic_that_is_damaged_takes_its_events_along(tmp_path: Path) -> None:
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry(), log.entry("records"), log.entry()])
    flip(tmp_path, "UPDATE streams SET topic = x'00' WHERE id = 1")
    with JournalReader(tmp_path) as reader:
        assert [entry.offset for entry in reader.entries()] == [2]
        assert reader.damaged == {1, 3}


def test_records_in_the_wrong_partition_are_not_handed_to_it(tmp_path: Path) -> None:
    """The column is covered by no checksum; the topic says what is right."""
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry("records"), log.entry("records")])
    flip(tmp_path, "UPDATE events SET partition = 5 WHERE offset = 1")
    with JournalReader(tmp_path) as reader:
        assert reader.read(0, records=True, partition=5) == []
        assert reader.damaged == {1}
        assert [entry.offset for entry in reader.read(0, records=True, partition=3)] == [2]


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE checkpoints SET state = x'00'",
        "UPDATE checkpoints SET offset = offset + 1",
        "UPDATE checkpoints SET stream = 'x'",
    ],
)
def test_a_checkpoint_that_is_damaged_is_told_and_not_used(
    tmp_path: Path, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(tmp_path) as journal:
        journal.commit("sums", journal.lineage.position(0), b"state")
    flip(tmp_path, sql)
    with JournalReader(tmp_path) as reader:
        assert reader.checkpoint("sums") is None
        assert reader.checkpoint("sums") is None
        assert [problem for problem in reader.verify() if "'sums'" in problem]
    assert caplog.text.count("the checkpoint of consumer 'sums' is damaged") == 1


def test_a_saved_state_is_as_good_as_a_commit(tmp_path: Path) -> None:
    """A dead letter that was retried: the state that is kept then has a checksum of its own."""
    with Journal(tmp_path) as journal:
        position = journal.lineage.position(0)
        journal.commit("sums", position, b"before")
        letter = dead_letter_at(journal, "sums", 1)
        assert journal.settle_dead_letter(letter, b"after")
        assert journal.checkpoint("sums") == (position, b"after")
        assert journal.verify() == []


@pytest.mark.parametrize("logged", [True, False])
def test_a_main_file_that_is_cut_is_told(tmp_path: Path, *, logged: bool) -> None:
    """It is not what a power cut does: nothing is guessed, whether the log is there or not."""
    log = Log()
    with Journal(tmp_path / "a") as journal:
        journal.append([log.entry("records", payload=bytes(3000)) for _ in range(100)])
    with Journal(tmp_path / "a") as journal:
        journal.append([log.entry("records", payload=bytes(3000)) for _ in range(20)])
        copy = copy_of(tmp_path / "a", tmp_path / "b")
    if not logged:
        (copy / f"{FILE_NAME}-wal").unlink()
    size = (copy / FILE_NAME).stat().st_size
    for part in range(1, 10):
        shutil.copytree(copy, cut := tmp_path / str(part))
        with (cut / FILE_NAME).open("r+b") as file:
            file.truncate(size * part // 10)
        with pytest.raises(JournalDamagedError, match="malformed"), Journal(cut) as journal:
            read_all(journal)
