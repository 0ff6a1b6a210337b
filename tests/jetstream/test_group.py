"""Consumer groups on a stream: sharing out, coming and going, sleeping, NATS killed and back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.wire import decode_event
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.events import EventBase, PhaseStart, Receipt, Records, Summary
from phase_bus.jetstream.notes import LetterNote, read_note
from phase_bus.jetstream.stream import cut_stream
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.factories import make_records
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.forwarded import read_stream
from tests.support.groups import PHASE, Member, Run, Sleeper, Totals, shared_out
from tests.support.servers.nats import NatsServer
from tests.support.stream_bus import QuickTransport
from tests.support.streams import fill, opened

pytestmark = pytest.mark.usefixtures("no_leaks")

E = TypeVar("E", bound=EventBase)
T = TypeVar("T")


class Forwarded:
    """A stream with what a bus's journal has, as soon as that is asked for."""

    def __init__(self, kept: DurableBus, nats: NatsServer) -> None:
        self._kept, self.url = kept, nats.url
        self._begun = False

    async def publish(self, run: Run, records: int, *, end: bool = False) -> None:
        """Publish the next records of a run."""
        await run.publish(records, end=end)
        await self.forward()

    async def forward(self) -> None:
        """Append what is new in the journal to the stream."""
        await fill(self.url, self._kept.data, again=self._begun)
        self._begun = True

    def member(self, cls: type[Consumer] = Totals, settings: str = "") -> Member:
        """Return a member of the group, which reads the stream."""
        return Member(self.url, cls, settings, QuickTransport)

    @asynccontextmanager
    async def members(self, count: int) -> AsyncIterator[list[Member]]:
        """A group of some members, from when the work is shared out among them."""
        async with AsyncExitStack() as stack:
            group = []
            for _ in range(count):
                group.append(self.member())
                stack.push_async_callback(group[-1].stop)
            await until(lambda: shared_out(group))
            yield group

    async def of(self, kind: type[E], count: int = 1) -> list[E]:
        """Return the events of a kind, as soon as there are so many of them."""
        return await until_found(lambda: self._find(kind, count))

    async def _find(self, kind: type[E], count: int) -> list[E] | None:
        held = await read_stream(self.url)
        found: list[E] = []
        for each in held:
            if isinstance(event := decode_event(each.topic, memoryview(each.payload)), kind):
                found.append(event)
        return found if len(found) >= count else None


async def until_found(look: Callable[[], Awaitable[T | None]]) -> T:
    """Return what is found, as soon as something is."""
    for _ in range(200):
        if (found := await look()) is not None:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("it has not come")


@pytest.fixture
def forwarded(kept: DurableBus, nats: NatsServer) -> Forwarded:
    return Forwarded(kept, nats)


def whole(records: int) -> dict[str, int]:
    return {"records": records, "sum": sum(range(records)), "phases": 1}


@pytest.mark.parametrize("count", [1, 3])
async def test_a_group_shares_a_run(kept: DurableBus, forwarded: Forwarded, count: int) -> None:
    """Each record is counted by one member, and the leader's result has all of them."""
    with Run(kept.address) as run:
        await forwarded.publish(run, 500)
        async with forwarded.members(count) as group:
            await forwarded.publish(run, 500, end=True)
            (summary,) = await forwarded.of(Summary)
            (receipt,) = await forwarded.of(Receipt)
            forgotten = [share.consumer for m in group for share in m.runner.shares.values()]
            await until(lambda: sum("r" in c.forgotten for c in forgotten if isinstance(c, Totals)) == 16)
    assert summary.result == whole(1000)
    assert summary.final
    assert receipt.complete


async def test_members_come_and_go_while_a_run_goes_on(kept: DurableBus, forwarded: Forwarded) -> None:
    """The work moves with them, and nothing is counted twice nor left out."""
    with Run(kept.address) as run:
        await forwarded.publish(run, 200)
        first = forwarded.member()
        await until(lambda: shared_out([first]))
        await forwarded.publish(run, 200)
        second, third = forwarded.member(), forwarded.member()
        await until(lambda: shared_out([first, second, third]))
        await forwarded.publish(run, 200)
        await first.stop()
        await until(lambda: shared_out([second, third]))
        await forwarded.publish(run, 200)
        await second.stop()
        fourth = forwarded.member()
        await until(lambda: shared_out([third, fourth]))
        await third.stop()
        await forwarded.publish(run, 200, end=True)
        (summary,) = await forwarded.of(Summary)
        await fourth.stop()
    assert summary.result == whole(1000)


@pytest.mark.slow
async def test_a_leader_that_slept_has_no_more_to_say(kept: DurableBus, forwarded: Forwarded) -> None:
    """Others have its work by then: it handles nothing of it on waking, and its commits are refused."""
    awake, asleep = threading.Event(), threading.Event()

    class Sleeping(Totals):
        async def on_phase_start(self, event: PhaseStart) -> None:
            asleep.set()
            awake.wait(60)
            await super().on_phase_start(event)

    sleeper = Sleeper(lambda: forwarded.member(Sleeping))
    try:
        with Run(kept.address) as run:
            await forwarded.publish(run, 300)
            await until(asleep.is_set)
            successor = forwarded.member()
            await until(lambda: len(successor.shares) == 17)
            await forwarded.publish(run, 300, end=True)
            (summary,) = await forwarded.of(Summary)
            awake.set()
            await until(lambda: len(sleeper.shares) in (8, 9) and len(successor.shares) in (8, 9))
            await successor.stop()
    finally:
        awake.set()
        sleeper.close()
    assert summary.result == whole(600)
    assert [receipt.complete for receipt in await forwarded.of(Receipt)] == [True]
    assert len(await forwarded.of(Summary)) == 1


@pytest.mark.slow
async def test_nats_is_killed_and_comes_back(
    kept: DurableBus, forwarded: Forwarded, nats: NatsServer
) -> None:
    """The members wait for it, and go on."""
    with Run(kept.address) as run:
        await forwarded.publish(run, 300)
        async with forwarded.members(3) as group:
            await asyncio.to_thread(nats.kill)
            await asyncio.sleep(3 * QuickTransport.silent_after_s)
            await asyncio.to_thread(nats.start)
            await forwarded.publish(run, 300, end=True)
            (summary,) = await forwarded.of(Summary)
            await until(lambda: shared_out(group))
    assert summary.result == whole(600)


async def test_states_larger_than_a_message(kept: DurableBus, forwarded: Forwarded) -> None:
    class Big(Totals):
        padding = bytes(1_100_000)

        def state(self) -> bytes:
            return super().state() + self.padding

        def restore(self, state: bytes) -> None:
            super().restore(state.removesuffix(self.padding))

        async def merge(self, states: Mapping[int, bytes]) -> None:
            await super().merge({n: state.removesuffix(self.padding) for n, state in states.items()})

    member = forwarded.member(Big)
    with Run(kept.address) as run:
        await forwarded.publish(run, 14)
        await until(lambda: shared_out([member]))
        await forwarded.publish(run, 14, end=True)
        (summary,) = await forwarded.of(Summary)
    second = forwarded.member(Big)
    await until(lambda: shared_out([member, second]))
    await member.stop()
    await until(lambda: shared_out([second]))
    await second.stop()
    assert summary.result == whole(28)


async def test_members_that_run_something_else(kept: DurableBus, forwarded: Forwarded) -> None:
    with Run(kept.address) as run:
        await forwarded.publish(run, 7)
        async with forwarded.members(1):
            other = forwarded.member(settings="'aggregator' with slow=true")
            with pytest.raises(ConfigError, match="its members run , and this one would run 'aggregator'"):
                await asyncio.wait_for(other.task, 20)


async def test_a_partition_beyond_the_usual_ones(kept: DurableBus, forwarded: Forwarded) -> None:
    """The group learns of it by the end of the run, and that waits until it is read."""
    with Publisher(kept.address) as publisher:
        publisher.publish(PhaseStart(run_id="r", phase=PHASE))
        publisher.publish(make_records([{"n": 4}, {"n": 8}], run_id="r", partition=41))
        publisher.complete_run("r", "completed")
        assert await asyncio.to_thread(publisher.flush, 20)
    await forwarded.forward()
    members = [forwarded.member() for _ in range(2)]
    (summary,) = await forwarded.of(Summary)
    (receipt,) = await forwarded.of(Receipt)
    assert sum(41 in member.shares for member in members) == 1
    for member in members:
        await member.stop()
    assert summary.result == {"records": 2, "sum": 12, "phases": 1}
    assert receipt.complete


async def test_the_stream_is_cut(kept: DurableBus, forwarded: Forwarded) -> None:
    """It has another id from then on: the members begin anew, from what they had committed."""
    with Run(kept.address) as run:
        await forwarded.publish(run, 200)
        async with forwarded.members(2) as group, opened(forwarded.url) as (connection, stream, _):
            await until(lambda: received(group) > 16)
            cut = await cut_stream(connection, stream.last_offset)
            assert cut.id != stream.id
            await forwarded.publish(run, 200, end=True)
            (summary,) = await forwarded.of(Summary)
            await until(lambda: shared_out(group))
    assert summary.result == whole(400)


def received(group: list[Member]) -> int:
    return sum(s.dispatcher.received for each in group for s in each.runner.shares.values())


async def test_notes_that_cannot_be_read(
    kept: DurableBus, forwarded: Forwarded, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the group and of members they are done without; a checkpoint cannot be."""
    async with opened(forwarded.url) as (_, _, keys):
        for key in ("member.totals.other", "group.totals"):
            await keys.create(key, b"\xff nothing of ours")
        with Run(kept.address) as run:
            await forwarded.publish(run, 100)
            async with forwarded.members(2):
                note = await keys.get("group.totals")
                assert note is not None
                await keys.update("group.totals", b"\xc1", note.revision)
                await forwarded.publish(run, 100, end=True)
                (summary,) = await forwarded.of(Summary)
        assert summary.result == whole(200)
        assert "key member.totals.other" in caplog.text
        assert "its work is shared out anew" in caplog.text
        checkpoint = await keys.get("checkpoint.totals.07")
        assert checkpoint is not None
        await keys.update("checkpoint.totals.07", b"\xff", checkpoint.revision)
    with pytest.raises(PhaseBusError, match="beside the stream cannot be read"):
        await asyncio.wait_for(forwarded.member().task, 20)


async def test_dead_letters_of_a_partition(kept: DurableBus, forwarded: Forwarded) -> None:
    """They are kept under its name, once, before its checkpoint moves beyond them."""

    class Failing(Totals):
        async def on_records(self, event: Records) -> None:
            if event.partition == 3:
                raise ValueError("not this one")
            await super().on_records(event)

    member = forwarded.member(Failing)
    with Run(kept.address) as run:
        await forwarded.publish(run, 16 * 7, end=True)
        (receipt,) = await forwarded.of(Receipt)
    await member.stop()
    assert not receipt.complete
    async with opened(forwarded.url) as (_, _, keys):
        (letter,) = [read_note(LetterNote, key, kept) for key, kept in (await keys.all("dead")).items()]
    assert (letter.consumer, letter.letter.error) == ("totals/03", "ValueError('not this one')")
