"""Keeping how far consumers have come, and what they have set aside, as they say in their beats."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec

from phase_bus.bus.groups import Group
from phase_bus.bus.journal import Journal
from phase_bus.bus.journal_rows import checkpoint_name
from phase_bus.control import Beat, Commit, DeadLetterNote
from phase_bus.errors import JournalError

logger = logging.getLogger("phase_bus.bus")


class Kept:
    """What of a beat is kept now: dead letters by their offsets, and shares whose commits were."""

    def __init__(self) -> None:
        self.dead_letters: list[int] = []
        self.shares: list[int] = []
        self.refused: list[int] = []


class Positions:
    """Writes positions, states and dead letters of consumers into the journal.

    Args:
        journal: where to; without one nothing is remembered, and nothing kept back.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    def keep(self, name: str, beat: Beat, group: Group | None) -> Kept:
        """Keep what a consumer says it has done, all of it as one; what cannot be kept is logged.

        Args:
            name: the consumer's, or its group's.
            beat: what it says.
            group: the group that it is a member of.
        """
        commits = [c for c in beat.commits if group is not None and self._allowed(group, beat, c)]
        kept = Kept()
        if self._journal is not None and (beat.position is not None or beat.dead_letters or commits):
            try:
                with self._journal.transaction():
                    self._write(self._journal, name, beat, commits)
            except JournalError as error:
                logger.error("phase-bus bus: %s", error)  # the consumer says it again
                return kept
        notes = [*beat.dead_letters, *(note for commit in commits for note in commit.dead_letters)]
        kept.dead_letters = [note.offset for note in notes]
        kept.shares = [commit.share for commit in commits]
        kept.refused = [commit.share for commit in beat.commits if commit not in commits]
        return kept

    def _allowed(self, group: Group, beat: Beat, commit: Commit) -> bool:
        allowed = group.allows(beat.client_id, commit)
        if not allowed:
            logger.warning(
                "phase-bus bus: group %r: a late commit of %s at offset %d is refused: "
                "it has been given to another member",
                group.name,
                checkpoint_name(group.name, commit.share),
                commit.position,
            )
        return allowed

    def _write(self, journal: Journal, name: str, beat: Beat, commits: Sequence[Commit]) -> None:
        _set_aside(journal, name, beat.dead_letters)
        if beat.position is not None:
            journal.commit(name, beat.position, beat.saved)
        for commit in commits:
            share = checkpoint_name(name, commit.share)
            _set_aside(journal, share, commit.dead_letters)
            journal.commit(share, commit.position, commit.saved)


def _set_aside(journal: Journal, consumer: str, letters: Sequence[DeadLetterNote]) -> None:
    for letter in letters:
        journal.add_dead_letter(consumer=consumer, ts_ns=time.time_ns(), **msgspec.structs.asdict(letter))
