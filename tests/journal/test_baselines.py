"""Baselines: copies of runs that are whole, stay, and are replaced at once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from phase_bus.errors import ConfigError, JournalError
from phase_bus.events import Receipt, RunComplete, RunStart
from phase_bus.journal import exec_journals
from phase_bus.journal.baselines import (
    RunSource,
    baseline_journal,
    baseline_names,
    baselines_directory,
    check_name,
    remove_baseline,
    set_baseline,
)
from phase_bus.journal.exec_journals import ExecJournal
from phase_bus.journal.files import FILE_NAME, lock
from phase_bus.journal.paths import all_journals
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from tests.support import journals
from tests.support.entries import Log, read_all
from tests.support.journals import Made, Phase, a_summary, write_journal

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory for journals."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "phase-bus"


def made(run_id: str, requests: int = 2500) -> Made:
    """Return a run with records, and what two consumers said of it."""
    said = [a_summary(run_id, "aggregator", {"a": 1}), Receipt(run_id=run_id, consumer="logging")]
    return Made(run_id, [Phase("profiling", 3.0, requests)], more=[*said])


def frames(path: Path, run_id: str) -> list[tuple[object, ...]]:
    """Return what a journal has of a run, without the places that it gives."""
    with JournalReader(path) as reader:
        return [
            (e.topic, e.header, e.payload, e.run_id, e.kind, e.source, e.source_seq, e.records, e.ts_ns)
            for e in read_all(reader, run_id=run_id)
        ]


def test_copies_have_all_that_the_runs_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From several journals, chosen among others; frames byte for byte, and the copy verifies."""
    one = write_journal(tmp_path / "one", made("a"), made("other"), made("b"))
    monkeypatch.setattr(journals, "_SOURCE", b"q" * 16)
    two = write_journal(tmp_path / "two", made("c"))
    path = set_baseline("v1", [RunSource(two, "c"), RunSource(one, "b"), RunSource(one, "a")])
    assert path == baseline_journal("v1")
    for journal, run_id in ((one, "a"), (one, "b"), (two, "c")):
        assert frames(path, run_id) == frames(journal, run_id)
    with JournalReader(path) as copy, JournalReader(one) as reader:
        assert copy.verify() == []
        assert {row.run_id for row in copy.runs()} == {"a", "b", "c"}
        assert [row for row in copy.runs() if row.run_id == "b"] == [
            row for row in reader.runs() if row.run_id == "b"
        ]
        assert copy.run_state("a") == reader.run_state("a")
        assert len(copy.events("a", RunStart)) == len(copy.events("a", RunComplete)) == 1
        offsets = [entry.offset for entry in copy.entries()]
        assert offsets == list(range(1, len(offsets) + 1))


def test_one_source_that_spoke_of_several_runs_in_turn(tmp_path: Path) -> None:
    """The copy keeps the order in which it did."""
    log = Log()
    entries = [log.entry(kind, run) for kind in ("run_start", "records", "receipt") for run in ("x", "y")]
    with Journal(tmp_path / "mixed") as journal:
        journal.append(entries)
    path = set_baseline("mixed", [RunSource(tmp_path / "mixed", run) for run in ("y", "x")])
    with JournalReader(path) as copy:
        assert copy.verify() == []
        assert read_all(copy) == entries


def test_replaced_at_once_under_a_reader(tmp_path: Path) -> None:
    """Who reads the old one goes on with it; the next one reads the new one. Nothing lies beside it."""
    journal = write_journal(tmp_path / "one", made("a"), made("b"))
    path = set_baseline("v1", [RunSource(journal, "a")])
    with JournalReader(path) as before:
        first = before.read(0, records=True, limit=2)
        set_baseline("v1", [RunSource(journal, "b")])
        with JournalReader(path) as after:
            assert [row.run_id for row in after.runs()] == ["b"]
        rest = before.read(first[-1].offset, records=True)
        assert {entry.run_id for entry in (*first, *rest)} == {"a"}
    assert {each.name for each in path.parent.iterdir()} == {FILE_NAME, "journal.lock"}


def test_what_failed_or_was_killed_changes_nothing(tmp_path: Path) -> None:
    """Not even a half copy of an earlier process matters, and a new name is there whole or not at all."""
    journal = write_journal(tmp_path / "one", made("a"))
    path = set_baseline("v1", [RunSource(journal, "a")])
    before = path.read_bytes()
    half = path.parent / "aside" / FILE_NAME
    half.parent.mkdir()
    half.write_bytes(before[:5000])
    assert baseline_names() == ["v1"]
    with pytest.raises(JournalError):
        set_baseline("v1", [RunSource(journal, "a"), RunSource(tmp_path / "none", "b")])
    with pytest.raises(JournalError):
        set_baseline("v2", [RunSource(tmp_path / "none", "b")])
    assert path.read_bytes() == before
    assert [each.name for each in baselines_directory().iterdir()] == ["v1"]
    set_baseline("v1", [RunSource(journal, "a")])
    assert not half.parent.exists()


def test_two_do_not_set_one_name_together(tmp_path: Path) -> None:
    """The second one is told."""
    journal = write_journal(tmp_path / "one", made("a"))
    with lock(baselines_directory() / "v1"), pytest.raises(ConfigError, match="another process is at it"):
        set_baseline("v1", [RunSource(journal, "a")])
    set_baseline("v1", [RunSource(journal, "a")])


def test_damage_is_refused_unless_told(tmp_path: Path) -> None:
    """And left out then."""
    journal = write_journal(tmp_path / "one", made("a"))
    with closing(sqlite3.connect(journal / FILE_NAME)) as db:
        db.execute("UPDATE events SET payload = zeroblob(9) WHERE offset = 3")
        db.commit()
    with pytest.raises(JournalError, match="1 event is damaged"):
        set_baseline("v1", [RunSource(journal, "a")])
    assert baseline_names() == []
    path = set_baseline("v1", [RunSource(journal, "a")], allow_damaged=True)
    with JournalReader(path) as copy:
        assert copy.verify() == []
        assert len(list(copy.entries())) == len(frames(journal, "a"))


def test_out_of_reach_of_what_prunes_and_lists(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exec's clearing takes the journal of the run away, and the baseline, which is listed nowhere, not."""
    journal = write_journal(base / "exec-old", made("a"))
    path = set_baseline("v1", [RunSource(journal, "a")])
    monkeypatch.setattr(exec_journals, "MAX_BYTES", 0)
    monkeypatch.setattr(exec_journals, "KEPT_WHATEVER_SIZE_S", -1.0)
    with ExecJournal() as running:
        assert running.removed == ["exec-old"]
    assert all_journals() == []
    with JournalReader(path) as copy:
        assert [row.run_id for row in copy.runs()] == ["a"]


def test_names(tmp_path: Path) -> None:
    """What is no word, or would be taken for a run, is refused; what is not there is said, with what is."""
    for name in ("", "a/b", "..", ".x", "1.5", "-x", "a b", "a\nb", "latest", "3f2a9c01d4e5", "deadbeef"):
        with pytest.raises(ConfigError, match="baseline"):
            check_name(name)
    journal = write_journal(tmp_path / "one", made("a"))
    for name in ("nightly", "v0.13-rc_1", "größe", "face"):
        set_baseline(name, [RunSource(journal, "a")])
    assert baseline_names() == ["face", "größe", "nightly", "v0.13-rc_1"]
    with pytest.raises(ConfigError, match="did you mean 'nightly'"):
        baseline_journal("nigthly")
    remove_baseline("nightly")
    assert "nightly" not in baseline_names()
    with pytest.raises(ConfigError, match="no baseline 'nightly'"):
        remove_baseline("nightly")
