"""Consumer groups on real sockets: sharing out, coming and going, the bus restarted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from phase_bus.bus.options import BusOptions
from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.consumer.group_member import GroupMember
from phase_bus.core.address import Address
from phase_bus.core.control import Assigned, Beat, Commit, Heard, Hello, Welcome
from phase_bus.core.position import Position
from phase_bus.core.wire import encode_control
from phase_bus.errors import ConfigError
from phase_bus.events import PhaseRef, PhaseStart, Receipt, Records, Summary
from phase_bus.harness.dead_letters import open_retry
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import DeadLetter
from phase_bus.testing.waiting import until
from tests.support.buses import BusThread, DurableBus
from tests.support.clients import SOURCE, RawClient, Subscriber
from tests.support.groups import (
    Member,
    Run,
    Totals,
    group_info,
    handled,
    members,
    publish,
    shared_out,
)
from tests.support.recorder import publish as numbered

pytestmark = pytest.mark.usefixtures("no_leaks")

T = TypeVar("T")
PHASE = PhaseRef("profiling")


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_a_group_shares_a_run(kept: DurableBus, count: int) -> None:
    """Each record is counted by one member, and the leader's result has all of them."""
    with Subscriber(kept.address, "summary.", "receipt.") as subscriber:
        async with members(count, kept.address) as group:
            await asyncio.to_thread(publish, kept.address, 2000)
            await handled(kept.address)
            (summary,) = await until(lambda: subscriber.of(Summary))
            (receipt,) = await until(lambda: subscriber.of(Receipt))
            forgotten = [share.consumer for m in group for share in m.runner.shares.values()]
            await until(lambda: sum("r" in c.forgotten for c in forgotten if isinstance(c, Totals)) == 16)
    assert summary.result == {"records": 2000, "sum": sum(range(2000)), "phases": 1}
    assert summary.final
    assert receipt.complete
    assert receipt.consumer == "totals"
    topics = {topic: t.received for topic, t in receipt.topics.items() if topic.startswith("records.")}
    assert len(topics) == 16
    assert sum(topics.values()) == sum(
        t.published or 0 for name, t in receipt.topics.items() if name.startswith("records.")
    )


async def test_late_and_after_the_end(kept: DurableBus) -> None:
    """A group that comes after the run takes it from the journal."""
    await asyncio.to_thread(publish, kept.address, 3000)
    with Subscriber(kept.address, "summary.") as subscriber:
        async with members(3, kept.address):
            await handled(kept.address)
            (summary,) = await until(lambda: subscriber.of(Summary))
    assert summary.result["records"] == 3000
    assert summary.final


async def test_members_come_and_go_while_a_run_goes_on(kept: DurableBus) -> None:
    """The work moves with them, and nothing is counted twice nor left out."""
    with Subscriber(kept.address, "summary.") as subscriber, Run(kept.address) as run:
        first = Member(kept.address)
        await until(lambda: shared_out([first]))
        await run.publish(500)
        second, third = Member(kept.address), Member(kept.address)
        await until(lambda: shared_out([first, second, third]))
        await run.publish(500)
        await first.stop()
        await until(lambda: shared_out([second, third]))
        await run.publish(500)
        await second.stop()
        fourth = Member(kept.address)
        await until(lambda: shared_out([third, fourth]))
        await third.stop()
        await run.publish(500, end=True)
        info = await handled(kept.address)
        (summary,) = await until(lambda: subscriber.of(Summary))
        await fourth.stop()
    assert summary.result == {"records": 2000, "sum": sum(range(2000)), "phases": 1}
    assert info.refused == 0
    assert not info.incomplete_runs


async def test_the_bus_is_restarted(kept: DurableBus) -> None:
    """Members go on from what they had committed, with the next bus on the same journal."""
    with Run(kept.address) as run:
        async with members(3, kept.address) as group:
            await run.publish(1000)
            await asyncio.to_thread(kept.close)
            kept.open()
            await run.publish(1000, end=True)
            await handled(kept.address)
            await until(lambda: shared_out(group))
    with JournalReader(kept.data) as reader:
        found = reader.events("r", Summary)
    assert [summary.result for summary in found] == [
        {"records": 2000, "sum": sum(range(2000)), "phases": 1}
    ]


async def test_two_runs_at_once_are_kept_apart(kept: DurableBus) -> None:
    """Each has its own result, and its own receipt."""
    with Subscriber(kept.address, "summary.", "receipt.") as subscriber:
        async with members(2, kept.address):
            with Run(kept.address, "a") as a, Run(kept.address, "b") as b:
                for _ in range(3):
                    await a.publish(100)
                    await b.publish(200)
                await a.publish(1, end=True)
                await b.publish(1, end=True)
            await handled(kept.address, "a")
            await handled(kept.address, "b")
            summaries = await until(lambda: len(found := subscriber.of(Summary)) == 2 and found)
            receipts = await until(lambda: len(found := subscriber.of(Receipt)) == 2 and found)
    assert {s.run_id: s.result["records"] for s in summaries} == {"a": 301, "b": 601}
    assert all(receipt.complete for receipt in receipts)


async def test_more_members_than_shares(kept: DurableBus) -> None:
    """A member with nothing to do is ready all the same, and takes over when another leaves."""
    async with members(1, kept.address) as (first,):
        spare = [Member(kept.address) for _ in range(18)]
        for member in spare:
            await asyncio.wait_for(member.ready.wait(), 20)
        await until(lambda: shared_out([first, *spare]))
        for member in spare:
            await member.stop()
        await until(lambda: shared_out([first]))


async def test_a_partition_beyond_the_usual_ones(kept: DurableBus) -> None:
    """A publisher of another version may have more of them; they are shared out when they show."""
    async with members(2, kept.address) as group:
        with RawClient(kept.address) as client:
            client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="raw"))
            client.publish(Records(run_id="r", phase=PHASE, count=0, partition=41), SOURCE, 1)
            owner = await until(lambda: next((m for m in group if 41 in m.shares), None) or False)
            await until(lambda: owner.runner.shares[41].dispatcher.received == 1)


async def test_members_must_run_the_same(kept: DurableBus) -> None:
    """One with other options is refused, and why; once the others have left, it may join."""
    first = Member(kept.address, settings="'totals' with size=1")
    await until(lambda: shared_out([first]))
    other = Member(kept.address, settings="'totals' with size=2")
    told = "its members run 'totals' with size=1, and this one would run 'totals' with size=2; start all"
    with pytest.raises(ConfigError, match=told):
        await asyncio.wait_for(other.task, 20)
    await first.stop()
    later = Member(kept.address, settings="'totals' with size=2")
    await until(lambda: shared_out([later]))
    await later.stop()


async def test_a_group_needs_a_journal(ipc_dir: Path) -> None:
    """Without one there is nothing that a new owner could go on from."""
    with BusThread(f"ipc://{ipc_dir}"):
        member = Member(f"ipc://{ipc_dir}")
        with pytest.raises(ConfigError, match="needs a bus that keeps a journal; start it without --no-j"):
            await asyncio.wait_for(member.task, 20)


async def test_what_cannot_be_a_group(ipc_dir: Path) -> None:
    """A publisher's own address, and a consumer that takes no records."""

    class NoRecords(Consumer):
        async def on_phase_start(self, event: PhaseStart) -> None: ...

    with pytest.raises(ConfigError, match="a group needs a bus"):
        GroupMember(Totals, "totals", Address.parse(f"direct+ipc://{ipc_dir}/x.ipc"))
    with pytest.raises(ConfigError, match="takes no records, so there is nothing"):
        GroupMember(NoRecords, "g", Address.parse(f"ipc://{ipc_dir}"))


async def test_a_handler_that_fails(kept: DurableBus) -> None:
    """The event is dead-lettered under the name of its partition, and the receipt says so."""

    class Failing(Totals):
        async def on_records(self, event: Records) -> None:
            if event.partition == 3:
                raise ValueError("three")
            await super().on_records(event)

    with Subscriber(kept.address, "receipt.") as subscriber:
        member = Member(kept.address, Failing)
        await until(lambda: shared_out([member]))
        await asyncio.to_thread(publish, kept.address, 16 * 7)
        info = await handled(kept.address)
        (receipt,) = await until(lambda: subscriber.of(Receipt))
        await member.stop()
    assert info.incomplete_runs == ("r",)
    assert not receipt.complete
    assert receipt.topics["records.03.r$"].failed == 1
    with JournalReader(kept.data) as reader:
        (letter,) = reader.dead_letters("totals/03")
    assert letter.error == "ValueError('three')"
    # With the consumer mended, its partition's state takes the event in after all.
    (result,) = await asyncio.to_thread(letter_retried, kept, letter)
    assert result == {"r": [7, sum(range(21, 28))]}


def letter_retried(kept: DurableBus, letter: DeadLetter) -> list[dict[str, list[int]]]:
    """Retry a dead letter without the bus; return the states of its partition afterwards."""
    kept.close()
    try:
        with (
            JournalReader(kept.data) as reader,
            open_retry(reader, Address.parse(kept.address)) as again,
        ):
            use = f"{Totals.__module__}:{Totals.__qualname__}"
            assert asyncio.run(again(letter.consumer, use, [letter])) == 0
            kept_now = reader.checkpoint(letter.consumer)
            assert reader.dead_letters() == []
    finally:
        kept.open()
    assert kept_now is not None
    assert kept_now.state is not None
    state = decode_saved(kept_now.state).state
    assert state is not None
    return [msgspec.msgpack.decode(state)[0]]


def test_a_late_commit_is_refused(ipc_dir: Path, tmp_path: Path) -> None:
    """A member that slept too long cannot overwrite what its successor has committed meanwhile."""
    kept = DurableBus(ipc_dir, tmp_path / "journal", BusOptions(heartbeat_s=0.1, silent_after_s=0.5))
    try:
        numbered(kept.address, 5)
        at = kept.journal.lineage.position
        with RawClient(kept.address) as sleeper, RawClient(kept.address) as successor:
            first = join(sleeper, "a" * 32)
            assert heard(sleeper, "a" * 32, commit(first, at(3))).kept == {0: at(3)}
            second = join(successor, "b" * 32)
            while 0 not in second.shares:  # the sleeper says nothing any more
                successor.socket.send(encode_control(Beat(client_id="b" * 32, state="ready")))
                second = next_of(successor, Assigned)
            assert second.shares[0] != first.shares[0]
            assert heard(successor, "b" * 32, commit(second, at(5))).kept == {0: at(5)}
            late = commit(first, at(9))
            assert not heard(sleeper, "a" * 32, late).known
            sleeper.socket.send(encode_control(hello("a" * 32)))
            next_of(sleeper, Welcome)
            answer = heard(sleeper, "a" * 32, late)
            assert (answer.kept, answer.refused) == ({}, (0,))
            assert group_info(kept.address).refused == 1
        with JournalReader(kept.data) as reader:
            assert reader.checkpoint("g/00") == (at(5), b"state at 5")
    finally:
        kept.close()


def test_a_member_that_was_connected_anew_hears_what_changes(kept: DurableBus) -> None:
    """ZeroMQ reconnects by itself, and to the bus that is another peer."""
    with RawClient(kept.address) as cut, RawClient(kept.address) as again, RawClient(kept.address) as other:
        mine = join(cut, "a" * 32)
        again.socket.send(
            encode_control(Beat(client_id="a" * 32, state="ready", shares=tuple(mine.shares)))
        )
        next_of(again, Heard)
        join(other, "b" * 32)
        asked = next_of(again, Assigned)
        while not asked.release:  # what it was told before, once more
            asked = next_of(again, Assigned)
        assert set(asked.release) < set(mine.shares)


def hello(client_id: str) -> Hello:
    """What a member of a group says first."""
    return Hello(client_id=client_id, role="consumer", name="g", group="g")


def join(client: RawClient, client_id: str) -> Assigned:
    """Join a group; return its first assignment."""
    client.socket.send(encode_control(hello(client_id)))
    return next_of(client, Assigned)


def commit(assigned: Assigned, position: Position) -> Commit:
    """A commit of partition 0, under an assignment."""
    saved = f"state at {position.offset}".encode()
    return Commit(share=0, token=assigned.shares[0], position=position, saved=saved)


def heard(client: RawClient, client_id: str, commit: Commit) -> Heard:
    """Send a commit; return the bus's answer."""
    beat = Beat(client_id=client_id, state="ready", shares=(0,), commits=(commit,))
    client.socket.send(encode_control(beat))
    while not ((answer := next_of(client, Heard)).kept or answer.refused or not answer.known):
        pass  # the answers to earlier beats, without commits
    return answer


def next_of(client: RawClient, kind: type[T]) -> T:
    """Return the next reply of a kind."""
    while not isinstance(reply := client.reply(), kind):
        pass
    return reply
