"""Consumer groups: which member works on which share, and whose commits count.

A group's work is cut into shares: the partitions of the records, and one share of all other events, whose
owner leads the group. Each share is assigned to one owner at a time. A member that comes takes shares over
from those that have more: they finish what they have begun, commit, and let go first. A member that leaves
or falls silent loses its shares at once. Each assignment has a new epoch, and a commit that bears an older
one is refused: a member that was only asleep cannot overwrite what its successor has done.

Nothing here knows sockets or clocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum

from msgspec import Struct

from phase_bus.core.control import EVENTS, KEPT_LOST_RUNS, PARTITIONS, Assigned, Beat, Commit, GroupInfo

# So many of the runs handled last of which something is missing are not forgotten, since it may still come.
# Those that ended as lost are kept beside these: their publishers may come back.
KEPT_INCOMPLETE = 10
_KEPT_EMPTY = 50  # groups without members; those that were empty first are forgotten
# Members that start together are to share the work at once: it is shared out once none has come for so
# long, or after the longest time.
_SETTLE_S, _SETTLED_S = 0.1, 0.5


class Judgement(Enum):
    """What becomes of a commit."""

    KEEP = "keep"
    REPETITION = "repetition"
    REFUSE = "refuse"


class Assignment(Struct):
    """Whom one share of a group's work is assigned to.

    Attributes:
        epoch: the generation in which it was given to the owner.
        target: the member that is to hold it; not the owner while that is still to let go.
        asked: the generation in which the owner was asked to let go.
        left: who let go of it last, and in which epoch: a last commit may come twice.
    """

    owner: str | None = None
    epoch: int = 0
    target: str | None = None
    asked: int = 0
    left: tuple[str, int] | None = None

    def pass_on(self, generation: int) -> None:
        """Give the share to the member that is to hold it, if it is free."""
        if self.owner is None and self.target is not None:
            self.owner = self.target
            self.epoch = generation


class GroupState(Struct, kw_only=True):
    """All that is to be known of a group to go on with it elsewhere; see :class:`Group`.

    Attributes:
        lost: the runs among those handled whose publishers may come back.
        acting: the generation that each member acts upon.
    """

    generation: int = 0
    members: list[str] = []
    settings: str = ""
    refused: int = 0
    handled: dict[str, bool] = {}
    lost: tuple[str, ...] = ()
    assignments: dict[int, Assignment] = {}
    acting: dict[str, int] = {}


class Group:
    """A consumer group.

    Attributes:
        generation: how often its assignments changed.
        members: the processes in it, in the order in which they came.
        handled: the runs whose end the group has handled, and whether it handled everything.
    """

    def __init__(self, name: str, partitions: Iterable[int]) -> None:
        self.name = name
        self.generation = 0
        self.members: list[str] = []
        self.refused = 0
        self.handled: dict[str, bool] = {}
        self.settings = ""  # what its members run, with which options
        self._lost: frozenset[str] = frozenset()  # handled runs whose publishers may come back
        self._assignments = {share: Assignment() for share in sorted({EVENTS, *partitions})}
        self._acting: dict[str, int] = {}  # the generation that each member acts upon

    def state(self) -> GroupState:
        """Return all that is to be known to go on with it elsewhere."""
        return GroupState(
            generation=self.generation,
            members=list(self.members),
            settings=self.settings,
            refused=self.refused,
            handled=self.handled,
            lost=tuple(sorted(self._lost)),
            assignments=self._assignments,
            acting=dict(self._acting),
        )

    @classmethod
    def of(cls, name: str, state: GroupState) -> Group:
        """Return a group that goes on from a state, which is its own from now on."""
        group = cls(name, ())
        group.generation, group.members, group.settings = state.generation, state.members, state.settings
        group.refused, group.handled, group._lost = state.refused, state.handled, frozenset(state.lost)
        group._assignments, group._acting = state.assignments, state.acting
        return group

    def join(self, member: str) -> None:
        """Take in a member that is new; :meth:`rebalance` gives it its shares."""
        self.members.append(member)
        self._acting[member] = 0

    def leave(self, member: str) -> None:
        """Let a member go; :meth:`rebalance` gives its shares to others.

        While there are no others they stay its own: should it have been asleep, it goes on with them.
        """
        self.members.remove(member)
        del self._acting[member]

    def add_partition(self, partition: int) -> None:
        """Make a share of a partition that is new."""
        self._assignments[partition] = Assignment()

    @property
    def partitions(self) -> set[int]:
        """The numbers of its shares, but for that of events."""
        return set(self._assignments) - {EVENTS}

    def begin_beyond(self, generation: int) -> None:
        """Forget who has what, since a later generation is known than this group has heard of.

        What :meth:`rebalance` assigns then has epochs beyond all that there were.
        """
        self.generation = max(self.generation, generation)
        self._assignments = {share: Assignment() for share in self._assignments}

    def rebalance(self) -> None:
        """Share the work out among the members that there are; as few shares as possible move."""
        if not self.members:
            return
        for each in self._assignments.values():
            each.owner = each.owner if each.owner in self._acting else None
            each.target = each.target if each.target in self._acting else None
        current = {share: each.target or each.owner for share, each in self._assignments.items()}
        targets = spread(current, self.members)
        self.generation += 1
        for share, target in targets.items():
            assignment = self._assignments[share]
            if assignment.target != target and assignment.owner is not None:
                assignment.asked = self.generation
            assignment.target = target
            assignment.pass_on(self.generation)

    def take_beat(self, beat: Beat) -> bool:
        """Take in what a member holds and has done; return whether the others need to hear of it."""
        member = beat.client_id
        self._acting[member] = beat.generation
        handled = self.handled
        if self._assignments[EVENTS].owner == member and EVENTS in beat.shares:
            handled = {run_id: run_id not in beat.incomplete_runs for run_id in beat.handled_runs}
            self._lost = frozenset(beat.lost_runs)
        free = [
            assignment
            for share, assignment in self._assignments.items()
            if assignment.owner == member != assignment.target
            and beat.generation >= assignment.asked
            and share not in beat.shares
        ]
        changed = bool(free) or handled != self.handled
        self.generation += changed
        self.handled = handled
        for assignment in free:
            assignment.left = (member, assignment.epoch)
            assignment.owner = None
            assignment.pass_on(self.generation)
        return changed

    def forget_handled(self, run_ids: set[str]) -> None:
        """Forget that runs were handled that go on."""
        if not run_ids.isdisjoint(self.handled):
            self.handled = {each: whole for each, whole in self.handled.items() if each not in run_ids}
            self.generation += 1  # so that members do not let go of them

    def judge(self, member: str, commit: Commit) -> Judgement:
        """Return what becomes of a member's commit: a repetition is of the last one before it let go."""
        assignment = self._assignments.get(commit.share)
        if assignment is not None:
            if (assignment.owner, assignment.epoch) == (member, commit.token):
                return Judgement.KEEP
            if assignment.left == (member, commit.token):
                return Judgement.REPETITION
        self.refused += 1
        return Judgement.REFUSE

    def assigned(self, member: str) -> Assigned:
        """Return what a member is to work on."""
        lost = [run_id for run_id in self.handled if run_id in self._lost]
        missing = [
            run_id for run_id, whole in self.handled.items() if not whole and run_id not in self._lost
        ]
        kept = {*lost[-KEPT_LOST_RUNS:], *missing[-KEPT_INCOMPLETE:]}
        held = {share: self._assignments[share] for share in self.shares_of(member)}
        return Assigned(
            generation=self.generation,
            shares={share: each.epoch for share, each in held.items() if each.target == member},
            release=tuple(share for share, each in held.items() if each.target != member),
            handled_runs=tuple(run_id for run_id in self.handled if run_id not in kept),
        )

    def is_current(self, member: str) -> bool:
        """Return whether a member acts upon the latest generation."""
        return self._acting.get(member) == self.generation

    def shares_of(self, member: str) -> tuple[int, ...]:
        """Return the shares that a member holds."""
        return tuple(share for share, each in self._assignments.items() if each.owner == member)

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


class Groups:
    """The consumer groups of one bus.

    Times are those of :func:`time.monotonic`, given by the caller.

    Args:
        tell: sends a member what it is to work on.
        crowd_until_s: when members from before a restart of the bus should be back: until then the work is
            not shared out among the first ones.
    """

    def __init__(
        self,
        partitions: Iterable[int],
        tell: Callable[[str, Assigned], None],
        crowd_until_s: float = 0.0,
    ) -> None:
        self._tell = tell
        self._crowd_until_s = crowd_until_s
        self._by_name: dict[str, Group] = {}
        self._partitions = {EVENTS, *range(PARTITIONS), *partitions}
        self._of: dict[str, Group] = {}  # by member
        self._due_s: dict[str, float] = {}  # groups to be rebalanced, and when
        self._first_s: dict[str, float] = {}  # when the first came of the members that it waits for

    def join(self, name: str, member: str, settings: str, now_s: float) -> None:
        """Take a member into a group, which is soon rebalanced, or tell it why it cannot be in it."""
        if member in self._of:
            return
        group = self._by_name.get(name)
        if group is None:
            group = self._by_name[name] = Group(name, self._partitions)
        if group.members and group.settings != settings:
            problem = f"its members run {group.settings}, and this one would run {settings}"
            self._tell(member, Assigned(problem=problem))
            return
        group.settings = settings
        group.join(member)
        self._of[member] = group
        if name in self._first_s or name not in self._due_s:
            first_s = self._first_s.setdefault(name, now_s)
            settled_s = min(now_s + _SETTLE_S, first_s + _SETTLED_S)
            self._due_s[name] = max(settled_s, self._crowd_until_s)

    def leave(self, member: str, now_s: float) -> None:
        """Let a client go; the shares of a member go to the others at once."""
        group = self._of.pop(member, None)
        if group is not None:
            group.leave(member)
            self._due_s[group.name] = 0.0
            self._forget_empty()
        self.share_out(now_s)

    def take_beat(self, beat: Beat) -> None:
        """Take in what a member holds and has done, and tell it, or all if need be, what follows."""
        group = self._of.get(beat.client_id)
        if group is not None:
            changed = group.take_beat(beat)
            self._assign(group, group.members if changed else [beat.client_id])

    def forget_handled(self, run_ids: set[str]) -> None:
        """Forget that runs were handled that go on."""
        for group in self._by_name.values():
            group.forget_handled(run_ids)

    def add_partition(self, partition: int) -> None:
        """Note that there are events of a partition, or events that are no records."""
        if partition not in self._partitions:
            self._partitions.add(partition)
            for group in self._by_name.values():
                group.add_partition(partition)
                self._due_s[group.name] = 0.0

    def of(self, member: str) -> Group | None:
        """Return the group of a member, None if it is in none."""
        return self._of.get(member)

    def shares_of(self, member: str) -> tuple[int, ...]:
        """Return the shares that a client holds in its group."""
        group = self._of.get(member)
        return () if group is None else group.shares_of(member)

    def next_due_s(self) -> float:
        """Return when the next group is to be rebalanced."""
        return min(self._due_s.values(), default=float("inf"))

    def share_out(self, now_s: float) -> None:
        """Rebalance the groups whose time has come, and tell their members."""
        for name in [name for name, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[name]
            self._first_s.pop(name, None)
            group = self._by_name[name]
            group.rebalance()
            self._assign(group, group.members)

    def all(self) -> list[Group]:
        """Return the groups."""
        return list(self._by_name.values())

    def _forget_empty(self) -> None:
        empty = [name for name, group in self._by_name.items() if not group.members]
        for name in empty[:-_KEPT_EMPTY]:
            del self._by_name[name]
            self._due_s.pop(name, None)
            self._first_s.pop(name, None)

    def _assign(self, group: Group, members: Iterable[str]) -> None:
        """Tell members what they are to work on, unless they act upon it already."""
        for member in members:
            if not group.is_current(member):
                self._tell(member, group.assigned(member))


def spread(current: Mapping[int, str | None], members: Sequence[str]) -> dict[int, str]:
    """Return who is to have each share: evenly, and as few as possible move.

    Shares are given out in the order of ``current``, which says who has them now; members are in the order
    in which they came. There must be one.
    """
    held = Counter(owner for owner in current.values() if owner in members)
    # The first ones to come, and among them those that have most already, get what does not divide.
    least, more = divmod(len(current), len(members))
    by_held = sorted(members, key=lambda member: -held[member])
    quota = {member: least + (place < more) for place, member in enumerate(by_held)}
    spread_out: dict[int, str] = {}
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
