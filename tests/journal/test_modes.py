"""What keeps users' data is theirs alone, whatever the umask, from its first byte."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from phase_bus.events import PhaseRef, Records, RunStart
from phase_bus.journal.exec_journals import ExecJournal
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.paths import make_state_directory, state_directory
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.plugins.adapters.results import PhaseResults
from phase_bus.publisher.publisher import Publisher
from tests.support.entries import Log, read_all
from tests.support.journals import Made, Phase, write_journal


@pytest.fixture(autouse=True, params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each umask that users have."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state directory that is not there yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def modes(directory: Path) -> dict[str, int]:
    """The modes of what is in a directory, and of itself."""
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in (directory, *directory.rglob("*"))
    }


def test_a_journal_and_what_is_beside_it(tmp_path: Path) -> None:
    """Its log, which holds events as well, what readers share, and the lock."""
    directory = tmp_path / "above" / "journal"
    log = Log()
    with Journal(directory) as journal, JournalReader(directory):
        journal.append([log.entry()])
        assert modes(directory) == {
            ".": 0o700,
            "journal.lock": 0o600,
            FILE_NAME: 0o600,
            f"{FILE_NAME}-shm": 0o600,
            f"{FILE_NAME}-wal": 0o600,
        }
    assert not directory.parent.stat().st_mode & 0o022


def test_a_journal_of_an_earlier_version(tmp_path: Path) -> None:
    """Its files, made with the umask, are taken from others; the directory is as the user made it."""
    log = Log()
    with Journal(tmp_path) as journal, JournalReader(tmp_path):
        journal.append([log.entry()])
        for path in tmp_path.iterdir():
            path.chmod(0o644)
        (tmp_path / "notes").touch()
        tmp_path.chmod(0o755)
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}  # as after a SIGKILL
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o644)
    with Journal(tmp_path), JournalReader(tmp_path) as reader:
        assert len(read_all(reader)) == 1
        assert set(modes(tmp_path).values()) == {0o755, 0o644, 0o600}
        assert {name for name, mode in modes(tmp_path).items() if mode == 0o644} == {"notes"}


def test_the_state_directory() -> None:
    """What is in it is nobody else's, even if it was so once."""
    with ExecJournal() as journal:
        write_journal(journal.directory, Made("r", [Phase("p", 1.0, 1)]))
        found = modes(state_directory())
        assert {mode for name, mode in found.items() if name.endswith((".", "lock"))} >= {0o700, 0o600}
        assert not [name for name, mode in found.items() if mode & 0o077]
    state_directory().chmod(0o755)
    assert stat.S_IMODE(make_state_directory().stat().st_mode) == 0o700


def test_a_post_processors_records() -> None:
    """The file without a name lies in the state directory."""
    results = PhaseResults()
    results.add(Records(run_id="r", phase=PhaseRef("p"), count=1))
    assert modes(state_directory()) == {".": 0o700}
    results.close()


def test_a_spool_file(tmp_path: Path) -> None:
    """It is its owner's in a directory of whatever mode; a new directory is as well."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for directory, mode in ((shared, 0o777), (tmp_path / "new" / "spool", 0o700)):
        with Publisher(f"ipc://{tmp_path}/nobody", spool_dir=directory) as publisher:
            publisher.publish(RunStart(run_id="r"))
            publisher.close(0.0)
        assert publisher.spooled is not None
        assert modes(directory) == {".": mode, publisher.spooled.name: 0o600}
