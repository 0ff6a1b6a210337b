"""What a member of a consumer group holds, and what it and the bus say of that; no socket in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from phase_bus.consumer.dispatcher import KEPT_JOURNAL_LOSSES, HandledEnd
from phase_bus.consumer.leader import GroupLeader
from phase_bus.consumer.share import Share, loss_of
from phase_bus.core.control import EVENTS, Assigned, Beat, Commit, Heard, State
from phase_bus.core.position import Lineage, Position
from phase_bus.events import JournalLoss

logger = logging.getLogger("phase_bus.consumer")

_BEAT_BYTES = 512 << 10  # of commits in one beat at most: a bus refuses messages that are too large


class Client(Protocol):
    """What a beat says of the process itself."""

    client_id: str
    state: State


class Holdings:
    """The shares of one member, and their commits until the bus has confirmed them.

    Attributes:
        shares: what the member works on, by number; also what it has lost, until that is dropped.
        leader: what it does as the group's leader, None while it is not.
        assigned: the latest assignment, None while the bus is to give one.
        generation: that of the assignment that is acted upon.
        journal_losses: what the member learned that the journal lost, the latest ones.
    """

    def __init__(self, group: str) -> None:
        self.shares: dict[int, Share] = {}
        self.leader: GroupLeader | None = None
        self.assigned: Assigned | None = None
        self.generation = 0
        self.journal_losses: list[JournalLoss] = []
        self._untold: list[JournalLoss] = []
        self._group = group
        self._released: dict[int, Commit] = {}  # last commits of shares that are let go

    def add(self, share: Share) -> None:
        """Work on a share, which stands where its last owner left it."""
        self.shares[share.view.number] = share
        if share.leads:
            self.leader = GroupLeader(self._group, share)
            while self._untold:
                share.dispatcher.note_journal_loss(self._untold.pop(0))

    def remove(self, share: Share) -> None:
        """Work on it no more."""
        del self.shares[share.view.number]
        if share.leads:
            self.leader = None

    @property
    def held(self) -> list[Share]:
        """The shares that are not lost."""
        return [share for share in self.shares.values() if not share.lost]

    @property
    def lost(self) -> list[Share]:
        """The shares that are somebody else's, and to be dropped."""
        return [share for share in self.shares.values() if share.lost]

    @property
    def missing(self) -> list[int]:
        """The shares that are to be taken up.

        One that was just let go of is not read back before the bus has its last commit.
        """
        if self.assigned is None:
            return []
        return [n for n in self.assigned.shares if n not in self.shares and n not in self._released]

    def is_assigned(self, share: Share) -> bool:
        """Return whether a share is this member's as far as the bus has said, if only to release it."""
        assigned, number = self.assigned, share.view.number
        if share.lost or assigned is None:
            return False
        return assigned.shares.get(number) == share.view.epoch or number in assigned.release

    def reads_journal(self, share: Share) -> bool:
        """Return whether the next event of a share comes from the journal, and may come now."""
        if share.lost or not share.follower.replaying:
            return False
        return not share.leads or self.leader is None or self.leader.held_back is None

    def begin_anew(self, *, lose_all: bool) -> None:
        """Wait for another assignment: it shows whether the shares are still this member's.

        With ``lose_all`` they are not: another bus has given nothing to anybody yet.
        """
        self.assigned, self.generation = None, 0
        if lose_all:
            self._released.clear()
            for share in self.shares.values():
                share.lost = True

    def move(self, lineage: Lineage) -> None:
        """Take note of what another bus's journal lacks of what the shares had come to.

        Its checkpoints are where they begin anew.
        """
        furthest: dict[str, tuple[Position, int]] = {}
        for share in self.shares.values():
            at, known = share.position, share.follower.known_offset
            before, known_before = furthest.get(at.stream, (at, known))
            furthest[at.stream] = (max(before, at, key=lambda each: each.offset), max(known, known_before))
        for position, known in furthest.values():
            loss = loss_of(position, lineage.find(position), known)
            if loss is not None:
                logger.error("consumer group %r: %s", self._group, loss)
                self.journal_losses = [*self.journal_losses, loss][-KEPT_JOURNAL_LOSSES:]
                self._untold = [*self._untold, loss][-KEPT_JOURNAL_LOSSES:]

    # ---- what the bus is told, and says ----

    def release(self, share: Share) -> None:
        """Keep a share's last commit for the bus, while the share itself is dropped."""
        if share.commit is not None:
            self._released[share.view.number] = share.commit

    @property
    def commits(self) -> list[Commit]:
        """What the bus has not confirmed yet."""
        held = [share.commit for share in self.held if share.commit is not None]
        return [*self._released.values(), *held]

    def beat(self, member: Client) -> Beat:
        """Return what the bus is to know now, with as many commits as it has room for."""
        held = self.held
        commits = tuple(_first(self.commits, _BEAT_BYTES))
        for share in held:
            if share.commit in commits:
                share.tell()
        handled = {} if self.leader is None else self.leader.handled
        journal_losses = [*self.journal_losses, *(loss for share in held for loss in share.journal_losses)]
        return Beat(
            client_id=member.client_id,
            state=member.state,
            **told(handled),
            received=sum(share.dispatcher.received for share in held),
            failed=sum(share.dispatcher.failed for share in held),
            journal_losses=tuple(journal_losses[-KEPT_JOURNAL_LOSSES:]),
            generation=self.generation,
            shares=tuple(share.view.number for share in held),
            commits=commits,
        )

    def take_ack(self, heard: Heard) -> bool:
        """Take in which commits the bus has kept or refused; return whether it is to be told more now."""
        news = False
        for number, position in heard.kept.items():
            if number in self._released and self._released[number].position == position:
                del self._released[number]
            if share := self.shares.get(number):
                share.dispatcher.forget_dead_letters(heard.dead_letters)
                if share.confirm(position) and number == EVENTS and self.leader is not None:
                    news = self.leader.confirm()
        for number in heard.refused:
            if self._released.pop(number, None) is None and number in self.shares:
                self.shares[number].lost = True
        # Some commits may not have had room in the last beat.
        return news or bool((heard.kept or heard.refused) and self.commits)


def told(handled: Mapping[str, HandledEnd]) -> dict[str, Any]:
    """Return what a beat says of the runs whose end is handled."""
    return {
        "handled_runs": tuple(handled),
        "handled_ends": tuple(end.offset for end in handled.values()),
        "incomplete_runs": tuple(run_id for run_id, end in handled.items() if not end.whole),
        "lost_runs": tuple(run_id for run_id, end in handled.items() if end.lost),
    }


def _first(commits: Iterable[Commit], limit_bytes: int) -> Iterator[Commit]:
    """Yield the first commits, and at least one, up to a size."""
    size_bytes = 0
    for commit in commits:
        size_bytes += len(commit.saved or b"")
        if size_bytes > limit_bytes and size_bytes > len(commit.saved or b""):
            return
        yield commit
