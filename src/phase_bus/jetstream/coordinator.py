"""Who of a consumer group works on what, decided by one of its members from what all of them have noted.

A bus looks after its groups itself. On a stream there is no bus: each member keeps a note of itself beside
the stream, and one of them, the coordinator, keeps a note of the group, by which the others learn what is
assigned to them. Who sees that this note does not change any more takes the coordinator's place. It is
written by revision, so of two coordinators only one can decide anything.

Nothing here knows NATS; times are those of :func:`time.monotonic` of one process, and never compared with
another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from phase_bus.bus.groups import Group, GroupState
from phase_bus.core.control import Assigned, Beat, Hello
from phase_bus.core.session import is_gone

_SETTLE_S = 0.2  # members that start together are to share the work at once


class MemberNote(Struct, frozen=True, kw_only=True):
    """What a member keeps beside the stream of itself, anew with each beat.

    Attributes:
        beat: its last one, without what is kept elsewhere: commits, states, dead letters.
        partitions: of the records, those that it has read of, beyond the usual ones.
        beyond: an epoch that it has met, and that no generation of the group explains; 0 for none.
        refused: how many of its commits were refused.
    """

    hello: Hello
    beat: Beat
    partitions: tuple[int, ...] = ()
    beyond: int = 0
    refused: int = 0


class GroupNote(Struct, frozen=True, kw_only=True):
    """What the coordinator keeps beside the stream of the group, anew with each of its beats.

    Attributes:
        coordinator: its client id, empty if it has left.
        pid, pid_space: where others may see that it has ended.
        seen: the revisions of the members' notes that it saw last.
        state: the group's.
    """

    coordinator: str
    pid: int
    pid_space: str
    seen: dict[str, int]
    state: GroupState

    @property
    def has_ended(self) -> bool:
        """Whether the coordinator is known to be no more."""
        return not self.coordinator or is_gone(self.pid, self.pid_space)


class Noted(NamedTuple):
    """A member's note, and its revision."""

    note: MemberNote
    revision: int


class Watch:
    """How long something has not changed, by the looks that were taken at it.

    Args:
        most_s: what one look adds at most. When nobody could look, since this process slept or NATS was
            away, the others could not change it either.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self.revision = 0
        self._looked_s = 0.0
        self.silent_s = 0.0
        self.changed = False  # since it was first looked at

    def look(self, revision: int, now_s: float) -> None:
        """Take in the revision that it has now."""
        if revision == self.revision:
            self.silent_s += min(now_s - self._looked_s, self._most_s)
        else:
            self.changed = self.revision > 0
            self.silent_s = 0.0
            self.revision = revision
        self._looked_s = now_s


class Coordinator:
    """Looks after one group: who is in it, who has fallen silent, and what each is to work on.

    Args:
        heartbeat_s: how often members beat.
        silent_after_s: after how long without a beat a member has lost its shares.
        seen: the revisions that the coordinator before saw last, ``silent_s`` ago.
    """

    def __init__(
        self,
        group: Group,
        *,
        heartbeat_s: float,
        silent_after_s: float,
        seen: Mapping[str, int] | None = None,
        silent_s: float = 0.0,
        now_s: float,
    ) -> None:
        self.group = group
        self._most_s = 2 * heartbeat_s
        self._silent_after_s = silent_after_s
        self._watches: dict[str, Watch] = {}
        for member, revision in (seen or {}).items():
            watch = self._watches[member] = Watch(self._most_s)
            watch.look(revision, now_s)
            watch.silent_s = silent_s
        self._due_s = 0.0 if group.members else None  # when the work is to be shared out
        self._seen: dict[str, int] = {}
        self._refused: dict[str, int] = {}

    @property
    def seen(self) -> dict[str, int]:
        """The revisions of the members' notes at the last look."""
        return self._seen

    def look(self, notes: Mapping[str, Noted], now_s: float) -> list[str]:
        """Take in all members' notes; return the members that have fallen silent, and are in it no more."""
        silent = [member for member, noted in notes.items() if self._is_silent(member, noted, now_s)]
        here = {member: noted.note for member, noted in notes.items() if member not in silent}
        for member in [member for member in self.group.members if member not in here]:
            self.group.leave(member)
            self._due_s = now_s
        for member, note in here.items():
            self._take_in(member, note, now_s)
        for member in self.group.members:
            self._hear(here[member], fresh=self._seen.get(member) != notes[member].revision, now_s=now_s)
        self._seen = {member: notes[member].revision for member in here}
        self._watches = {member: self._watches[member] for member in notes}
        if self._due_s is not None and self._due_s <= now_s:
            self._due_s = None
            self.group.rebalance()
        return silent

    def leave(self, member: str) -> None:
        """Let a member go at once, and share its work out."""
        if member in self.group.members:
            self.group.leave(member)
            self.group.rebalance()

    @property
    def due_s(self) -> float | None:
        """When the work is to be shared out among those that have come, None if it is."""
        return self._due_s

    def _is_silent(self, member: str, noted: Noted, now_s: float) -> bool:
        watch = self._watches.setdefault(member, Watch(self._most_s))
        watch.look(noted.revision, now_s)
        hello = noted.note.hello
        return watch.silent_s >= self._silent_after_s or is_gone(hello.pid, hello.pid_space)

    def _take_in(self, member: str, note: MemberNote, now_s: float) -> None:
        group, settings = self.group, note.hello.settings
        if member in group.members or (group.members and group.settings != settings):
            return
        group.settings = settings
        group.join(member)
        if self._due_s is None:
            self._due_s = now_s + _SETTLE_S

    def _hear(self, note: MemberNote, *, fresh: bool, now_s: float) -> None:
        group = self.group
        for partition in sorted(set(note.partitions) - group.partitions):
            group.add_partition(partition)
            self._due_s = now_s
        if note.beyond > group.generation:
            group.begin_beyond(note.beyond)
            self._due_s = now_s
        if fresh:
            member = note.hello.client_id
            group.refused += note.refused - self._refused.get(member, note.refused)
            self._refused[member] = note.refused
            group.take_beat(note.beat)


def assigned(name: str, state: GroupState, member: str, acting: int) -> Assigned | None:
    """Return what a member is to work on by a group's state, None if that is what it acts upon already."""
    if member not in state.members or state.generation == acting:
        return None
    return Group.of(name, state).assigned(member)
