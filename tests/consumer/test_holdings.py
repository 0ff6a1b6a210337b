"""What a member of a group holds: without a bus."""

from __future__ import annotations

import asyncio

import pytest

from phase_bus.consumer.dispatcher import HandledEnd
from phase_bus.consumer.holdings import Holdings
from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.control import EVENTS, Assigned, Heard, State
from phase_bus.core.position import Lineage, Segment
from phase_bus.events import Receipt
from tests.support.groups import Totals


class Large(Totals):
    """Has a state of 300 KiB."""

    def state(self) -> bytes:
        return bytes(300 << 10)


class Ready:
    """A process that is ready."""

    client_id = "c"
    state: State = "ready"


MEMBER = Ready()
LINEAGE = Lineage([Segment("a" * 32, 1)])


async def give(_receipt: Receipt) -> bool:
    """Publish a receipt, to nobody."""
    return True


def holding(*numbers: int, token: int = 1, cls: type[Totals] = Totals) -> Holdings:
    """A member that holds shares, with a commit of each at offset 0."""
    holdings = Holdings("g")
    holdings.assigned = Assigned(generation=1, shares=dict.fromkeys(numbers, token))
    for number in numbers:
        consumer = cls()
        share = Share(consumer, View.in_group(consumer, "g", number, token), "0" * 32, give)
        asyncio.run(share.begin(None, LINEAGE))
        asyncio.run(share.flush())
        holdings.add(share)
    return holdings


def heard(kept: dict[int, int] | None = None, refused: tuple[int, ...] = ()) -> Heard:
    """What the bus answers to a beat."""
    positions = {number: LINEAGE.position(offset) for number, offset in (kept or {}).items()}
    return Heard(bus_id="b", kept=positions, refused=refused)


def test_only_a_released_share_that_is_kept_is_taken_up_again() -> None:
    """Otherwise it would be read back without its last commit."""
    holdings = holding(3)
    share = holdings.shares[3]
    holdings.release(share)
    holdings.remove(share)
    assert holdings.missing == []
    assert [commit.share for commit in holdings.commits] == [3]
    holdings.take_ack(heard({3: 17}))  # an older commit of it
    assert holdings.missing == []
    holdings.take_ack(heard({3: 0}))
    assert holdings.missing == [3]
    assert holdings.commits == []


def test_a_refused_share_is_lost() -> None:
    """Nothing more is said of it, and it is dropped."""
    holdings = holding(3, 4)
    holdings.take_ack(heard(refused=(3,)))
    assert [share.view.number for share in holdings.held] == [4]
    assert [share.view.number for share in holdings.lost] == [3]
    assert [commit.share for commit in holdings.beat(MEMBER).commits] == [4]
    assert not holdings.is_assigned(holdings.shares[3])


def test_a_token_of_another_generation_is_not_ours() -> None:
    holdings = holding(3)
    share = holdings.shares[3]
    assert holdings.is_assigned(share)
    holdings.assigned = Assigned(generation=5, shares={3: 5})
    assert not holdings.is_assigned(share)
    holdings.assigned = Assigned(generation=6, release=(3,))
    assert holdings.is_assigned(share)
    holdings.begin_anew(lose_all=False)
    assert not holdings.is_assigned(share)


def test_another_bus_has_given_nothing() -> None:
    holdings = holding(3, 4)
    holdings.release(holdings.shares[4])
    holdings.begin_anew(lose_all=True)
    assert holdings.held == []
    assert holdings.commits == []


def test_a_beat_has_room_for_some_commits_only() -> None:
    """The bus refuses messages that are too large; the rest goes with the next beat, at once."""
    holdings = holding(3, 4, cls=Large)
    assert [commit.share for commit in holdings.beat(MEMBER).commits] == [3]
    assert holdings.take_ack(heard({3: 0})), "there is more to tell"
    assert [commit.share for commit in holdings.beat(MEMBER).commits] == [4]
    assert not holdings.take_ack(heard({4: 0}))


@pytest.mark.parametrize("number", [EVENTS, 3])
def test_a_run_is_handled_when_the_leaders_commit_is_kept(number: int) -> None:
    holdings = holding(number)
    share = holdings.shares[number]
    share.dispatcher.finished("r", HandledEnd(whole=False, offset=7))
    if holdings.leader is not None:
        holdings.leader.committed()
    assert holdings.beat(MEMBER).handled_runs == ()
    assert holdings.take_ack(heard({number: 0})) == (number == EVENTS)
    beat = holdings.beat(MEMBER)
    assert beat.handled_runs == beat.incomplete_runs == (("r",) if number == EVENTS else ())
