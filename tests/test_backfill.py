"""The journal's write-ahead log is copied back beside the writer, and stays bounded."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from phase_bus.bus import journal as journal_module
from phase_bus.bus.backfill import Backfill
from phase_bus.bus.journal import Journal, JournalReader
from phase_bus.bus.journal_files import BACKFILL_PAGES, PAGE_BYTES
from tests.helpers import wait_until
from tests.test_journal import Log

PAYLOAD = b"x" * (8 * PAGE_BYTES)
BACKFILL_BYTES = BACKFILL_PAGES * PAGE_BYTES


@pytest.fixture
def journal(tmp_path: Path, no_leaks: None) -> Iterator[Journal]:
    with Journal(tmp_path) as journal:
        yield journal


def write(journal: Journal, size_bytes: int) -> None:
    """Append events of 64 KiB, each by itself, until there are so many bytes of them."""
    log = Log(journal.head)
    for _ in range(size_bytes // len(PAYLOAD)):
        journal.append([log.entry(payload=PAYLOAD)])


def log_bytes(journal: Journal) -> int:
    return journal.path.with_name(f"{journal.path.name}-wal").stat().st_size


def test_the_log_is_copied_before_the_writer_has_to(journal: Journal) -> None:
    write(journal, BACKFILL_BYTES * 5 // 4)
    wait_until(lambda: journal.path.stat().st_size > BACKFILL_BYTES / 2)
    assert log_bytes(journal) > BACKFILL_BYTES  # so SQLite has not begun it anew: it was not the writer


def test_the_log_is_bounded_and_all_is_there(journal: Journal) -> None:
    write(journal, 16 * BACKFILL_BYTES)
    assert log_bytes(journal) < 6 * BACKFILL_BYTES
    with JournalReader(journal.path) as reader:
        offset = 0
        while entries := list(reader.read(offset, records=True)):
            assert [entry.offset for entry in entries] == list(range(offset + 1, offset + len(entries) + 1))
            assert all(entry.payload == PAYLOAD for entry in entries)
            offset = entries[-1].offset
    assert offset == journal.head.offset


def test_without_the_thread_the_writer_bounds_the_log(
    tmp_path: Path, no_leaks: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("out of file descriptors")

    monkeypatch.setattr(journal_module, "open_for_backfill", refuse)
    with Journal(tmp_path) as journal:
        write(journal, 16 * BACKFILL_BYTES)
        assert log_bytes(journal) < 6 * BACKFILL_BYTES
    assert caplog.text.count("out of file descriptors") == 1


def test_closing_ends_the_thread_and_may_be_repeated(tmp_path: Path, no_leaks: None) -> None:
    backfill = Backfill(lambda: sqlite3.connect(tmp_path / "x"), every_pages=1)
    backfill.wrote(1)
    backfill.close()
    backfill.close()
