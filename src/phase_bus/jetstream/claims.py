"""The checkpoints of a group's shares, each of which one member at a time can change.

Who takes up a share claims its checkpoint: writes its own epoch into it, which changes the revision. Who
had the share before, and slept through that, names the old revision with its next commit, and is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from phase_bus.core.control import EVENTS, Commit
from phase_bus.core.position import Lineage
from phase_bus.jetstream.keys import Keys, key_of
from phase_bus.jetstream.notes import CheckpointNote, keep_letters, read_note
from phase_bus.journal.rows import Checkpoint, checkpoint_name

logger = logging.getLogger("phase_bus.jetstream")

_ATTEMPTS = 3  # to claim what others change meanwhile


class Claim(NamedTuple):
    """A share's checkpoint as this member left it: the epoch in it, and its revision."""

    epoch: int
    revision: int


class Claims:
    """What one member has claimed of a group's checkpoints.

    Args:
        keys: what is kept beside the stream.
        lineage: that of the stream.
        owner: the member's client id.

    Attributes:
        lineage: that of the stream, as it is by now.
        beyond: an epoch in a checkpoint that none of the group's generations explains, if the checkpoint is
            newer than what is known of the group; 0 for none.
        refused: how many commits were refused.
    """

    def __init__(self, keys: Keys, lineage: Lineage, group: str, owner: str) -> None:
        self.lineage = lineage
        self.beyond = self.refused = 0
        self._keys = keys
        self._group = group
        self._owner = owner
        self._claims: dict[int, Claim] = {}
        self._told = False  # whether it was told that the stream is not what it was
        self._seen = 0  # the latest revision among all checkpoints that were handed out

    async def claim(self, share: int, epoch: int) -> tuple[bool, Checkpoint | None]:
        """Claim a share, and return whether it is this member's now, and its checkpoint if it has one."""
        for _ in range(_ATTEMPTS):
            kept = await self._keys.get(self._key(share))
            note = CheckpointNote() if kept is None else read_note(CheckpointNote, self._key(share), kept)
            if note.epoch > epoch or (note.epoch == epoch and note.owner != self._owner):
                self.beyond = max(self.beyond, note.epoch + (note.epoch == epoch))
                return False, None
            mine = msgspec.structs.replace(note, owner=self._owner, epoch=epoch)
            if kept is not None and mine == note:
                revision: int | None = kept.revision
            else:
                revision = await self._keys.put(self._key(share), msgspec.msgpack.encode(mine), kept)
            if revision is not None:
                self._claims[share] = Claim(epoch, revision)
                return True, self._checkpoint(share, mine)
        return False, None

    async def keep(self, commit: Commit) -> bool:
        """Keep a commit; return False if the share is another's by now."""
        claim = self._claims.get(commit.share)
        if claim is None or claim.epoch != commit.token:
            return self._refuse()
        note = CheckpointNote(
            owner=self._owner, epoch=commit.token, position=commit.position, saved=commit.saved
        )
        await keep_letters(self._keys, checkpoint_name(self._group, commit.share), commit.dead_letters)
        data, key = msgspec.msgpack.encode(note), self._key(commit.share)
        revision = await self._keys.update(key, data, claim.revision)
        if revision is None:  # maybe by a commit of before, of which nothing more was heard
            kept = await self._keys.get(key)
            if kept is not None and self._is_mine(read_note(CheckpointNote, key, kept), commit):
                revision = await self._keys.update(key, data, kept.revision)
        if revision is None:
            return self._refuse()
        self._claims[commit.share] = Claim(commit.token, revision)
        return True

    async def states(self, after: Mapping[int, int]) -> dict[int, Checkpoint]:
        """Return the checkpoints of the partitions, but for those that are known.

        Args:
            after: by partition the offset that is known. Without any all are returned; else those that were
                written since the last call, and are beyond.
        """
        found: dict[int, Checkpoint] = {}
        seen = self._seen if after else 0
        for key, kept in (await self._keys.all(key_of("checkpoint", self._group), after=seen)).items():
            self._seen = max(self._seen, kept.revision)
            share = share_of(key)
            if share is None or share == EVENTS:
                continue
            checkpoint = self._checkpoint(share, read_note(CheckpointNote, key, kept))
            if checkpoint is not None and checkpoint.offset > after.get(share, -1):
                found[share] = checkpoint
        return dict(sorted(found.items()))

    def _key(self, share: int) -> str:
        return key_of("checkpoint", *checkpoint_name(self._group, share).rsplit("/", 1))

    def _checkpoint(self, share: int, note: CheckpointNote) -> Checkpoint | None:
        """Return a checkpoint with the place in the stream as it is now.

        Of a stream that was cut, or made anew, events come again at other places. The state shows which of
        them it has.
        """
        if note.position is None:
            return None
        place = self.lineage.find(note.position)
        if place.found != "here" and not self._told:
            self._told = True  # the others are likewise
            logger.error(
                "consumer group %r: the stream is %s: %s had come to its offset %d, and reads on after "
                "offset %d; likewise the other shares",
                self._group,
                "shorter than it was" if place.found == "cut" else "another one than it was",
                checkpoint_name(self._group, share),
                note.position.offset,
                place.offset,
            )
        return Checkpoint(self.lineage.position(place.offset), note.saved)

    def _is_mine(self, note: CheckpointNote, commit: Commit) -> bool:
        return (note.owner, note.epoch) == (self._owner, commit.token)

    def _refuse(self) -> bool:
        self.refused += 1
        return False


def share_of(key: str) -> int | None:
    """Return the share whose checkpoint a key is for, None if it is none of a group's."""
    share = key.rpartition(".")[2]
    if share == "events":
        return EVENTS
    return int(share) if share.isascii() and share.isdigit() else None
