"""What answers a process around consumers in the place of a bus: out of what is kept beside the stream.

The words are those of :mod:`phase_bus.core.control`. Where a bus decides by what it remembers, a seat
decides by revisions: see :mod:`phase_bus.jetstream.keys`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from phase_bus.consumer.share import loss_of
from phase_bus.core.control import EVENTS, Beat, Endpoint, Heard, Hello, NameTaken, Refused, Reply, Welcome
from phase_bus.core.position import Lineage, Position
from phase_bus.core.session import is_gone
from phase_bus.errors import PhaseBusError
from phase_bus.events import JournalLoss
from phase_bus.jetstream.cursor import SHORT_S
from phase_bus.jetstream.keys import Keys, key_of
from phase_bus.jetstream.notes import CheckpointNote, NameNote, encode_note, keep_letters, read_note
from phase_bus.jetstream.stream import Stream
from phase_bus.journal.rows import Checkpoint

HEARTBEAT_S = 1.0  # between two beats
SILENT_AFTER_S = 10.0  # after which a process that has not changed its key counts as gone
_ATTEMPTS = 5


class Seat(Protocol):
    """Answers one process. Every method raises NatsUnreachableError if no answer comes in time.

    Attributes:
        stream: the stream as it was when it was looked at last.
    """

    stream: Stream

    async def hello(self, hello: Hello) -> Reply:
        """Let the process in, as far as it may; what it had before is forgotten."""

    async def beat(self, beat: Beat) -> list[Reply]:
        """Keep what a beat carries, and return what there is to be said."""

    async def goodbye(self, beat: Beat) -> None:
        """Keep what the last beat carries, and let others have what the process had."""


def welcome(
    stream: Stream,
    kept: Checkpoint | None = None,
    *,
    heartbeat_s: float = HEARTBEAT_S,
    silent_after_s: float = SILENT_AFTER_S,
) -> Welcome:
    """Return what lets a process in.

    Args:
        stream: as it is now.
        kept: the checkpoint of its consumer, if there is one.
    """
    return Welcome(
        bus_id=stream.id,
        events=Endpoint(),
        heartbeat_s=heartbeat_s,
        silent_after_s=silent_after_s,
        replay=Endpoint(),  # what is past can be read
        lineage=stream.lineage,
        offset=stream.last_offset,
        checkpoint=None if kept is None else kept.position,
        state=None if kept is None else kept.state,
    )


class OnlookerSeat:
    """Answers who only looks on, and keeps nothing."""

    def __init__(self, stream: Stream, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.stream = stream
        self._heartbeat_s = heartbeat_s

    async def hello(self, hello: Hello) -> Reply:  # noqa: ARG002 - anybody may look on
        """Let it in."""
        return welcome(self.stream, heartbeat_s=self._heartbeat_s)

    async def beat(self, beat: Beat) -> list[Reply]:  # noqa: ARG002 - there is nothing to keep
        """Answer."""
        return [Heard(bus_id=self.stream.id)]

    async def goodbye(self, beat: Beat) -> None:
        """Do nothing."""


class ConsumerSeat:
    """Answers a consumer on its own, and keeps its name, its checkpoint and its dead letters.

    Who has the name changes the name's key with each beat. Others take it when that has not been changed
    for a while by their own clocks, or its process is seen to have ended. They change the
    checkpoint's key first of all: if the process that had the name goes on after all, its next commit is
    refused, and it learns why.

    Args:
        keys: what is kept beside the stream.
        stream: the stream.
        heartbeat_s: how often the consumer is to beat.
        silent_after_s: how long a name has to be left alone until others may take it.
        clock: gives seconds.
    """

    def __init__(
        self,
        keys: Keys,
        stream: Stream,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        silent_after_s: float = SILENT_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self.stream = stream
        self._heartbeat_s = heartbeat_s
        self._silent_after_s = silent_after_s
        self._clock = clock
        self._note: NameNote | None = None  # what is written under its name
        self._revision = 0  # of its name's key
        self._checkpoint_revision = 0
        self._had_it = False  # whether it ever had the name
        self._losses: list[JournalLoss] = []
        self._beyond_since_s: float | None = None
        self._other: tuple[int, float] | None = None  # the revision of who has it, and when that was new

    # ---- the conversation ----

    async def hello(self, hello: Hello) -> Reply:
        """Give it its name, or say who has that."""
        mine = NameNote(
            client_id=hello.client_id,
            name=hello.name,
            pid=hello.pid,
            host=hello.host,
            pid_space=hello.pid_space,
        )
        key, value = key_of("name", hello.name), encode_note(mine)
        kept = await self._keys.get(key)
        if kept is None:
            revision = await self._keys.create(key, value)
        else:
            other = read_note(NameNote, key, kept)
            if other.client_id != hello.client_id and (taken := self._judge(other, kept.revision)):
                return taken
            revision = await self._keys.update(key, value, kept.revision)
        if revision is None:  # somebody was faster, or had it all the time
            return NameTaken(name=hello.name, pid=0, host="", answers=False)
        self._note, self._revision, self._had_it, self._other = mine, revision, True, None
        checkpoint = await self._take_over()
        if self._is_beyond(checkpoint):
            return Refused(seq=0, reason="the stream may have lost its end")
        return welcome(
            self.stream,
            None if checkpoint is None else self._find(checkpoint),
            heartbeat_s=self._heartbeat_s,
            silent_after_s=self._silent_after_s,
        )

    async def beat(self, beat: Beat) -> list[Reply]:
        """Keep what it has done, if the name is still its own."""
        note = self._note
        if note is None:
            return [Heard(bus_id=self.stream.id, known=False)]
        note = replace(note, state=beat.state, received=beat.received, failed=beat.failed)
        if (answer := await self._renew(note)) is not None:
            return [answer]
        await keep_letters(self._keys, note.name, beat.dead_letters)
        kept = {}
        if beat.position is not None and self._is_of_it(beat.position):
            if (answer := await self._commit(note, beat.position, beat.saved)) is not None:
                return [answer]
            kept[EVENTS] = beat.position
        letters = tuple(letter.position for letter in beat.dead_letters)
        return [Heard(bus_id=self.stream.id, dead_letters=letters, kept=kept)]

    async def goodbye(self, beat: Beat) -> None:
        """Keep what it has done at last, and let others have its name."""
        await self.beat(beat)
        note, self._note = self._note, None
        if note is not None:
            await self._keys.delete(key_of("name", note.name), self._revision)

    def _is_of_it(self, position: Position) -> bool:
        return position.stream in {segment.stream for segment in self.stream.lineage}

    # ---- the name ----

    def _judge(self, other: NameNote, revision: int) -> NameTaken | None:
        """Return that another has the name, and whether it is alive; None if it is not there any more."""
        if self._had_it:  # it was away, and what it knows is out of date
            return _taken_by(other, answers=True)
        if is_gone(other.pid, other.pid_space):
            return None
        now_s = self._clock()
        if self._other is None:
            self._other = revision, now_s
        before, since_s = self._other
        if revision != before:
            return _taken_by(other, answers=True)
        return None if now_s >= since_s + self._silent_after_s else _taken_by(other, answers=False)

    async def _renew(self, note: NameNote) -> Reply | None:
        """Write down that it is alive; return what there is to say if the name is not its own any more."""
        key = key_of("name", note.name)
        revision = await self._keys.update(key, encode_note(note), self._revision)
        if revision is None:
            kept = await self._keys.get(key)
            other = None if kept is None else read_note(NameNote, key, kept)
            if other is not None and other.client_id != note.client_id:
                self._note = None
                return _taken_by(other, answers=True)
            if kept is not None:  # its own, of which it has heard no more
                revision = await self._keys.update(key, encode_note(note), kept.revision)
        if revision is None:
            self._note = None
            return Heard(bus_id=self.stream.id, known=False)
        self._note, self._revision = note, revision
        return None

    # ---- the checkpoint ----

    async def _take_over(self) -> Checkpoint | None:
        """Make the checkpoint this consumer's own, and return it."""
        assert self._note is not None  # it has the name
        key = key_of("checkpoint", self._note.name)
        for _ in range(_ATTEMPTS):
            kept = await self._keys.get(key)
            found = CheckpointNote() if kept is None else read_note(CheckpointNote, key, kept)
            mine = encode_note(replace(found, owner=self._note.client_id))
            revision = await self._keys.put(key, mine, kept)
            if revision is not None:
                self._checkpoint_revision = revision
                return None if found.position is None else Checkpoint(found.position, found.saved)
        raise PhaseBusError(f"the checkpoint of {self._note.name!r} is changed by others all the time")

    def _is_beyond(self, checkpoint: Checkpoint | None) -> bool:
        """Return whether a checkpoint is beyond the stream's end, for a while: its leader may be new."""
        last = self.stream.last_offset
        if checkpoint is None or checkpoint.offset <= last or not self._is_of_it(checkpoint.position):
            self._beyond_since_s = None
            return False
        if self._beyond_since_s is None:
            self._beyond_since_s = self._clock()
        return self._clock() < self._beyond_since_s + SHORT_S

    def _find(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return a checkpoint as it is in the stream that there is now, None if that is another one."""
        lineage, position = Lineage(self.stream.lineage), checkpoint.position
        place = lineage.find(position, self.stream.last_offset)
        if (loss := loss_of(position, place, 0)) is not None:
            self._losses.append(loss)
        if place.found == "elsewhere":
            return None
        if place.found == "cut":  # of what comes again the state knows that it was handled
            position = lineage.position(place.offset)
        return Checkpoint(position, checkpoint.state)

    def take_losses(self) -> list[JournalLoss]:
        """Return what the stream has lost of what its checkpoint says was handled, each once."""
        losses, self._losses = self._losses, []
        return losses

    async def _commit(self, note: NameNote, position: Position, saved: bytes | None) -> Reply | None:
        """Keep a commit; return what there is to say if the checkpoint is another's by now."""
        key = key_of("checkpoint", note.name)
        value = encode_note(CheckpointNote(owner=note.client_id, position=position, saved=saved))
        revision = await self._keys.update(key, value, self._checkpoint_revision)
        if revision is None:
            kept = await self._keys.get(key)
            owner = "" if kept is None else read_note(CheckpointNote, key, kept).owner
            if kept is not None and owner == note.client_id:  # its own, of which it has heard no more
                revision = await self._keys.update(key, value, kept.revision)
        if revision is None:
            self._note = None
            return NameTaken(name=note.name, pid=0, host="", answers=True)
        self._checkpoint_revision = revision
        return None


def _taken_by(other: NameNote, *, answers: bool) -> NameTaken:
    return NameTaken(name=other.name, pid=other.pid, host=other.host, answers=answers)
