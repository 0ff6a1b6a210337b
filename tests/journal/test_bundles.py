"""Bundles in the journal: a row each, and whoever reads has the events one by one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from phase_bus.core.address import Address
from phase_bus.core.control import Fetch
from phase_bus.journal import writer
from phase_bus.journal.files import FILE_NAME, event_crc, stream_crc
from phase_bus.journal.pieces import read_piece
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.remote import RemoteJournal
from phase_bus.journal.rows import Entry, Head, Limits
from phase_bus.journal.writer import Journal
from tests.support.bundles import add_bundle, singles_of
from tests.support.buses import DurableBus
from tests.support.entries import _S, _SOURCE, Log, dead_letter_at, read_all

_FOUR = tuple(b"payload %d." % i for i in range(4))


@contextmanager
def sql(directory: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal with SQLite alone."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as db:
        yield db


def columns(db: sqlite3.Connection, *names: str) -> tuple[Any, ...]:
    """Return columns of the bundle at offset 9."""
    row: tuple[Any, ...] = db.execute(f"SELECT {', '.join(names)} FROM events WHERE offset = 9").fetchone()  # noqa: S608
    return row


def change(db: sqlite3.Connection, sets: str, *values: object) -> None:
    """Change the bundle at offset 9."""
    db.execute(f"UPDATE events SET {sets} WHERE offset = 9", values)  # noqa: S608 - of constants


def three_bundles(directory: Path) -> Log:
    """Write an event, three bundles of four, an event: offsets 1, 2-5, 6-9, 10-13, 14."""
    log = Log()
    with Journal(directory) as journal:
        parts = ((b"first",), _FOUR, _FOUR, _FOUR, (b"last",))
        journal.append([add_bundle(log, payloads) for payloads in parts])
    return log


def test_a_bundle_is_one_row_and_so_many_events(tmp_path: Path) -> None:
    """Numbers, counts and head are by event; they and the sources' sequences outlive a restart."""
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry("records"), add_bundle(log, [b"a"] * 256), add_bundle(log, [b"", b"b"])])
    with Journal(tmp_path) as journal:
        assert journal.head == Head(259, 258)
        assert journal.last_seqs() == {_SOURCE: 259}
        assert (journal.info().events, journal.info().records) == (259, 7)
        assert [(row.events, row.last_offset) for row in journal.streams("r1")] == [(1, 1), (258, 259)]
        assert read_all(journal) == log.entries
        assert journal.verify() == []
    with sql(tmp_path) as db:
        assert db.execute("SELECT count(*), sum(events) FROM events").fetchone() == (3, 259)


def test_a_piece_takes_up_in_the_middle_of_a_bundle(tmp_path: Path) -> None:
    """What was read comes no more: the rest of a bundle comes one by one, the others stay whole."""
    log = three_bundles(tmp_path)
    with JournalReader(tmp_path) as reader:
        answer, rows = read_piece(reader, Fetch(after=3, records=False))
        assert [(row.offset, row.events) for row in rows] == [(4, 1), (5, 1), (9, 4), (13, 4), (14, 1)]
        assert [event for row in rows for event in singles_of(row)] == log.entries[3:]
        assert (answer.offset, answer.event_number, answer.end) == (14, 14, False)
        answer, rows = read_piece(reader, Fetch(after=5, records=False, limit_bytes=1))
        assert (rows[0].events, answer.offset, answer.event_number) == (4, 9, 9)
        assert [e.offset for e in reader.read(0, records=True, until=7, bundled=True)] == [1, 5, 6, 7]


def test_a_single_event_of_a_bundle_is_found_by_its_offset(tmp_path: Path) -> None:
    """A dead letter names one event in the middle."""
    log = three_bundles(tmp_path)
    with JournalReader(tmp_path) as reader:
        for offset in range(1, 15):
            found = reader.read(offset - 1, records=True, until=offset, limit=1)
            assert found == [log.entries[offset - 1]]
        assert reader.entries_of("r1", "phase_progress") == log.entries
        assert reader.taken_ns("r1") == log.entries[0].ts_ns


_DAMAGE = [
    ("payload", "zeroblob(length(payload))"),
    ("payload", "substr(payload, 2)"),
    ("payload", "'text'"),
    ("header", "zeroblob(length(header))"),
    ("header", "substr(header, 1, 64)"),
    ("header", "substr(header, 1, 30)"),
    *((column, f"{column} + 1") for column in ("source_seq", "event_number", "records", "ts_ns", "crc")),
    *(("events", value) for value in ("0", "1", "3", "5", "200", "-7", "10000000000", "'text'")),
]


@pytest.mark.parametrize(("column", "value"), _DAMAGE)
def test_damage_of_a_row_is_damage_of_all_its_events(tmp_path: Path, column: str, value: str) -> None:
    """Whatever of a row is damaged, also how many events it has: exactly those are left out and told."""
    log = three_bundles(tmp_path)
    with sql(tmp_path) as db:
        change(db, f"{column} = {value}")
    with JournalReader(tmp_path) as reader:
        assert read_all(reader) == log.entries[:5] + log.entries[9:]
        assert reader.damaged == {6, 7, 8, 9}
        assert reader.damage() == "4 events are damaged and left out (offset 6, 7, 8, 9)"
        answer, rows = read_piece(reader, Fetch(after=7, records=True))
        assert (answer.damaged, [row.offset for row in rows]) == ((8, 9), [13, 14])
        assert reader.verify() != []


def test_each_byte_of_a_bundle_counts(tmp_path: Path) -> None:
    """A byte that is another one, anywhere in its frames, is damage."""
    log = three_bundles(tmp_path)
    with sql(tmp_path) as db, closing(JournalReader(tmp_path)) as reader:
        for column in ("header", "payload"):
            (whole,) = columns(db, column)
            for place in range(len(whole)):
                damaged = bytearray(whole)
                damaged[place] ^= 1 << place % 8
                change(db, f"{column} = ?", bytes(damaged))
                reader.damaged.clear()
                assert read_all(reader) == log.entries[:5] + log.entries[9:]
                assert reader.damaged == {6, 7, 8, 9}
            change(db, f"{column} = ?", whole)
        assert reader.verify() == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE events SET payload = 'x' WHERE offset = 9", "offsets 6-9: its content does not match"),
        ("UPDATE events SET events = 2 WHERE offset = 9", "offsets 8-9: its content does not match"),
        ("UPDATE events SET events = 99 WHERE offset = 9", "offsets 6-9: its content does not match"),
        ("DELETE FROM events WHERE offset = 9", "events 10 instead of 14, "),
        ("DELETE FROM events WHERE offset = 9", "offsets without an event: 6-9"),
        ("DELETE FROM events WHERE offset = 9", "of 14 offsets 0 were pruned and 10 are here: 4 missing"),
        ("UPDATE events SET event_number = 11 WHERE offset = 9", "offsets 6-9: event number 11 after 5"),
        (
            "UPDATE events SET partition = 3 WHERE offset = 9",
            "offsets 6-9: wrongly marked as of partition 3",
        ),
        ("UPDATE events SET stream = 77 WHERE offset = 9", "offsets 6-9: its topic is missing"),
        ("UPDATE past SET pruned = 4", "of 14 offsets 4 were pruned and 14 are here"),
    ],
)
def test_verify_names_the_offsets_of_a_bundle(tmp_path: Path, damage: str, problem: str) -> None:
    """Each kind of fault of a bundle, with its place."""
    three_bundles(tmp_path)
    with sql(tmp_path) as db:
        assert JournalReader(tmp_path, db).verify() == []
        db.execute(damage)
        found = JournalReader(tmp_path, db).verify()
        assert any(problem in each for each in found), found


def rewrite(db: sqlite3.Connection, **changed: Any) -> None:
    """Change the bundle at offset 9 such that its checksum is right: what a faulty bus would write."""
    names = ("source_seq", "records", "event_number", "ts_ns", "events", "header", "payload")
    row = dict(zip(names, columns(db, *names), strict=True)) | changed
    *numbers, header, payload = (row[name] for name in names)
    start = stream_crc(b"phase_progress.r1$", _SOURCE, "r1", "phase_progress")
    row["crc"] = event_crc(start, (9, *numbers), header, payload)
    change(db, ", ".join(f"{name} = ?" for name in row), *row.values())


def test_verify_looks_into_a_bundle(tmp_path: Path) -> None:
    """Frames that contradict each other or the row, with a right checksum: found, and left out."""
    log = three_bundles(tmp_path)
    with sql(tmp_path) as db:
        reader = JournalReader(tmp_path, db)
        header, payload = columns(db, "header", "payload")
        other = header[:40] + b"\x07" + header[41:]  # its offset
        for changed, problem in (
            ({"header": other}, "its header is that of other events"),
            ({"header": header[:64]}, "its header is that of other events"),
            ({"header": header[:63]}, "a header has 64 bytes, this one 63"),
            ({"payload": payload + b"x"}, "the payload does not hold 4 events"),
            ({"payload": b"\xdd" + payload[1:]}, "the payload does not hold 4 events"),
            (
                {"source_seq": 5 + 4 - 1},
                "source sequence 5 of 73737373737373737373737373737373 is there twice",
            ),
        ):
            db.execute("BEGIN")
            rewrite(db, **changed)
            found = reader.verify()
            assert any("offsets 6-9:" in each and problem in each for each in found), found
            reader.damaged.clear()
            assert read_all(reader) == log.entries[:5] + log.entries[9:]
            assert reader.damaged == {6, 7, 8, 9}
            db.execute("ROLLBACK")
        assert reader.verify() == []


@pytest.mark.parametrize("changed", [{"offset": 6}, {"event_number": 4}, {"events": 3}])
def test_numbers_of_a_bundle_that_do_not_go_on_are_refused(
    journal: Journal, changed: dict[str, Any]
) -> None:
    """A gap or a wrong event number is the caller's mistake, and changes nothing."""
    log = Log()
    journal.append([log.entry()])
    bundle = add_bundle(log, _FOUR)
    with pytest.raises(ValueError, match="instead of"):
        journal.append([bundle._replace(**changed)])
    assert read_all(journal) == log.entries[:1]
    journal.append([bundle])
    assert read_all(journal) == log.entries


def test_pruning_that_is_cut_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go as wholes, a few at a time, and events are counted; a restart takes up where it was left."""
    monkeypatch.setattr(writer, "_PRUNED_AT_ONCE", 6)
    log, limits = Log(), Limits(max_runs=1)
    with Journal(tmp_path, limits) as journal:
        for _ in range(5):
            journal.append(
                [add_bundle(log, _FOUR), log.entry("records"), add_bundle(log, _FOUR, run_id="r2")]
            )
        journal.note_run("r1", "completed", 0, 1, "p")
    gone: list[str] = []
    cuts = 0
    while not gone:
        moments = iter((0.0,) * (cuts + 2))  # when the deadline is set, and before each piece
        with monkeypatch.context() as patch, Journal(tmp_path, limits) as journal:
            patch.setattr(writer, "time", SimpleNamespace(monotonic=partial(next, moments, 9.0)))
            gone = [row.run_id for row in journal.prune(_S, budget_s=1.0)]
            assert journal.verify() == []
            assert read_all(journal, run_id="r2") == [e for e in log.entries if e.run_id == "r2"]
            assert journal.head == Head(45, 40)
        cuts += 1
    assert (gone, cuts > 3) == (["r1"], True)
    with JournalReader(tmp_path) as reader:
        assert read_all(reader) == [e for e in log.entries if e.run_id == "r2"]
        assert reader._query("SELECT pruned FROM past") == [(25,)]


@pytest.mark.parametrize("place", range(15))
def test_what_a_consumer_has_not_read_is_counted_by_event(tmp_path: Path, place: int) -> None:
    """Also if it stands in the middle of a bundle when its run is pruned."""
    three_bundles(tmp_path)
    with Journal(tmp_path, Limits(max_runs=0, max_unread_bytes=0, max_bytes=0)) as journal:
        journal.commit("slow", journal.lineage.position(place))
        journal.note_run("r1", "completed", 0, 1, "p")
        (row,) = journal.prune(_S)
        assert [(each.consumer, each.events) for each in row.unread] == (
            [("slow", 14 - place)] if place < 14 else []
        )


def test_an_age_is_that_of_the_row(journal: Journal) -> None:
    """The last event of a run that is over may be in a bundle: when that came is its age."""
    log = Log()
    journal.limits = Limits(max_age_s=10)
    journal.append([add_bundle(log, _FOUR)])
    journal.note_run("r1", "completed", 0, 1, "p")
    assert journal.prune(14 * _S) == []
    assert [row.run_id for row in journal.prune(15 * _S)] == ["r1"]


def statements(journal: Journal, entries: list[Entry]) -> list[str]:
    """Append entries; return what SQLite was asked to do."""
    asked: list[str] = []
    journal._db.set_trace_callback(lambda text: asked.append(text.split()[0]))
    journal.append(entries)
    journal._db.set_trace_callback(None)
    return asked


def test_a_bundle_costs_what_an_event_costs(journal: Journal) -> None:
    """One transaction, one row, one count, however many events it has."""
    log = Log()
    journal.append([log.entry()])
    single = statements(journal, [log.entry()])
    assert single == ["BEGIN", "INSERT", "UPDATE", "COMMIT"]
    assert statements(journal, [add_bundle(log, [b"x" * 200] * 256)]) == single


def frames_of(entries: Iterable[Entry]) -> list[tuple[int, bytes, bytes, bytes]]:
    """Return what a copy has of events: when a bus took them in is not in it."""
    return [(entry.offset, entry.topic, entry.header, entry.payload) for entry in entries]


def test_the_journal_of_a_bus_elsewhere_is_the_same(tmp_path: Path, ipc_dir: Path) -> None:
    """Asked for over the replay socket: single events, from any place to any other; damage comes along."""
    log = three_bundles(tmp_path / "journal")
    with Journal(tmp_path / "journal") as journal:
        journal.note_run("r1", "completed", 0, 1, "p")
        number = dead_letter_at(journal, "c", 4)
    with sql(tmp_path / "journal") as db:
        change(db, "ts_ns = 0")
    kept = DurableBus(ipc_dir, tmp_path / "journal")
    try:
        with RemoteJournal(
            Address.parse(kept.address), tmp_path / "copies", lambda _: nullcontext(lambda _: None)
        ) as remote:
            with JournalReader(remote.everything) as copy:
                assert frames_of(read_all(copy)) == frames_of(log.entries[:5] + log.entries[9:])
                assert copy.damaged == {6, 7, 8, 9}
            with JournalReader(remote.dead_letters(with_event=number)) as copy:
                assert frames_of(copy.read(3, records=True, until=4)) == frames_of(log.entries[3:4])
            for after, until in ((0, 3), (2, 5), (3, 4), (9, 11), (12, 14)):
                found = [entry for piece in remote.entries(after, until) for entry in piece]
                assert frames_of(found) == frames_of(log.entries[after:until])
    finally:
        kept.close()
