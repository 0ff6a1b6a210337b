"""What belongs to whom: a publisher's source id, a consumer's name, a run are of who had them first."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Set
from typing import Literal, TypeAlias

from phase_bus.bus.access import OWN, Party
from phase_bus.bus.limits import at_most
from phase_bus.bus.options import BusOptions
from phase_bus.errors import JournalError, WireError
from phase_bus.journal.writer import Journal

logger = logging.getLogger("phase_bus.bus")

Kind: TypeAlias = Literal["source", "consumer", "run"]
Thing: TypeAlias = tuple[str, str]
"""A kind, and a name."""

_WORDS: dict[Kind, str] = {"source": "the publisher id", "consumer": "the consumer name", "run": "the run"}


class Owners:
    """Keeps what belongs to whom, in the journal too if there is one.

    What is of who runs the bus is not written down there: whatever has no other owner is.
    """

    def __init__(self, journal: Journal | None, options: BusOptions) -> None:
        self._journal = journal
        self._options = options
        self._of: dict[Thing, str] = {} if journal is None else journal.owners()
        self._numbers = Counter(self._of.values())  # of things, by owner
        self._unkept: dict[Thing, str] = {}  # what the journal has not noted yet
        self._told = ""  # why it could not, the last time

    def check(self, kind: Kind, name: str, party: Party, *, known: bool) -> str | None:
        """Look whether somebody may use a name; return whose it is, None if it is nobody's.

        Args:
            known: whether there is such a thing already; without another owner it is of who runs the bus.

        Raises:
            WireError: if it is somebody else's, and this one is no admin.
        """
        owner = self._of.get((kind, name), OWN.name if known else None)
        if owner is not None and not party.speaks_for(owner):
            raise not_yours(party, f"{_WORDS[kind]} {name!r:.100}")
        return owner

    def claim(self, kind: Kind, name: str, party: Party, *, known: bool) -> None:
        """Let somebody use a name, which is its own from now on if there was none such.

        Raises:
            WireError: as :meth:`check`; or if it has as many names as it may have.
        """
        if self.check(kind, name, party, known=known) is not None:
            return
        number = self._numbers[party.name]
        if number >= self._options.max_names_a_client and party.name != OWN.name:
            most = at_most(self._options, "max_names_a_client")
            raise WireError(f"{party.name!r} has {number} names already ({most})", counted_as="names")
        self._of[kind, name] = party.name
        self._numbers[party.name] += 1
        if self._journal is not None and party.name != OWN.name:
            self._unkept[kind, name] = party.name

    def is_of(self, kind: Kind, name: str, party: Party) -> bool:
        """Return whether something is somebody's; from any thread."""
        return party.speaks_for(self._of.get((kind, name), OWN.name))

    def keep(self) -> None:
        """Note in the journal what is new; what fails is logged, holds, and is noted at the next call."""
        if not self._unkept or self._journal is None:
            return
        try:
            self._journal.note_owners(self._unkept)
        except JournalError as error:
            if self._told != str(error):
                logger.error("phase-bus bus: %s", error)
            self._told = str(error)
        else:
            self._unkept.clear()
            self._told = ""

    def forget(self, here: Set[Thing], *, sources: bool) -> None:
        """Forget whose things were that neither the journal has any more, nor are here.

        Args:
            sources: whether the journal may have forgotten publishers.

        Raises:
            JournalError: if it cannot be read or written.
        """
        if self._journal is None:
            gone = self._of.keys() - here
        else:
            gone = set(self._journal.forget_owners(here, sources=sources))
            # The ids of publishers of who runs the bus are noted nowhere else.
            own = (t for t, owner in self._of.items() if owner == OWN.name and t[0] != "source")
            gone |= set(own) - here
        for thing in gone - self._unkept.keys():
            owner = self._of.pop(thing, None)
            if owner is not None:
                self._numbers[owner] -= 1


def not_yours(party: Party, what: str) -> WireError:
    """Return the error that tells somebody that something is another's."""
    return WireError(f"{what} is not {party.name!r}'s but another client's", counted_as="not_yours")
