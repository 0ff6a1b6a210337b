"""Members of a group by the notes beside a stream, in every order, with losses, pauses and kills.

The servers and the clock are made up, so that thousands of interleavings take seconds: each request waits
until it is its turn to be done, and then until it is its turn to be answered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar, cast

import msgspec
import pytest

from phase_bus.core.address import StreamAddress
from phase_bus.core.control import EVENTS, Assigned, Beat, Commit, Heard, Hello, Welcome
from phase_bus.core.position import Lineage, Position, Segment
from phase_bus.jetstream.claims import Claims
from phase_bus.jetstream.connection import NatsUnreachableError
from phase_bus.jetstream.coordinator import GroupNote, Watch
from phase_bus.jetstream.ends import Ends
from phase_bus.jetstream.groups import GroupSeat
from phase_bus.jetstream.keys import Kept, Keys
from phase_bus.jetstream.notes import CheckpointNote
from phase_bus.jetstream.stream import Stream
from phase_bus.journal.rows import Checkpoint

ID = "ab" * 16
STREAM = Stream(
    name="s", id=ID, lineage=(Segment(ID, 1),), first_offset=1, last_offset=9, replicas=1, memory=False
)
EVERYTHING = {EVENTS, *range(16)}
T = TypeVar("T")


class World:
    """Servers, a clock, and who waits for them."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now_s = 100.0
        self.values: dict[str, Kept] = {}
        self.before: list[dict[str, Kept]] = [{}]  # as servers that lag behind know them
        self.revision = 0
        self.faults = 0.0
        self.away = False
        self.late: list[asyncio.Task[None]] = []
        self._turns: list[tuple[str, asyncio.Future[None]]] = []  # by member, "" for what is at the server
        self._alarms: list[tuple[float, str, asyncio.Future[None]]] = []
        self.paused: set[str] = set()

    async def turn(self, member: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append((member, future))
        await future

    async def sleep(self, seconds: float, member: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._alarms.append((self.now_s + seconds, member, future))
        await future

    async def run(self, seconds: float) -> None:
        """Let everybody have turns, in any order, until so much time has passed."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            for _ in range(4):
                await asyncio.sleep(0)
            ready = [each for each in self._turns if each[0] not in self.paused]
            due = [each for each in self._alarms if each[0] <= self.now_s and each[1] not in self.paused]
            if due:
                chosen = self.draw.choice(due)
                self._alarms.remove(chosen)
                _wake(chosen[2])
            elif ready:
                turn = self.draw.choice(ready)
                self._turns.remove(turn)
                _wake(turn[1])
                self.now_s += self.draw.uniform(0.0, 0.004)
            else:
                self.now_s += 0.05

    def change(self, key: str, value: bytes | None, revision: int) -> int | None:
        found = self.values.get(key)
        if (0 if found is None else found.revision) != revision:
            return None
        if key.startswith("checkpoint.") and value is not None:
            check_checkpoint(found, value)
        if key.startswith("group.") and value is not None:
            check_group(found, value)
        self.revision += 1
        self.values = dict(self.values)
        if value is None:
            del self.values[key]
        else:
            self.values[key] = Kept(value, self.revision)
        self.before = [*self.before[-5:], self.values]
        return self.revision


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def check_checkpoint(kept: Kept | None, value: bytes) -> None:
    """A share goes only forward, and who writes has an epoch that is not older."""
    new = msgspec.msgpack.decode(value, type=CheckpointNote)
    old = CheckpointNote() if kept is None else msgspec.msgpack.decode(kept.value, type=CheckpointNote)
    assert new.epoch >= old.epoch
    assert new.epoch > old.epoch or new.owner == old.owner
    before, after = (note.position.offset if note.position else 0 for note in (old, new))
    assert after == before or new.owner == old.owner, "a claim changes nothing"
    assert after >= before


def check_group(kept: Kept | None, value: bytes) -> None:
    """Generations grow, and nobody is given what another has without having let go or left."""
    new = msgspec.msgpack.decode(value, type=GroupNote)
    if kept is not None:
        assert new.state.generation >= msgspec.msgpack.decode(kept.value, type=GroupNote).state.generation


class FakeKeys:
    """Keys as one member reaches them."""

    def __init__(self, world: World, member: str) -> None:
        self._world, self._member = world, member

    async def get(self, key: str) -> Kept | None:
        return await self._ask(lambda: self._world.values.get(key))

    async def create(self, key: str, value: bytes) -> int | None:
        return await self._ask(lambda: self._world.change(key, value, 0))

    async def update(self, key: str, value: bytes, revision: int) -> int | None:
        return await self._ask(lambda: self._world.change(key, value, revision))

    async def put(self, key: str, value: bytes, seen: Kept | None) -> int | None:
        return await self._ask(lambda: self._world.change(key, value, 0 if seen is None else seen.revision))

    async def delete(self, key: str, revision: int) -> bool:
        return await self._ask(lambda: self._world.change(key, None, revision) is not None)

    async def all(self, prefix: str, *, after: int = 0) -> dict[str, Kept]:
        def read() -> dict[str, Kept]:
            values = self._world.draw.choice(self._world.before[-3:])
            return {k: v for k, v in values.items() if k.startswith(f"{prefix}.") and v.revision > after}

        return await self._ask(read)

    async def _ask(self, do: Callable[[], T]) -> T:
        world = self._world
        if world.away:
            await world.sleep(world.draw.choice([0.1, 5.0]), self._member)
            raise NatsUnreachableError(StreamAddress(("h:1",)), "it is away")
        luck = world.draw.random()
        if luck < world.faults / 3:
            await world.sleep(world.draw.choice([0.1, 5.0]), self._member)
            raise NatsUnreachableError(StreamAddress(("h:1",)), "the request was lost")
        if luck < world.faults:  # it is done, sooner or later
            world.late.append(asyncio.create_task(_late(world, do)))
            await world.sleep(world.draw.choice([0.1, 5.0]), self._member)
            raise NatsUnreachableError(StreamAddress(("h:1",)), "the answer was lost")
        await world.turn("")
        answer = do()
        await world.turn(self._member)
        return answer


async def _late(world: World, do: Callable[[], object]) -> None:
    await world.sleep(world.draw.choice([0.0, 1.0, 20.0]), "")
    do()


class NoEnds:
    """Nobody here handles the end of a run."""

    async def without_going_on(self, beat: Beat) -> Beat:
        return beat


class Member:
    """What a process around a member does, with a count for each share instead of a consumer."""

    def __init__(self, world: World, number: int, settings: str = "") -> None:
        self.name = f"{number:032x}"
        self.world = world
        keys = cast(Keys, FakeKeys(world, self.name))
        self.seat = GroupSeat(keys, STREAM, cast(Ends, NoEnds()), "g", self.name, clock=lambda: world.now_s)
        self.hello = Hello(client_id=self.name, role="consumer", name="g", group="g", settings=settings)
        self.assigned: Assigned | None = None
        self.generation = 0
        self.held: dict[int, tuple[int, int]] = {}  # epoch and count
        self.released: dict[int, Commit] = {}
        self.problem = ""
        self.stopping = False
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        while not self.stopping:
            try:
                await self.converse()
            except NatsUnreachableError:
                await self.world.sleep(0.2, self.name)
        with suppress(NatsUnreachableError):
            await self.seat.goodbye(self.beat())

    async def converse(self) -> None:
        assert isinstance(await self.seat.hello(self.hello), Welcome)
        self.assigned, self.generation = None, 0
        failed = 0
        while not self.stopping:
            try:
                replies = await self.seat.beat(self.beat())
                failed = 0
            except NatsUnreachableError:
                failed += 1
                if failed == 3:
                    raise
                await self.world.sleep(0.5, self.name)
                continue
            for reply in replies:
                if isinstance(reply, Heard):
                    self.take_ack(reply)
                    if not reply.known:
                        return
                elif isinstance(reply, Assigned):
                    self.problem = reply.problem
                    self.assigned = None if reply.problem else reply
            await self.act()
            self.held = {n: (epoch, count + 1) for n, (epoch, count) in self.held.items()}
            await self.world.sleep(self.seat.soon_s, self.name)

    def beat(self) -> Beat:
        commits = [commit_of(n, *held) for n, held in self.held.items()]
        return Beat(
            client_id=self.name,
            state="ready",
            generation=self.generation,
            shares=tuple(self.held),
            commits=(*self.released.values(), *commits),
        )

    def take_ack(self, heard: Heard) -> None:
        for number in (*heard.kept, *heard.refused):
            if self.released.pop(number, None) is None and number in heard.refused:
                self.held.pop(number, None)

    async def act(self) -> None:
        assigned = self.assigned
        if assigned is None:
            return
        if assigned.generation != self.generation:
            for number, (epoch, count) in list(self.held.items()):
                if assigned.shares.get(number) != epoch:
                    del self.held[number]
                    if number in assigned.release:
                        self.released[number] = commit_of(number, epoch, count)
            self.generation = assigned.generation
        for number, epoch in assigned.shares.items():
            if number not in self.held and number not in self.released:
                kept = await self.seat.states({}, only=number)
                if kept is None:
                    return
                self.held[number] = (epoch, kept[number].offset if number in kept else 0)

    def kill(self) -> None:
        self.task.cancel()


def commit_of(share: int, epoch: int, count: int) -> Commit:
    return Commit(share=share, token=epoch, position=Position(ID, count))


def shared_out(members: list[Member]) -> bool:
    sizes = [len(member.held) for member in members]
    held = set().union(*(member.held for member in members))
    return held == EVERYTHING and sum(sizes) == len(held) and max(sizes) - min(sizes) <= 1


async def settle(world: World, members: list[Member]) -> float:
    """Let them go on until the work is shared out; return after how many seconds."""
    begun_s = world.now_s
    while not shared_out(members):
        assert world.now_s < begun_s + 90, [sorted(member.held) for member in members]
        await world.run(0.1)
    return world.now_s - begun_s


@asynccontextmanager
async def world_of(seed: int) -> AsyncIterator[World]:
    world = World(seed)
    yield world
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.done() and not task.cancelled():
            task.result()
        task.cancel()


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_a_share_is_one_members(seed: int) -> None:
    """No commit is written over by an older one, and in the end all the work is shared out, evenly."""
    async with world_of(seed) as world:
        members = [Member(world, number) for number in range(3)]
        everybody = list(members)
        for number in range(3, 15):
            world.faults = world.draw.choice([0.0, 0.05, 0.3])
            await world.run(world.draw.choice([0.1, 1.0, 4.0, 15.0]))
            match world.draw.randrange(6):
                case 0 | 1:
                    members.append(Member(world, number))
                    everybody.append(members[-1])
                case 2 if len(members) > 1:
                    members.pop(world.draw.randrange(len(members))).kill()
                case 3 if len(members) > 1:
                    members.pop(world.draw.randrange(len(members))).stopping = True
                case 4:
                    world.paused.add(world.draw.choice(members).name)
                case 5:
                    world.paused.clear()
            for each in everybody:
                if each.task.done() and not each.task.cancelled():
                    each.task.result()
        world.faults, world.paused = 0.0, set()
        await settle(world, members)


async def test_how_long_it_takes() -> None:
    async with world_of(1) as world:
        members = [Member(world, 0)]
        assert await settle(world, members) < 1.5
        members += [Member(world, number) for number in range(1, 4)]
        assert await settle(world, members) < 4
        await world.run(20)
        assert shared_out(members)
        members.pop().stopping = True
        assert await settle(world, members) < 3
        members += [Member(world, number) for number in range(4, 6)]
        await settle(world, members)
        members.pop(0).kill()  # the coordinator
        members.pop(0).kill()
        assert 9 < await settle(world, members) < 14, "the next one knows how long both were silent"


async def test_who_was_told_long_ago_claims_nothing() -> None:
    """A share that was given to another meanwhile is not taken up by who slept over that."""
    async with world_of(1) as world:
        claims = [Claims(cast(Keys, FakeKeys(world, n)), Lineage(STREAM.lineage), "g", n) for n in "ab"]
        first, second = claims
        for owner, epoch, mine in (first, 3, True), (second, 5, True), (first, 3, False), (first, 5, False):
            claim = asyncio.ensure_future(owner.claim(7, epoch))
            while not claim.done():
                await world.run(0.1)
            assert claim.result() == (mine, None)
        late = [asyncio.ensure_future(each.keep(commit_of(7, 3, 1))) for each in claims]
        await world.run(1)
        assert [each.result() for each in late] == [False, False]
        assert first.beyond == 6, "nobody can have been given that epoch, so the group has lost its memory"


@pytest.mark.parametrize("back_s", [0, 10])
async def test_the_group_forgets(back_s: float) -> None:
    """What is known of it is lost, or is that of before: its members go on where they were."""
    async with world_of(2) as world:
        members = [Member(world, number) for number in range(3)]
        before = world.values
        if back_s:
            await settle(world, members)
            before = world.values
            members.append(Member(world, 3))
        await settle(world, members)
        await world.run(back_s)
        values = {key: kept for key, kept in world.values.items() if not key.startswith("group.")}
        if back_s:
            values["group.g"] = before["group.g"]
        world.values, world.before = values, [values]
        await world.run(5)
        members.pop().kill()
        await settle(world, members)


async def test_a_coordinator_that_slept_decides_nothing() -> None:
    """Another is in its place by then; what it remembers of the group is of no use any more."""
    async with world_of(5) as world:
        members = [Member(world, number) for number in range(3)]
        await settle(world, members)
        note = msgspec.msgpack.decode(world.values["group.g"].value, type=GroupNote)
        (asleep,) = [member for member in members if member.name == note.coordinator]
        world.paused.add(asleep.name)
        await world.run(12)
        for number in range(3, 6):
            members.append(Member(world, number))
            await settle(world, [member for member in members if member is not asleep])
        world.paused.clear()
        await settle(world, members)
        for member in members:
            assert not member.task.done()


def test_silence_is_what_was_looked_at() -> None:
    """Who did not look for a minute knows of two seconds at most."""
    watch = Watch(2.0)
    for now_s, revision, silent_s in (10, 5, 0), (11, 5, 1), (71, 5, 3), (72, 6, 0), (73, 6, 1):
        watch.look(revision, now_s)
        assert watch.silent_s == silent_s
    assert watch.changed


async def test_nats_is_away_for_a_minute() -> None:
    """Nobody could say that they are there: what each has, it keeps."""
    async with world_of(4) as world:
        members = [Member(world, number) for number in range(4)]
        await settle(world, members)
        epochs = [{number: epoch for number, (epoch, _) in member.held.items()} for member in members]
        world.away = True
        await world.run(60)
        world.away = False
        await world.run(15)
        assert epochs == [
            {number: epoch for number, (epoch, _) in member.held.items()} for member in members
        ]


async def test_members_run_the_same() -> None:
    async with world_of(3) as world:
        members = [Member(world, number, "one") for number in range(2)]
        await settle(world, members)
        other = Member(world, 2, "two")
        await world.run(3)
        assert other.problem == "its members run one, and this one would run two"
        assert not other.held
        for member in members:
            member.kill()
        other.problem = ""
        await settle(world, [other])
        assert not other.problem


@pytest.mark.parametrize(("lineage", "offset"), [((Segment(ID, 1), Segment("cd" * 16, 6)), 5), ((), 0)])
async def test_a_checkpoint_beyond_the_stream(
    lineage: tuple[Segment, ...], offset: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The state goes on from where the stream was cut: it shows what of it comes again."""
    async with world_of(1) as world:
        note = CheckpointNote(owner="b", epoch=1, position=Position(ID, 9), saved=b"state")
        for share in ("07", "08"):
            world.values[f"checkpoint.g.{share}"] = Kept(msgspec.msgpack.encode(note), 1)
        world.revision = 1
        segments = lineage or (Segment("ef" * 16, 1),)
        claims = Claims(cast(Keys, FakeKeys(world, "a")), Lineage(segments), "g", "a")
        claim = asyncio.ensure_future(claims.claim(7, 2))
        await world.run(1)
        position = Position(segments[0].stream, offset)
        assert claim.result() == (True, Checkpoint(position, b"state"))
        world.before = [world.values]
        states = asyncio.ensure_future(claims.states({}))
        await world.run(1)
        assert states.result() == dict.fromkeys((7, 8), Checkpoint(position, b"state"))
    assert len(caplog.records) == 1, "it is told once, not by each share"
