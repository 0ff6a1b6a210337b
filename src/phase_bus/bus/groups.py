"""Consumer groups: which member works on which share, and whose commits count.

A group's work is cut into shares: the partitions of the records, and one share of all other events, whose
owner leads the group. Each share has one owner at a time. A member that comes takes shares over from
those that have more: they finish what they have begun, commit, and let go first. A member that leaves
or falls silent loses its shares at once. Each time a share is given out its token changes, and a commit
with an old token is refused: who was only asleep cannot overwrite what its successor has done.

Nothing here knows sockets or clocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum

from phase_bus.core.control import EVENTS, Assigned, Beat, Commit, GroupInfo

PARTITIONS = 16  # shares that every group has from the start; more come with the first record in them
# So many of the runs handled last are not let go of if something of them is missing, or may still come.
KEPT_INCOMPLETE = 10


class Judgement(Enum):
    """What becomes of a commit."""

    KEEP = "keep"
    REPETITION = "repetition"
    REFUSE = "refuse"


class Share:
    """One share of a group's work.

    Attributes:
        owner: the member that holds it, None for nobody.
        token: the generation in which it was given to the owner.
        target: the member that is to hold it; not the owner while that is still to let go.
        asked: the generation in which the owner was asked to let go.
        left: who let go of it last, with its token then: a last commit may come twice.
    """

    def __init__(self) -> None:
        self.owner: str | None = None
        self.token = 0
        self.target: str | None = None
        self.asked = 0
        self.left: tuple[str, int] | None = None


class Group:
    """A consumer group.

    Args:
        name: its name.
        partitions: the partitions that there are.

    Attributes:
        generation: the number of the latest assignment.
        members: the processes in it, in the order in which they came.
        refused: how many commits were refused.
        handled: the runs whose end the group has handled, and whether it handled everything.
        settings: what its members run, with which options.
    """

    def __init__(self, name: str, partitions: Iterable[int]) -> None:
        self.name = name
        self.generation = 0
        self.members: list[str] = []
        self.refused = 0
        self.handled: dict[str, bool] = {}
        self.settings = ""
        self._lost: frozenset[str] = frozenset()  # handled runs whose publishers may come back
        self._shares = {share: Share() for share in sorted({EVENTS, *partitions})}
        self._acting: dict[str, int] = {}  # the generation that each member acts upon

    def join(self, member: str) -> None:
        """Take in a member; :meth:`rebalance` gives it its shares."""
        if member not in self._acting:
            self.members.append(member)
            self._acting[member] = 0

    def leave(self, member: str) -> bool:
        """Let a member go; :meth:`rebalance` gives its shares to others. Return whether it was one.

        While there are no others they stay its own: should it have been asleep, it goes on with them.
        """
        if self._acting.pop(member, None) is None:
            return False
        self.members.remove(member)
        return True

    def add_partition(self, partition: int) -> bool:
        """Make a share of a partition; return whether it is new."""
        if partition in self._shares:
            return False
        self._shares[partition] = Share()
        return True

    def rebalance(self) -> None:
        """Share the work out among the members that there are; who has what moves as little as can be."""
        if not self.members:
            return
        for share in self._shares.values():
            share.owner = share.owner if share.owner in self._acting else None
            share.target = share.target if share.target in self._acting else None
        current = {number: share.target or share.owner for number, share in self._shares.items()}
        targets = spread(current, self.members)
        self.generation += 1
        for number, target in targets.items():
            share = self._shares[number]
            if share.target != target and share.owner is not None:
                share.asked = self.generation
            share.target = target
            self._give_if_free(share)

    def take_beat(self, beat: Beat) -> bool:
        """Take in what a member holds and has done; return whether the others need to hear of it."""
        self._acting[beat.client_id] = beat.generation
        handled = self.handled
        if self._shares[EVENTS].owner == beat.client_id and EVENTS in beat.shares:
            handled = {run_id: run_id not in beat.incomplete_runs for run_id in beat.handled_runs}
            self._lost = frozenset(beat.lost_runs)
        free = [
            share
            for number, share in self._shares.items()
            if share.owner == beat.client_id != share.target
            and beat.generation >= share.asked
            and number not in beat.shares
        ]
        changed = bool(free) or handled != self.handled
        self.generation += changed
        self.handled = handled
        for share in free:
            share.left = (beat.client_id, share.token)
            share.owner = None
            self._give_if_free(share)
        return changed

    def judge(self, member: str, commit: Commit) -> Judgement:
        """Say what a member's commit is: to be kept, a repetition of its last one, or to be refused."""
        share = self._shares.get(commit.share)
        if share is not None and (share.owner, share.token) == (member, commit.token):
            return Judgement.KEEP
        if share is not None and share.left == (member, commit.token):
            return Judgement.REPETITION
        self.refused += 1
        return Judgement.REFUSE

    def assignment(self, member: str) -> Assigned:
        """Return what a member is to work on."""
        old = len(self.handled) - KEPT_INCOMPLETE
        held = {number: share for number, share in self._shares.items() if share.owner == member}
        return Assigned(
            generation=self.generation,
            shares={n: share.token for n, share in held.items() if share.target == member},
            release=tuple(n for n, share in held.items() if share.target != member),
            handled_runs=tuple(
                run_id
                for place, (run_id, whole) in enumerate(self.handled.items())
                if (whole and run_id not in self._lost) or place < old
            ),
        )

    def is_current(self, member: str) -> bool:
        """Return whether a member acts upon the latest assignment."""
        return self._acting.get(member) == self.generation

    def shares_of(self, member: str) -> tuple[int, ...]:
        """Return the shares that a member holds."""
        return tuple(number for number, share in self._shares.items() if share.owner == member)

    def info(self) -> GroupInfo:
        """Return what others may know of it."""
        return GroupInfo(
            name=self.name,
            generation=self.generation,
            members=len(self.members),
            handled_runs=tuple(self.handled),
            incomplete_runs=tuple(run_id for run_id, whole in self.handled.items() if not whole),
            refused=self.refused,
        )

    def _give_if_free(self, share: Share) -> None:
        if share.owner is None and share.target is not None:
            share.owner = share.target
            share.token = self.generation


class Groups:
    """The consumer groups of one bus.

    Args:
        partitions: the partitions of records that the journal knows of.

    Attributes:
        by_name: the groups.
    """

    def __init__(self, partitions: Iterable[int] = ()) -> None:
        self.by_name: dict[str, Group] = {}
        self._partitions = {EVENTS, *range(PARTITIONS), *partitions}
        self._of: dict[str, Group] = {}  # by member
        self._due_s: dict[str, float] = {}  # groups to be rebalanced, and when

    def join(self, name: str, member: str, settings: str, due_s: float) -> str:
        """Take a member into a group, which is rebalanced at a time if it was not in it.

        Returns:
            Why it cannot be in the group, empty if it is.
        """
        if member in self._of:
            return ""
        group = self.by_name.get(name)
        if group is None:
            group = self.by_name[name] = Group(name, self._partitions)
        if group.members and group.settings != settings:
            return f"its members run {group.settings}, and this one would run {settings}"
        group.settings = settings
        group.join(member)
        self._of[member] = group
        self._due_s.setdefault(name, due_s)
        return ""

    def leave(self, member: str) -> None:
        """Let a member go, whose shares go to the others at once."""
        group = self._of.pop(member, None)
        if group is not None and group.leave(member):
            self._due_s[group.name] = 0.0

    def add_partition(self, partition: int) -> None:
        """Note that there are events of a partition, or such that are no records."""
        if partition not in self._partitions:
            self._partitions.add(partition)
            for group in self.by_name.values():
                if group.add_partition(partition):
                    self._due_s[group.name] = 0.0

    def of(self, member: str) -> Group | None:
        """Return the group of a member, None if it is in none."""
        return self._of.get(member)

    def next_due_s(self) -> float:
        """Return when the next group is to be rebalanced."""
        return min(self._due_s.values(), default=float("inf"))

    def rebalance_due(self, now_s: float) -> Iterator[Group]:
        """Rebalance the groups whose time has come, and yield them."""
        for name in [name for name, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[name]
            self.by_name[name].rebalance()
            yield self.by_name[name]

    def infos(self) -> tuple[GroupInfo, ...]:
        """Return what others may know of the groups."""
        return tuple(group.info() for group in self.by_name.values())


def spread(current: Mapping[int, str | None], members: Sequence[str]) -> dict[int, str | None]:
    """Return who is to have each share: evenly, and as few as possible move.

    Args:
        current: who has each share now, in the order in which they are to be given out.
        members: who is there, in the order in which they came; nobody gets anything without any.
    """
    if not members:
        return dict.fromkeys(current)
    held = Counter(owner for owner in current.values() if owner in members)
    # The first ones to come, and among them those that have most already, get what does not divide.
    least, more = divmod(len(current), len(members))
    by_held = sorted(members, key=lambda member: -held[member])
    quota = {member: least + (place < more) for place, member in enumerate(by_held)}
    spread_out: dict[int, str | None] = {}
    for share, owner in current.items():
        if owner in quota and quota[owner] > 0:
            quota[owner] -= 1
            spread_out[share] = owner
    for share in current:
        if share not in spread_out:
            member = max(members, key=lambda each: quota[each])
            quota[member] -= 1
            spread_out[share] = member
    return spread_out
