"""The journals of `exec`: in use is never touched, without a run goes at once, the rest by size and age."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from phase_bus.errors import JournalError
from phase_bus.journal import exec_journals
from phase_bus.journal.exec_journals import ExecJournal
from phase_bus.journal.files import FILE_NAME, lock
from phase_bus.journal.paths import all_journals
from phase_bus.testing.process import PythonProcess
from phase_bus.testing.waiting import wait_until
from tests.support.journals import Made, Phase, write_journal

_DAY_S = 86400.0

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory for journals."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "phase-bus"


def past(base: Path, name: str, age_s: float, *, requests: int = 0) -> Path:
    """Write the journal of an `exec` with one run, last used at an age."""
    directory = write_journal(base / f"exec-{name}", Made(name, [Phase("p", 1.0, requests)]))
    used_s = time.time() - age_s
    os.utime(directory / FILE_NAME, (used_s, used_s))
    return directory


def left(base: Path) -> set[str]:
    """Return what is in the directory, but for the lock."""
    return {path.name.removeprefix("exec-") for path in base.iterdir()} - {"exec.lock", "lock"}


def test_what_is_in_use_is_never_touched(base: Path) -> None:
    """By an exec whose run has not begun, or by a bus that outlives its exec: nothing of it goes."""
    with ExecJournal() as running:
        bus_only = base / "exec-bus"
        with lock(bus_only):
            with ExecJournal() as other:
                assert other.directory != running.directory
            assert running.directory.is_dir()
            assert bus_only.is_dir()
        assert not other.directory.exists(), "no run, and over"
    assert left(base) == {"bus"}
    with ExecJournal():
        assert not bus_only.exists()
    assert left(base) == set()


def test_old_journals_in_use_stay(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all limits, and somebody writes to it: it stays."""
    monkeypatch.setattr(exec_journals, "KEPT_WHATEVER_AGE", 0)
    monkeypatch.setattr(exec_journals, "MAX_BYTES", 0)
    old = past(base, "old", 50 * _DAY_S)
    with lock(old), ExecJournal() as journal:
        assert journal.removed == []
    with ExecJournal() as journal:
        assert journal.removed == ["exec-old"]
    assert left(base) == set()


def test_results_stay_however_many_there_are(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the last days are all kept; journals without a run change nothing."""
    monkeypatch.setattr(exec_journals, "KEPT_WHATEVER_AGE", 1)
    names = {f"r{number}" for number in range(4)}
    for name in names:
        past(base, name, 2 * _DAY_S)
    for _ in range(3):
        with ExecJournal() as journal:
            assert journal.removed == []
    assert left(base) == names
    assert len(all_journals()) == 4


def test_old_ones_go_but_for_the_latest(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By age; a few always stay, so that a clock that is wrong takes not all; without a run at any age."""
    monkeypatch.setattr(exec_journals, "KEPT_WHATEVER_AGE", 2)
    for name, days in (("a", 40), ("b", 35), ("c", 33), ("d", 31)):
        past(base, name, days * _DAY_S)
    (base / "exec-empty").mkdir()
    write_journal(base / "exec-no-run")
    with ExecJournal() as journal:
        assert journal.removed == ["exec-a", "exec-b"]
    assert left(base) == {"c", "d"}


def test_large_ones_go_but_for_those_of_a_day(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By size over all, the oldest first, no more than has to go; today's results stay."""
    for name, days in (("a", 3), ("b", 2), ("c", 1.5), ("d", 0.5), ("e", 0.1)):
        past(base, name, days * _DAY_S, requests=2000)
    size = (base / "exec-a" / FILE_NAME).stat().st_size
    monkeypatch.setattr(exec_journals, "MAX_BYTES", 4 * size)
    with ExecJournal() as journal:
        assert journal.removed == ["exec-a"]
    monkeypatch.setattr(exec_journals, "MAX_BYTES", size)
    with ExecJournal() as journal:
        assert journal.removed == ["exec-b", "exec-c"]
    assert left(base) == {"d", "e"}


def test_a_removal_that_was_cut_short_leaves_no_journal(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle: what is left is no journal any more, and goes the next time."""
    monkeypatch.setattr(exec_journals, "KEPT_WHATEVER_AGE", 0)
    past(base, "old", 50 * _DAY_S)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with ExecJournal():
        assert all_journals() == []
        assert left(base) - {".old.removed"} != set(), "its files are there under another name"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(base.parent))
    with ExecJournal():
        pass
    assert left(base) == set()


def test_what_cannot_be_read_is_kept(base: Path) -> None:
    """A damaged journal may hold runs."""
    (base / "exec-damaged").mkdir(parents=True)
    (base / "exec-damaged" / FILE_NAME).write_bytes(b"this was a journal" * 100)
    with ExecJournal() as journal:
        assert journal.removed == []
    assert left(base) == {"damaged"}


def test_a_killed_process_leaves_no_lock(base: Path, tmp_path: Path) -> None:
    """After SIGKILL its directory, which has no run, goes with the next exec; before, it does not."""
    code = (
        "import time\nfrom phase_bus.journal.exec_journals import ExecJournal\n"
        "with ExecJournal(): time.sleep(600)\n"
    )
    process = PythonProcess(tmp_path / "log", "-c", code)
    process.start()
    try:
        wait_until(lambda: list(base.glob("exec-*-*")))
        (directory,) = base.glob("exec-*-*")
        wait_until(lambda: (directory / "exec.lock").exists())
        with ExecJournal():
            assert directory.is_dir()
    finally:
        process.kill()
    with ExecJournal():
        assert not directory.exists()


def test_two_of_one_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that share a home may have the same pid in the same second."""
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    with ExecJournal() as one, ExecJournal() as two:
        assert one.directory != two.directory
    assert left(base) == set()


def test_a_directory_that_cannot_be_made(base: Path) -> None:
    """One line that says what to do."""
    base.parent.mkdir(exist_ok=True)
    base.write_text("a file is in the way")
    with pytest.raises(JournalError, match="XDG_STATE_HOME"):
        ExecJournal()
