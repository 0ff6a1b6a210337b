"""What belongs to whom: a publisher's source id, a consumer's name, a run are of who had them first."""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias

from phase_bus.bus.access import OWN, Party
from phase_bus.errors import JournalError, WireError
from phase_bus.journal.writer import Journal

logger = logging.getLogger("phase_bus.bus")

Kind: TypeAlias = Literal["source", "consumer", "run"]
_WORDS: dict[Kind, str] = {"source": "the publisher id", "consumer": "the consumer name", "run": "the run"}


class Owners:
    """Keeps what belongs to whom, in the journal too if there is one.

    What is of who runs the bus is not written down there: whatever has no other owner is.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._of: dict[tuple[str, str], str] = {} if journal is None else journal.owners()

    def claim(self, kind: Kind, name: str, party: Party, *, known: bool) -> None:
        """Let somebody use a name, which is its own from now on if there was none such.

        Args:
            known: whether there is such a thing already; without another owner it is of who runs the bus.

        Raises:
            WireError: if it is somebody else's, and this one is no admin.
        """
        owner = self._of.get((kind, name))
        if owner is None:
            owner = OWN.name if known else party.name
            if not known:
                self._keep(kind, name, owner)
        if owner != party.name and not party.may("admin"):
            raise not_yours(party, f"{_WORDS[kind]} {name!r:.100}")

    def has(self, kind: Kind, name: str) -> bool:
        """Return whether it is noted whose something is."""
        return (kind, name) in self._of

    def is_of(self, kind: Kind, name: str, party: Party) -> bool:
        """Return whether something is somebody's; from any thread."""
        return party.may("admin") or self._of.get((kind, name), OWN.name) == party.name

    def renew(self) -> None:
        """Forget whose things were that the journal has no more."""
        if self._journal is not None:
            self._of = self._journal.owners()

    def _keep(self, kind: Kind, name: str, owner: str) -> None:
        self._of[kind, name] = owner
        if self._journal is None or owner == OWN.name:
            return
        try:
            self._journal.note_owner(kind, name, owner)
        except JournalError as error:  # it holds until this bus ends
            logger.error("phase-bus bus: %s", error)


def not_yours(party: Party, what: str) -> WireError:
    """Return the error that tells somebody that something is another's."""
    return WireError(f"{what} is not {party.name!r}'s but another client's", counted_as="not_yours")
