"""What belongs to whom: noted in the journal as soon as that can be, and forgotten with what it is of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phase_bus.bus.access import OWN, Party
from phase_bus.bus.options import BusOptions
from phase_bus.bus.owners import Owners
from phase_bus.errors import JournalError, WireError
from phase_bus.journal.writer import Journal

ALICE, BOB = (Party(name, frozenset({"publish"})) for name in ("alice", "bob"))
THREE = BusOptions(max_names_a_client=3)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal."""
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def claim(owners: Owners, party: Party, *names: str) -> None:
    """Claim runs that are not there yet."""
    for name in names:
        owners.claim("run", name, party, known=False)


def test_what_cannot_be_noted_is_noted_later(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds meanwhile, is told once, and is noted when there is room."""

    def refuse(_owners: object) -> None:
        raise JournalError(journal.path, "the disk is full", "free some space")

    owners = Owners(journal, THREE)
    monkeypatch.setattr(journal, "note_owners", refuse)
    claim(owners, ALICE, "r")
    for _ in range(3):
        owners.keep()
        owners.forget(set(), sources=True)
    assert caplog.text.count("the disk is full") == 1
    assert owners.is_of("run", "r", ALICE)
    with pytest.raises(WireError, match="another client's"):
        claim(owners, BOB, "r")
    monkeypatch.undo()
    owners.keep()
    assert journal.owners() == {("run", "r"): "alice"}
    assert Owners(journal, THREE).is_of("run", "r", ALICE)


def test_what_is_gone_is_nobodys(journal: Journal) -> None:
    """What the journal has nothing of is forgotten, but for what is here, and does not count any more."""
    owners = Owners(journal, THREE)
    owners.claim("source", "0f", ALICE, known=False)
    owners.claim("consumer", "c", ALICE, known=False)
    claim(owners, ALICE, "r")
    claim(owners, OWN, "mine")
    owners.keep()
    with pytest.raises(WireError, match=r"alice' has 3 names already .*--max-names-a-client") as refused:
        claim(owners, ALICE, "s")
    assert refused.value.counted_as == "names"
    owners.forget({("run", "r"), ("run", "mine")}, sources=False)
    assert journal.owners() == {("source", "0f"): "alice", ("run", "r"): "alice"}
    owners.forget({("run", "r")}, sources=True)
    assert journal.owners() == {("run", "r"): "alice"}
    claim(owners, BOB, "mine")
    claim(owners, ALICE, "s", "t")
    with pytest.raises(WireError, match="another client's"):
        claim(owners, BOB, "r")


def test_without_a_journal_what_is_not_here_is_gone() -> None:
    """Nothing grows: the bus knows whose things are as long as it knows them."""
    owners = Owners(None, THREE)
    for round_ in range(3):
        claim(owners, ALICE, *(f"{round_}{number}" for number in range(3)))
        owners.keep()
        owners.forget({("run", f"{round_}0")}, sources=False)
        assert owners.is_of("run", f"{round_}0", ALICE)
        assert not owners.is_of("run", f"{round_}1", ALICE)
        owners.forget(set(), sources=False)
