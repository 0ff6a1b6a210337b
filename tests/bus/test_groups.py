"""Who is assigned what, and whose commit counts: the bus's side of groups, without sockets, at random."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from phase_bus.bus.groups import KEPT_INCOMPLETE, Group, Groups, Judgement, spread
from phase_bus.core.control import EVENTS, KEPT_LOST_RUNS, Assigned, Beat, Commit
from phase_bus.core.position import Position

PARTITIONS = range(4)
SHARES = {EVENTS, *PARTITIONS}
NAMES = [f"{letter}" for letter in "abcdefg"]


SOMEWHERE = Position("a" * 32, 5)


@given(
    st.dictionaries(st.integers(-1, 20), st.sampled_from([*NAMES, None]), min_size=1),
    st.lists(st.sampled_from(NAMES), unique=True, min_size=1),
)
def test_work_is_spread_evenly_and_moves_little(current: dict[int, str | None], members: list[str]) -> None:
    """Nobody has two more than another; a member within its quota keeps everything."""
    found = spread(current, members)
    counts = Counter(dict.fromkeys(members, 0))
    counts.update(owner for owner in found.values() if owner is not None)
    assert found.keys() == current.keys()
    assert set(counts) == set(members)
    assert max(counts.values()) - min(counts.values()) <= 1
    most = -(-len(current) // len(members))
    had = Counter(owner for owner in current.values() if owner in members)
    for member in members:
        kept = sum(found[share] == owner == member for share, owner in current.items())
        assert kept >= min(had[member], len(current) // len(members))
        assert kept <= most


class GroupMachine(RuleBasedStateMachine):
    """Members that come, beat, commit, fall silent, and wake with old tokens.

    The model is who may write: of all that ever held a share, one only, the last that took it up.
    """

    @initialize()
    def begin(self) -> None:
        self.group = Group("g", PARTITIONS)
        self.told: dict[str, Assigned] = {}  # what each member acts upon
        self.holds: dict[str, dict[int, int]] = {}  # shares and tokens, as the member believes
        self.asleep: dict[str, dict[int, int]] = {}
        self.last: str | None = None  # who was the last to leave: nobody has come since

    @rule(member=st.sampled_from(NAMES))
    def join(self, member: str) -> None:
        if member not in self.holds and member not in self.asleep:
            self.group.join(member)
            self.group.rebalance()
            self.holds[member] = {}
            self.last = None

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), quiet=st.booleans())
    def leave(self, data: st.DataObject, quiet: bool) -> None:
        member = data.draw(st.sampled_from(sorted(self.holds)))
        held = self.holds.pop(member)
        self.group.leave(member)
        self.told.pop(member, None)
        self.group.rebalance()
        if quiet:
            self.asleep[member] = held
        if not self.holds:
            self.last = member

    @precondition(lambda self: self.asleep)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        """Nothing that it commits counts, if others were there; it comes back as a new one."""
        member = data.draw(st.sampled_from(sorted(self.asleep)))
        expected = Judgement.KEEP if member == self.last else Judgement.REFUSE
        for share, token in self.asleep.pop(member).items():
            assert self.commit(member, share, token) is expected
        self.join(member)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """A member commits, hears of its assignment, and beats."""
        self.step(data.draw(st.sampled_from(sorted(self.holds))))

    def step(self, member: str) -> None:
        assigned = self.group.assigned(member)
        held = self.holds[member]
        for share, token in list(held.items()):
            if assigned.shares.get(share) == token or share in assigned.release:
                assert self.commit(member, share, token) is Judgement.KEEP
            if assigned.shares.get(share) != token:
                del held[share]
        held.update(assigned.shares)
        self.told[member] = assigned
        self.group.take_beat(
            Beat(client_id=member, state="ready", generation=assigned.generation, shares=tuple(held))
        )

    def commit(self, member: str, share: int, token: int) -> Judgement:
        return self.group.judge(member, Commit(share=share, token=token, position=SOMEWHERE))

    @invariant()
    def one_owner(self) -> None:
        if not hasattr(self, "group"):
            return
        owned = [share for member in self.holds for share in self.group.shares_of(member)]
        assert len(owned) == len(set(owned))
        for member, held in self.holds.items():
            writable = {s for s, t in held.items() if self.may_write(member, s, t)}
            for other, others in self.holds.items():
                if other != member:
                    assert not writable & {s for s, t in others.items() if self.may_write(other, s, t)}

    def may_write(self, member: str, share: int, token: int) -> bool:
        refused = self.group.refused
        judged = self.commit(member, share, token)
        self.group.refused = refused
        return judged is Judgement.KEEP

    @precondition(lambda self: self.holds)
    @rule()
    def settle(self) -> None:
        """Once everybody has sent two beats, all the work is assigned, evenly."""
        for _ in range(3):
            for member in list(self.holds):
                self.step(member)
        sizes = [len(held) for held in self.holds.values()]
        assert {share for held in self.holds.values() for share in held} == SHARES
        assert sum(sizes) == len(SHARES)
        assert max(sizes) - min(sizes) <= 1


GroupMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestGroupMachine = GroupMachine.TestCase


def test_a_last_commit_that_comes_twice() -> None:
    """It does not count as late: the answer to the first was still on its way."""
    group = Group("g", [0])
    group.join("a")
    group.rebalance()
    commit = Commit(share=0, token=group.assigned("a").shares[0], position=SOMEWHERE)
    group.join("b")
    group.rebalance()
    assert group.assigned("a").release == (0,)
    assert group.judge("a", commit) is Judgement.KEEP
    group.take_beat(Beat(client_id="a", state="ready", generation=group.generation, shares=(EVENTS,)))
    assert group.assigned("b").shares.keys() == {0}
    assert group.judge("a", commit) is Judgement.REPETITION
    assert group.refused == 0


def test_handled_runs_are_the_leaders() -> None:
    """What others say of runs does not count, and a run with losses is not to be forgotten."""
    group = Group("g", [0])
    for member in "ab":
        group.join(member)
    group.rebalance()
    leader, other = ("a", "b") if EVENTS in group.assigned("a").shares else ("b", "a")
    for member, shares in ((other, (0,)), (leader, (EVENTS,))):
        beat = Beat(
            client_id=member,
            state="ready",
            generation=group.generation,
            shares=shares,
            handled_runs=("r1", "r2"),
            incomplete_runs=("r2",),
        )
        group.take_beat(beat)
        assert bool(group.info().handled_runs) is (member == leader)
    assert group.info().incomplete_runs == ("r2",)
    assert group.assigned(other).handled_runs == ("r1",)


def test_members_that_start_together_share_at_once() -> None:
    """The first is not given everything only to let go of most of it."""
    told: dict[str, Assigned] = {}
    groups = Groups((), told.__setitem__)
    groups.join("g", "a", "", now_s=10.0)
    groups.join("g", "b", "", now_s=10.1)
    assert groups.next_due_s() == pytest.approx(10.2)
    groups.share_out(10.1)
    assert told == {}
    groups.share_out(10.3)
    assert sorted(len(assigned.shares) for assigned in told.values()) == [8, 9]
    assert not any(assigned.release for assigned in told.values())
    groups.leave("a", 10.3)
    assert len(told["b"].shares) == 17


def test_the_work_is_shared_out_when_nobody_comes_any_more() -> None:
    """A tenth of a second after the latest one; but whoever came first does not wait for ever."""
    groups = Groups((), lambda _member, _assigned: None)
    groups.join("g", "a", "", now_s=10.0)
    assert groups.next_due_s() == pytest.approx(10.1)
    for number in range(20):
        groups.join("g", f"b{number}", "", now_s=10.05 + number * 0.05)
        assert groups.next_due_s() == pytest.approx(min(10.15 + number * 0.05, 10.5))
    groups.share_out(10.6)
    assert groups.next_due_s() == float("inf")
    groups.join("g", "c", "", now_s=20.0)
    assert groups.next_due_s() == pytest.approx(20.1)


def test_an_incomplete_run_is_let_go_of_in_the_end() -> None:
    """The bus remembers it while it is one of the last, or states would grow for ever."""
    group = Group("g", [0])
    group.join("a")
    group.rebalance()
    runs = [f"r{number}" for number in range(KEPT_INCOMPLETE + 2)]
    for latest in range(1, len(runs) + 1):
        beat = Beat(
            client_id="a",
            state="ready",
            generation=group.generation,
            shares=(EVENTS, 0),
            handled_runs=tuple(runs[:latest]),
            incomplete_runs=tuple(runs[:latest]),
        )
        group.take_beat(beat)
        assert group.assigned("a").handled_runs == tuple(runs[: max(latest - KEPT_INCOMPLETE, 0)])


def test_lost_runs_are_kept_beside_the_others() -> None:
    """Their publishers may come back, however many runs have passed; but not for ever."""
    group = Group("g", [0])
    group.join("a")
    group.rebalance()
    lost = [f"lost {number}" for number in range(KEPT_LOST_RUNS + 2)]
    whole = [f"r{number}" for number in range(2 * KEPT_INCOMPLETE)]
    known: dict[str, Any] = {"client_id": "a", "state": "ready", "shares": (EVENTS, 0)}
    group.take_beat(Beat(**known, handled_runs=("lost 0", *whole), lost_runs=("lost 0",)))
    assert group.assigned("a").handled_runs == tuple(whole)
    group.forget_handled({"lost 0", whole[0]})
    assert group.assigned("a").handled_runs == tuple(whole[1:]), "who goes on is not to be forgotten"
    group.take_beat(Beat(**known, handled_runs=tuple(lost), lost_runs=tuple(lost)))
    assert group.assigned("a").handled_runs == ("lost 0", "lost 1")


def test_who_was_alone_and_asleep_goes_on() -> None:
    """Nobody has taken over its work, so what it commits on waking counts."""
    group = Group("g", [0])
    group.join("a")
    group.rebalance()
    tokens = group.assigned("a").shares
    group.leave("a")
    group.rebalance()
    group.join("a")
    group.rebalance()
    assert group.assigned("a").shares == tokens
    group.leave("a")
    group.join("b")
    group.rebalance()
    assert group.assigned("b").shares.keys() == tokens.keys()
    assert group.judge("a", Commit(share=0, token=tokens[0], position=SOMEWHERE)) is Judgement.REFUSE
