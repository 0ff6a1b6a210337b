"""What the bus confirms of a consumer's checkpoint: by position, and only what the journal holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phase_bus.bus.checkpoints import Checkpoints
from phase_bus.core.control import EVENTS, Beat, ClientInfo, DeadLetterNote, Heard
from phase_bus.core.position import Position
from phase_bus.errors import JournalError
from phase_bus.journal.rows import Checkpoint
from phase_bus.journal.writer import Journal
from tests.support.entries import Log

BUS_ID = "b" * 32
CONSUMER = ClientInfo(client_id="1" * 32, role="consumer", name="c", pid=1, host="", state="ready")
LETTER = DeadLetterNote(offset=4, run_id="r", kind="phase_start", error="KeyError: 'x'", stream="a" * 32)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal of ten events."""
    log = Log()
    with Journal(tmp_path) as journal:
        journal.append([log.entry() for _ in range(10)])
        yield journal


@contextmanager
def failing_commit(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the journal take no checkpoint."""

    def refuse(*_args: object) -> None:
        raise JournalError(journal.path, "the disk is full", "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "commit", refuse)
        yield


def beat(position: Position | None) -> Beat:
    """A beat of a consumer without a group."""
    return Beat(
        client_id=CONSUMER.client_id, state="ready", position=position, saved=b"s", dead_letters=(LETTER,)
    )


def test_a_position_is_confirmed_once_it_is_kept(journal: Journal) -> None:
    at = journal.lineage.position(5)
    heard = Checkpoints(BUS_ID, journal).keep(CONSUMER, beat(at), None)
    assert heard == Heard(bus_id=BUS_ID, kept={EVENTS: at}, dead_letters=(LETTER.position,))
    assert journal.checkpoint("c") == Checkpoint(at, b"s")


def test_a_commit_that_fails_confirms_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is anything of it kept: the consumer says all of it again, and then it is."""
    checkpoints = Checkpoints(BUS_ID, journal)
    checkpoints.keep(CONSUMER, beat(journal.lineage.position(5)), None)
    with failing_commit(journal, monkeypatch):
        heard = checkpoints.keep(CONSUMER, beat(journal.lineage.position(7)), None)
    assert heard == Heard(bus_id=BUS_ID)
    assert "the disk is full" in caplog.text
    assert journal.checkpoint("c") == Checkpoint(journal.lineage.position(5), b"s")
    assert checkpoints.keep(CONSUMER, beat(journal.lineage.position(7)), None).kept == {
        EVENTS: journal.lineage.position(7)
    }
    assert journal.checkpoint("c") == Checkpoint(journal.lineage.position(7), b"s")


@pytest.mark.parametrize("stream", ["", "f" * 32])
@pytest.mark.parametrize("offset", [5, 11, 2**62])
def test_a_position_that_is_nowhere_is_not_kept(journal: Journal, stream: str, offset: int) -> None:
    """In another stream, or beyond the end: what comes there later is not what the consumer had."""
    nowhere = Position(stream or journal.stream, offset)
    kept = Checkpoints(BUS_ID, journal).keep(CONSUMER, beat(nowhere), None).kept
    assert kept == ({EVENTS: nowhere} if (stream, offset) == ("", 5) else {})
    assert (journal.checkpoint("c") is not None) == bool(kept)


def test_a_beat_without_a_position_confirms_none(journal: Journal) -> None:
    assert Checkpoints(BUS_ID, journal).keep(CONSUMER, beat(None), None).kept == {}
    assert journal.checkpoint("c") is None


def test_without_a_journal_no_position_is_confirmed() -> None:
    assert Checkpoints(BUS_ID, None).keep(CONSUMER, beat(Position("", 5)), None).kept == {}
