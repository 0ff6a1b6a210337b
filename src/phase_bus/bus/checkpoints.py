"""Checkpoints and dead letters of consumers, as they report them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from phase_bus.bus.groups import Group, Judgement
from phase_bus.core.control import EVENTS, Beat, ClientInfo, Commit, DeadLetterNote, Heard, Hello
from phase_bus.core.position import Lineage, Position
from phase_bus.errors import JournalError
from phase_bus.journal.rows import Checkpoint, checkpoint_name
from phase_bus.journal.writer import Journal

logger = logging.getLogger("phase_bus.bus")


class Checkpoints:
    """Keeps the checkpoints and dead letters of consumers in the journal, if there is one.

    Raises:
        JournalError: by whatever reads, if the journal cannot be read.
    """

    def __init__(self, bus_id: str, journal: Journal | None) -> None:
        self._bus_id = bus_id
        self._journal = journal
        self._lineage = Lineage() if journal is None else journal.lineage

    def see(self, consumers: Mapping[str, Sequence[str]]) -> None:
        """Note that consumers or groups are here, and which topics they take; what fails is logged."""
        if self._journal is None:
            return
        try:
            self._journal.see(consumers, time.time_ns())
        except JournalError as error:  # it is noted again from time to time
            logger.error("phase-bus bus: %s", error)

    def knows(self, name: str) -> bool:
        """Return whether a consumer or group of this name was on the bus."""
        return self._journal is not None and self._journal.knows_consumer(name)

    def has_room(self, name: str, most: int) -> bool:
        """Return whether there is room for one more name, or it has a place already.

        Raises:
            JournalError: if the journal cannot be asked, or cannot make room.
        """
        return self._journal is None or self._journal.make_room_for(name, most, time.time_ns())

    def prunings(self) -> int:
        """Return how many runs were pruned from the journal so far."""
        return 0 if self._journal is None else self._journal.prunings

    def find(self, hello: Hello) -> Checkpoint | None:
        """Return the checkpoint of a consumer that comes; a group's member has none of its own."""
        if self._journal is None or hello.role != "consumer" or hello.group:
            return None
        return self._journal.checkpoint(hello.name)

    def keep(self, client: ClientInfo, beat: Beat, group: Group | None) -> Heard:
        """Keep what a consumer says it has done, all of it in one transaction; return what to answer.

        If the journal fails that is logged, and the answer confirms nothing: the consumer says it again.
        """
        by_judgement: dict[Judgement, list[Commit]] = {judgement: [] for judgement in Judgement}
        for commit in beat.commits:
            judgement = Judgement.REFUSE if group is None else group.judge(beat.client_id, commit)
            by_judgement[judgement].append(commit)
        # What it was told under another bus, of another stream, is told anew once its place is found here.
        commits = [commit for commit in by_judgement[Judgement.KEEP] if self._is_here(commit.position)]
        position = beat.position if beat.position and self._is_here(beat.position) else None
        refused = by_judgement[Judgement.REFUSE]
        if refused:
            _log_refused(client, refused)
        if self._journal is not None and (position is not None or beat.dead_letters or commits):
            try:
                with self._journal.transaction():
                    _write(self._journal, client.name, beat, position, commits)
            except JournalError as error:
                logger.error("phase-bus bus: %s", error)
                return Heard(bus_id=self._bus_id)
        known = commits + by_judgement[Judgement.REPETITION]
        kept = {commit.share: commit.position for commit in known}
        if self._journal is not None and position is not None and not client.group:
            kept[EVENTS] = position
        letters = [*beat.dead_letters, *(letter for commit in known for letter in commit.dead_letters)]
        return Heard(
            bus_id=self._bus_id,
            dead_letters=tuple(letter.position for letter in letters),
            kept=kept,
            refused=tuple(commit.share for commit in refused),
        )

    def _is_here(self, position: Position) -> bool:
        """Return whether there is such a place: from one beyond the end a consumer would skip events."""
        head = None if self._journal is None else self._journal.head.offset
        return self._lineage.find(position, head).found == "here"

    def settle(self, letter_id: int, saved: bytes | None) -> bool:
        """Forget a dead letter that was handled after all; return whether that is kept, or else logged.

        One that is unknown is settled.
        """
        if self._journal is None:
            return False
        try:
            self._journal.settle_dead_letter(letter_id, saved)
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)  # who asked gets no answer, and says so
            return False
        return True


def _write(
    journal: Journal, name: str, beat: Beat, position: Position | None, commits: Sequence[Commit]
) -> None:
    _add_dead_letters(journal, name, beat.dead_letters)
    if position is not None:
        journal.commit(name, position, beat.saved)
    for commit in commits:
        share = checkpoint_name(name, commit.share)
        _add_dead_letters(journal, share, commit.dead_letters)
        journal.commit(share, commit.position, commit.saved)


def _add_dead_letters(journal: Journal, consumer: str, letters: Sequence[DeadLetterNote]) -> None:
    for letter in letters:
        journal.add_dead_letter(consumer, letter, time.time_ns())


def _log_refused(member: ClientInfo, commits: Sequence[Commit]) -> None:
    logger.warning(
        "phase-bus bus: group %r: late commits of the member with pid %d are refused: %s; these shares had "
        "been given to others while it was silent",
        member.group,
        member.pid,
        ", ".join(
            f"{checkpoint_name(member.group, c.share)} at offset {c.position.offset}" for c in commits
        ),
    )
