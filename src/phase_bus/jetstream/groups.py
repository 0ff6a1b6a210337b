"""A member of a consumer group, answered out of what is kept beside the stream.

With each beat a member keeps its commits, then a note of itself, then reads the note of the group, by which
it learns what is assigned to it. One of the members writes that one: see
:mod:`~phase_bus.jetstream.coordinator`. All of it goes by revisions: an old coordinator, or an old owner of
a share, that slept through being replaced, cannot write any more, whatever it believes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from phase_bus.bus.groups import Group, GroupState
from phase_bus.consumer.transport import Piece
from phase_bus.core.control import PARTITIONS, Assigned, Beat, Commit, Heard, Hello, Reply
from phase_bus.core.position import Lineage
from phase_bus.core.session import pid_space
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import NO_PARTITION, decode_event, partition_of, topic_prefix
from phase_bus.errors import WireError
from phase_bus.events import RunComplete
from phase_bus.jetstream.claims import Claims
from phase_bus.jetstream.coordinator import (
    Coordinator,
    GroupNote,
    MemberNote,
    Noted,
    Watch,
    assigned,
)
from phase_bus.jetstream.ends import Ends
from phase_bus.jetstream.keys import Kept, Keys, key_of
from phase_bus.jetstream.seats import HEARTBEAT_S, SILENT_AFTER_S, welcome
from phase_bus.jetstream.stream import Stream
from phase_bus.journal.rows import Checkpoint, checkpoint_name

logger = logging.getLogger("phase_bus.jetstream")

_RUN_COMPLETE = topic_prefix(RunComplete.kind)
_SOON_S = 0.1  # until the next beat of who waits for a share
_SOON_S_A_MEMBER = 0.02


class GroupSeat:
    """Answers one member of a group.

    Args:
        keys: what is kept beside the stream.
        stream: the stream.
        ends: tells which of the runs that were handled go on.
        group: the group's name.
        client_id: the member's.
        heartbeat_s: how often members beat.
        silent_after_s: after how long without a beat others take over what a member had.
        clock: the time in seconds, as of :func:`time.monotonic`.

    Attributes:
        stream: the stream as it is by now.
        soon_s: in how many seconds the member should beat again, since something is about to change.
    """

    def __init__(
        self,
        keys: Keys,
        stream: Stream,
        ends: Ends,
        group: str,
        client_id: str,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        silent_after_s: float = SILENT_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self.soon_s = heartbeat_s
        self._keys = keys
        self._ends = ends
        self._clock = clock
        self._group = group
        self._me = client_id
        self._heartbeat_s = heartbeat_s
        self._silent_after_s = silent_after_s
        self._hello: Hello | None = None
        self._claims = Claims(keys, Lineage(stream.lineage), group, client_id)
        self._own: MemberNote | None = None  # what was noted of this member last
        self._noted = 0  # the revision of that, 0 if there is none
        self._lease = Watch(2 * heartbeat_s)  # over the note of the group
        self._coordinator: Coordinator | None = None  # while it is this member
        self._assigned = Assigned()  # what the member was told last
        self._partitions: set[int] = set()  # that it has read of
        self._complaints = Throttle(logger)

    # ---- the conversation ----

    async def hello(self, hello: Hello) -> Reply:
        """Let the member in; what it has claimed it may still have."""
        self._hello = hello
        self._claims.lineage = Lineage(self.stream.lineage)
        self._lease = Watch(2 * self._heartbeat_s)
        self._coordinator = None
        self._assigned = Assigned()
        return welcome(self.stream, heartbeat_s=self._heartbeat_s, silent_after_s=self._silent_after_s)

    async def beat(self, beat: Beat) -> list[Reply]:
        """Keep what the member has done, and return what it is to work on, if that has changed."""
        heard = await self._keep(beat.commits)
        if not await self._note(beat):
            return [msgspec.structs.replace(heard, known=False)]
        state = await self._look()
        self.soon_s = self._heartbeat_s if state is None else self._wait_s(state)
        told = None if state is None else self._told(state, beat.generation)
        if told is None:
            return [heard]
        self._assigned = told
        return [heard, told]

    async def goodbye(self, beat: Beat) -> None:
        """Keep what the member has done at last, and let others have its shares."""
        await self._keep(beat.commits)
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            coordinator.leave(self._me)
            kept = await self._keys.get(self._key)
            if kept is not None and kept.revision == self._lease.revision:
                await self._decide(coordinator, kept, stays=False)
        if self._noted:
            await self._keys.delete(self._member_key(self._me), self._noted)

    async def states(self, after: Mapping[int, int], only: int | None) -> dict[int, Checkpoint] | None:
        """Return the group's checkpoints; see :meth:`~phase_bus.consumer.transport.Transport.fetch_states`.

        That of one share alone is asked for by who is to work on it, and claimed for that.
        """
        if only is None:
            return await self._claims.states(after)
        epoch = self._assigned.shares.get(only)
        if epoch is None:
            return None
        mine, checkpoint = await self._claims.claim(only, epoch)
        if not mine:
            return None
        return {} if checkpoint is None else {only: checkpoint}

    def see(self, piece: Piece) -> None:
        """Take in what the leader of the group reads: the end of a run says what partitions there are.

        One that is not among the usual ones becomes a share of the group's work.
        """
        for arrival in piece.arrivals:
            if not arrival.topic.startswith(_RUN_COMPLETE):
                continue
            with suppress(WireError):
                end = decode_event(arrival.topic, arrival.payload)
                if isinstance(end, RunComplete):
                    partitions = {partition_of(name.encode()) for name in end.published}
                    self._partitions |= partitions - {NO_PARTITION, *range(PARTITIONS)}

    # ---- what the member has done ----

    async def _keep(self, commits: Sequence[Commit]) -> Heard:
        # What it commits of a stream that was cut, or made anew, it is to begin anew.
        lineage = self._claims.lineage
        here = [commit for commit in commits if lineage.find(commit.position).found == "here"]
        # All of them are waited for, so that none is still under way when it is said once more.
        kept = await asyncio.gather(*(self._claims.keep(commit) for commit in here), return_exceptions=True)
        for each in kept:
            if isinstance(each, BaseException):
                raise each
        done = [commit for commit, is_kept in zip(here, kept, strict=True) if is_kept]
        late = [commit for commit, is_kept in zip(here, kept, strict=True) if not is_kept]
        for commit in late:
            logger.warning(
                "consumer group %r: a late commit of %s at offset %d is refused: it was given to another "
                "member while this one was silent",
                self._group,
                checkpoint_name(self._group, commit.share),
                commit.position.offset,
            )
        return Heard(
            bus_id=self.stream.id,
            kept={commit.share: commit.position for commit in done},
            refused=tuple(commit.share for commit in late),
            dead_letters=tuple(letter.position for commit in done for letter in commit.dead_letters),
        )

    async def _note(self, beat: Beat) -> bool:
        """Note what the member says of itself; return False if it was taken for gone meanwhile."""
        assert self._hello is not None  # it has said so before it beats
        beat = await self._ends.without_going_on(beat)
        note = MemberNote(
            hello=self._hello,
            beat=msgspec.structs.replace(beat, commits=(), saved=None, dead_letters=()),
            partitions=tuple(sorted(self._partitions)),
            beyond=self._claims.beyond,
            refused=self._claims.refused,
        )
        key, data = self._member_key(self._me), msgspec.msgpack.encode(note)
        if self._noted:
            revision = await self._keys.update(key, data, self._noted)
        else:
            revision = await self._keys.create(key, data)
        if revision is None:
            # Nobody else writes it; but nothing may have been heard of what became of the last one.
            kept = await self._keys.get(key)
            if kept is None:
                self._noted = 0
                return False
            revision = await self._keys.update(key, data, kept.revision)
        self._own, self._noted = note, revision or 0
        return revision is not None

    # ---- the group ----

    async def _look(self) -> GroupState | None:
        """Return how the group is now; if it is this member's to look after, do so."""
        kept = await self._keys.get(self._key)
        now_s = self._clock()
        note = None if kept is None else self._read(kept)
        mine = kept is not None and kept.revision == self._lease.revision
        coordinator, self._coordinator = self._coordinator if mine else None, None
        if kept is not None:
            self._lease.look(kept.revision, now_s)
        if coordinator is None:
            if note is not None and not self._may_take_over(note):
                return note.state
            coordinator = self._begin(note, now_s)
        notes = await self._notes()
        silent = coordinator.look(notes, self._clock())
        state = await self._decide(coordinator, kept)
        if state is None:
            return None  # another was faster
        self._coordinator = coordinator
        for member in silent:
            await self._keys.delete(self._member_key(member), notes[member].revision)
        return state

    def _may_take_over(self, note: GroupNote) -> bool:
        gone = note.has_ended or self._lease.silent_s >= self._silent_after_s
        return gone or note.coordinator == self._me  # of which it has heard no more

    def _begin(self, note: GroupNote | None, now_s: float) -> Coordinator:
        group = Group(self._group, range(PARTITIONS)) if note is None else Group.of(self._group, note.state)
        return Coordinator(
            group,
            heartbeat_s=self._heartbeat_s,
            silent_after_s=self._silent_after_s,
            seen={} if note is None else note.seen,
            silent_s=self._lease.silent_s,
            now_s=now_s,
        )

    async def _decide(
        self, coordinator: Coordinator, kept: Kept | None, *, stays: bool = True
    ) -> GroupState | None:
        """Write down what the coordinator has decided; return it, None if another has done so meanwhile."""
        note = GroupNote(
            coordinator=self._me if stays else "",
            pid=os.getpid(),
            pid_space=pid_space(),
            seen=coordinator.seen,
            state=coordinator.group.state(),
        )
        data = msgspec.msgpack.encode(note)
        revision = await self._keys.put(self._key, data, kept)
        if revision is None:
            return None
        self._lease.look(revision, self._clock())
        return note.state

    async def _notes(self) -> dict[str, Noted]:
        notes: dict[str, Noted] = {}
        for key, kept in (await self._keys.all(key_of("member", self._group))).items():
            try:
                note = msgspec.msgpack.decode(kept.value, type=MemberNote)
            except msgspec.MsgspecError as error:
                self._complaints.warn("consumer group %r: key %s: %s; skipped", self._group, key, error)
                continue
            notes[note.hello.client_id] = Noted(note, kept.revision)
        if self._own is not None:  # the server that answered may not have heard of it yet
            notes[self._me] = Noted(self._own, self._noted)
        return notes

    # ---- what the member hears ----

    def _told(self, state: GroupState, acting: int) -> Assigned | None:
        """Return what the member is to be told, None for nothing new."""
        assert self._hello is not None  # it has said so before it beats
        mine, theirs = self._hello.settings, state.settings
        alive = self._lease.changed or self._coordinator is not None
        if state.members and self._me not in state.members and mine != theirs and alive:
            return Assigned(problem=f"its members run {theirs}, and this one would run {mine}")
        return assigned(self._group, state, self._me, acting)

    def _wait_s(self, state: GroupState) -> float:
        """Return after how many seconds to beat again; the more members there are, the less they hurry."""
        moving = [each.target for each in state.assignments.values() if each.target != each.owner]
        coordinator = self._coordinator
        waits = self._me in moving if coordinator is None else moving or coordinator.due_s is not None
        if self._me in state.members and not waits:
            return self._heartbeat_s
        return min(max(_SOON_S, _SOON_S_A_MEMBER * len(state.members)), self._heartbeat_s)

    def _read(self, kept: Kept) -> GroupNote | None:
        try:
            return msgspec.msgpack.decode(kept.value, type=GroupNote)
        except msgspec.MsgspecError as error:
            self._complaints.warn(
                "consumer group %r: what is noted of it beside the stream cannot be read (%s); its work is "
                "shared out anew",
                self._group,
                error,
            )
            return None

    @property
    def _key(self) -> str:
        return key_of("group", self._group)

    def _member_key(self, member: str) -> str:
        return key_of("member", self._group, member)
