"""Keeping how far consumers have come, and what they have set aside, as they say."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec

from phase_bus.bus.groups import Group, Judgement
from phase_bus.core.control import EVENTS, Beat, ClientInfo, Commit, DeadLetterNote, Hello
from phase_bus.errors import JournalError
from phase_bus.journal.rows import Checkpoint, checkpoint_name
from phase_bus.journal.writer import Journal

logger = logging.getLogger("phase_bus.bus")


class Kept:
    """What has become of what a beat says.

    Attributes:
        dead_letters: the offsets of those that are kept now.
        shares: the shares whose commits are kept now, with the positions in these.
        refused: the shares whose commits came too late to count.
    """

    def __init__(self) -> None:
        self.dead_letters: list[int] = []
        self.shares: dict[int, int] = {}
        self.refused: list[int] = []


class Positions:
    """Keeps positions, states and dead letters of consumers in the journal.

    Args:
        journal: where; without one nothing is remembered, and nothing kept back.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    @property
    def journal_id(self) -> str:
        """Which journal the positions are of; empty without one.

        Raises:
            JournalError: it cannot be read.
        """
        return "" if self._journal is None else self._journal.journal_id

    def find(self, hello: Hello) -> Checkpoint | None:
        """Return where a consumer that comes goes on, None at the start, or if its group tells it.

        Raises:
            JournalError: it cannot be read.
        """
        if self._journal is None or hello.role != "consumer" or hello.group:
            return None
        return self._journal.checkpoint(hello.name)

    def keep(self, client: ClientInfo, beat: Beat, group: Group | None) -> Kept:
        """Keep what a consumer says it has done, all of it as one; what cannot be kept is logged.

        Args:
            client: the consumer.
            beat: what it says.
            group: the group that it is a member of.
        """
        by_judgement: dict[Judgement, list[Commit]] = {judgement: [] for judgement in Judgement}
        for commit in beat.commits:
            judgement = Judgement.REFUSE if group is None else group.judge(beat.client_id, commit)
            by_judgement[judgement].append(commit)
        commits, refused = by_judgement[Judgement.KEEP], by_judgement[Judgement.REFUSE]
        if refused:
            _tell_refused(client.group, client.pid, refused)
        kept = Kept()
        if self._journal is not None and (beat.position is not None or beat.dead_letters or commits):
            try:
                with self._journal.transaction():
                    _write(self._journal, client.name, beat, commits)
            except JournalError as error:
                logger.error("phase-bus bus: %s", error)  # the consumer says it again
                return kept
        known = commits + by_judgement[Judgement.REPETITION]
        notes = [*beat.dead_letters, *(note for commit in known for note in commit.dead_letters)]
        kept.dead_letters = [note.offset for note in notes]
        kept.shares = {commit.share: commit.position for commit in known}
        if self._journal is not None and beat.position is not None:
            kept.shares[EVENTS] = beat.position
        kept.refused = [commit.share for commit in refused]
        return kept

    def settle(self, letter_id: int, saved: bytes | None) -> bool:
        """Forget a dead letter that was handled after all; return whether that is kept, or else logged.

        Args:
            letter_id: its number; one that is unknown is settled.
            saved: the consumer's state with it, None to leave what is kept.
        """
        if self._journal is None:
            return False
        try:
            self._journal.settle_dead_letter(letter_id, saved)
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)  # who asked gets no answer, and says so
            return False
        return True


def _write(journal: Journal, name: str, beat: Beat, commits: Sequence[Commit]) -> None:
    _set_aside(journal, name, beat.dead_letters)
    if beat.position is not None:
        journal.commit(name, beat.position, beat.saved)
    for commit in commits:
        share = checkpoint_name(name, commit.share)
        _set_aside(journal, share, commit.dead_letters)
        journal.commit(share, commit.position, commit.saved)


def _tell_refused(group: str, pid: int, commits: Sequence[Commit]) -> None:
    """Log that a member's commits came too late to count."""
    logger.warning(
        "phase-bus bus: group %r: late commits of the member with pid %d are refused: %s; these had been "
        "given to others while it was silent",
        group,
        pid,
        ", ".join(f"{checkpoint_name(group, c.share)} at offset {c.position}" for c in commits),
    )


def _set_aside(journal: Journal, consumer: str, letters: Sequence[DeadLetterNote]) -> None:
    for letter in letters:
        journal.add_dead_letter(consumer=consumer, ts_ns=time.time_ns(), **msgspec.structs.asdict(letter))
