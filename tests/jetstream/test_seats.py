"""A consumer's name and checkpoint, by revisions: who has lost the name can commit nothing more."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from typing import cast

import pytest
from msgspec.structs import replace

from phase_bus.core.control import (
    EVENTS,
    Beat,
    DeadLetterNote,
    Heard,
    Hello,
    NameTaken,
    Refused,
    Reply,
    Welcome,
)
from phase_bus.core.position import Position, Segment
from phase_bus.core.session import pid_space
from phase_bus.errors import PhaseBusError
from phase_bus.jetstream.connection import NatsUnreachableError
from phase_bus.jetstream.keys import Kept, Keys
from phase_bus.jetstream.notes import CheckpointNote, LetterNote, encode_note, read_note
from phase_bus.jetstream.seats import ConsumerSeat
from phase_bus.jetstream.stream import Stream
from tests.jetstream.test_group_seats import STREAM

ADDRESS_PROBLEM = "made up"


class MadeUpKeys:
    """Keys in memory, with servers that are slow, lose requests and lose answers."""

    def __init__(self, seed: int = 0, faults: float = 0.0) -> None:
        self.draw = random.Random(seed)
        self.faults = faults
        self.values: dict[str, Kept] = {}
        self.revision = 0
        self.written: list[tuple[str, bytes]] = []

    async def get(self, key: str) -> Kept | None:
        await self._pass()
        kept = self.values.get(key)
        await self._pass()
        return kept

    async def create(self, key: str, value: bytes) -> int | None:
        return await self._change(key, value, 0)

    async def update(self, key: str, value: bytes, revision: int) -> int | None:
        return await self._change(key, value, revision)

    async def put(self, key: str, value: bytes, seen: Kept | None) -> int | None:
        return await self._change(key, value, 0 if seen is None else seen.revision)

    async def delete(self, key: str, revision: int) -> bool:
        return await self._change(key, None, revision) is not None

    async def _change(self, key: str, value: bytes | None, revision: int) -> int | None:
        await self._pass()
        before = self.values.get(key)
        changed = (0 if before is None else before.revision) == revision
        if changed:
            self.revision += 1
            if value is None:
                self.values.pop(key)
            else:
                self.values[key] = Kept(value, self.revision)
                self.written.append((key, value))
        now = self.revision
        await self._pass()
        return now if changed else None

    async def _pass(self) -> None:
        for _ in range(self.draw.randrange(4)):
            await asyncio.sleep(0)
        if self.draw.random() < self.faults:
            error = NatsUnreachableError.__new__(NatsUnreachableError)
            PhaseBusError.__init__(error, ADDRESS_PROBLEM)
            raise error


class Client:
    """A consumer's process, as its seat sees it."""

    clock_s = 0.0

    def __init__(self, keys: MadeUpKeys, number: int, *, pid: int = 0, stream: Stream = STREAM) -> None:
        self.id = f"{number:032x}"
        self.pid = pid
        self.seat = ConsumerSeat(cast("Keys", keys), stream, clock=lambda: Client.clock_s)

    async def hello(self) -> Reply:
        return await self.seat.hello(
            Hello(
                client_id=self.id, role="consumer", name="x", pid=self.pid, pid_space=pid_space(), host="h"
            )
        )

    async def beat(self, offset: int | None = None, *letters: DeadLetterNote) -> Reply:
        position = None if offset is None else Position(STREAM.id, offset)
        beat = Beat(client_id=self.id, state="ready", position=position, dead_letters=letters)
        (reply,) = await self.seat.beat(beat)
        return reply

    async def goodbye(self, offset: int | None = None) -> None:
        position = None if offset is None else Position(STREAM.id, offset)
        await self.seat.goodbye(Beat(client_id=self.id, state="stopped", position=position))


def kept(keys: MadeUpKeys) -> CheckpointNote:
    return read_note(CheckpointNote, "checkpoint.x", keys.values["checkpoint.x"])


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> MadeUpKeys:
    monkeypatch.setattr(Client, "clock_s", 100.0)
    return MadeUpKeys()


async def test_a_place_is_kept_and_found_again(keys: MadeUpKeys) -> None:
    first = Client(keys, 1)
    welcomed = await first.hello()
    assert isinstance(welcomed, Welcome)
    assert (welcomed.checkpoint, welcomed.bus_id, welcomed.offset) == (None, STREAM.id, 9)
    heard = await first.beat(5)
    assert heard == Heard(bus_id=STREAM.id, kept={EVENTS: Position(STREAM.id, 5)})
    assert await first.beat() == Heard(bus_id=STREAM.id)  # nothing new leaves it as it is
    await first.goodbye(7)
    assert "name.x" not in keys.values
    again = await Client(keys, 2).hello()
    assert isinstance(again, Welcome)
    assert again.checkpoint == Position(STREAM.id, 7)


async def test_who_is_alive_keeps_its_name(keys: MadeUpKeys) -> None:
    first, second = Client(keys, 1), Client(keys, 2)
    await first.hello()
    assert await second.hello() == NameTaken(name="x", pid=0, host="h", answers=False)
    await first.beat()
    assert await second.hello() == NameTaken(name="x", pid=0, host="h", answers=True)


async def test_who_was_silent_for_long_loses_its_name_and_commits_nothing_more(keys: MadeUpKeys) -> None:
    first, second = Client(keys, 1), Client(keys, 2)
    await first.hello()
    await first.beat(3)
    assert isinstance(await second.hello(), NameTaken)
    Client.clock_s += 9.9
    assert isinstance(await second.hello(), NameTaken)
    Client.clock_s += 0.1
    welcomed = await second.hello()
    assert isinstance(welcomed, Welcome)
    assert welcomed.checkpoint == Position(STREAM.id, 3)
    assert await first.beat(4) == NameTaken(name="x", pid=0, host="h", answers=True)
    assert kept(keys).position == Position(STREAM.id, 3)
    assert await first.beat(4) == Heard(bus_id=STREAM.id, known=False)
    assert await first.hello() == NameTaken(name="x", pid=0, host="h", answers=True)
    await first.goodbye(4)
    assert isinstance(await second.beat(5), Heard)
    assert kept(keys).position == Position(STREAM.id, 5)


async def test_a_commit_under_way_while_the_name_is_taken_over_is_refused(keys: MadeUpKeys) -> None:
    """Its name was still its own when it looked; its checkpoint is not when it writes."""
    first, second = Client(keys, 1), Client(keys, 2)
    await first.hello()
    await second.hello()
    Client.clock_s += 10
    renew = first.seat._renew

    async def renew_and_lose(note: object) -> Reply | None:
        answer = await renew(note)  # type: ignore[arg-type]
        other = Client(keys, 3)
        keys.values["name.x"] = Kept(keys.values["name.x"].value, keys.values["name.x"].revision)
        other.seat._other = (keys.values["name.x"].revision, 0.0)
        assert isinstance(await other.hello(), Welcome)
        return answer

    first.seat._renew = renew_and_lose  # type: ignore[method-assign]
    assert await first.beat(8) == NameTaken(name="x", pid=0, host="", answers=True)
    assert kept(keys).position is None


async def test_the_name_of_a_process_that_has_ended_is_free(keys: MadeUpKeys) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    await asyncio.to_thread(process.wait)
    await Client(keys, 1, pid=process.pid).hello()
    assert isinstance(await Client(keys, 2).hello(), Welcome)
    assert isinstance(await Client(keys, 3).hello(), NameTaken)


async def test_dead_letters_are_kept_once_and_before_the_place(keys: MadeUpKeys) -> None:
    client = Client(keys, 1)
    await client.hello()
    letter = DeadLetterNote(offset=4, run_id="r", kind="phase_start", error="no", stream=STREAM.id)
    keys.written.clear()
    for _ in range(2):
        heard = await client.beat(5, letter)
        assert isinstance(heard, Heard)
        assert heard.dead_letters == (Position(STREAM.id, 4),)
    written = [key for key, _ in keys.written if not key.startswith("name.")]
    assert written == ["dead.x.4", "checkpoint.x", "checkpoint.x"]
    note = read_note(LetterNote, "dead.x.4", keys.values["dead.x.4"])
    assert (note.consumer, note.letter) == ("x", letter)


async def test_a_place_in_another_stream_is_not_kept(keys: MadeUpKeys) -> None:
    client = Client(keys, 1)
    await client.hello()
    other = Position("cd" * 16, 5)
    (heard,) = await client.seat.beat(Beat(client_id=client.id, state="ready", position=other))
    assert heard == Heard(bus_id=STREAM.id)
    assert kept(keys).position is None


async def test_a_place_before_a_cut_is_kept_under_the_id_that_it_has(keys: MadeUpKeys) -> None:
    segments = (Segment(STREAM.id, 1), Segment("ef" * 16, 8))
    cut = replace(STREAM, id="ef" * 16, lineage=segments)
    client = Client(keys, 1, stream=cut)
    await client.hello()
    heard = await client.beat(5)  # of the stream before the cut
    assert isinstance(heard, Heard)
    assert heard.kept == {EVENTS: Position(STREAM.id, 5)}


@pytest.mark.parametrize(("last", "place"), [(9, 7), (7, 7), (6, 6)])
async def test_a_checkpoint_beyond_a_cut(keys: MadeUpKeys, last: int, place: int) -> None:
    """Who comes back after the stream has lost its end begins at the cut, and the loss is told."""
    first = Client(keys, 1)
    await first.hello()
    await first.goodbye(last)
    segments = (Segment(STREAM.id, 1), Segment("ef" * 16, 8))
    second = Client(keys, 2, stream=replace(STREAM, id="ef" * 16, lineage=segments))
    welcomed = await second.hello()
    assert isinstance(welcomed, Welcome)
    assert welcomed.checkpoint == Position(STREAM.id, place)
    losses = [(loss.reason, loss.first, loss.last) for loss in second.seat.take_losses()]
    assert losses == ([("cut", 8, 9)] if last == 9 else [])
    assert second.seat.take_losses() == []


async def test_a_checkpoint_beyond_the_end(keys: MadeUpKeys) -> None:
    """Nobody has noticed yet that the stream lost its end; or a new leader has to catch up."""
    first = Client(keys, 1)
    await first.hello()
    await first.goodbye(12)
    second = Client(keys, 2)
    assert isinstance(await second.hello(), Refused)
    Client.clock_s += 4.9
    assert isinstance(await second.hello(), Refused)
    second.seat.stream = replace(STREAM, last_offset=12)
    welcomed = await second.hello()
    assert isinstance(welcomed, Welcome)
    assert welcomed.checkpoint == Position(STREAM.id, 12)
    assert second.seat.take_losses() == []
    await second.goodbye()

    third = Client(keys, 3)
    assert isinstance(await third.hello(), Refused)
    Client.clock_s += 5
    welcomed = await third.hello()
    assert isinstance(welcomed, Welcome)
    assert welcomed.checkpoint == Position(STREAM.id, 9)
    (loss,) = third.seat.take_losses()
    assert (loss.reason, loss.first, loss.last) == ("cut", 10, 12)


async def test_a_checkpoint_of_another_stream(keys: MadeUpKeys) -> None:
    first = Client(keys, 1)
    await first.hello()
    await first.goodbye(5)
    other = replace(STREAM, id="ef" * 16, lineage=(Segment("ef" * 16, 1),))
    second = Client(keys, 2, stream=other)
    welcomed = await second.hello()
    assert isinstance(welcomed, Welcome)
    assert welcomed.checkpoint is None
    (loss,) = second.seat.take_losses()
    assert (loss.reason, loss.stream) == ("moved", STREAM.id)


async def test_what_is_kept_and_cannot_be_read_is_told(keys: MadeUpKeys) -> None:
    keys.values["checkpoint.x"] = Kept(b"\xc1", 1)
    with pytest.raises(PhaseBusError, match=r"checkpoint\.x.*cannot be read.*begin anew"):
        await Client(keys, 1).hello()


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_goes_wrong_one_at_a_time_commits(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes want one name; requests and answers are lost, clocks run, processes sleep."""
    monkeypatch.setattr(Client, "clock_s", 100.0)
    keys = MadeUpKeys(seed, faults=0.1)
    ended: list[Client] = []

    async def live(number: int) -> None:
        draw = random.Random(f"{seed} {number}")
        client, known, at = Client(keys, number), False, 0
        for _ in range(60):
            await asyncio.sleep(0)
            if draw.random() < 0.1:  # it sleeps
                for _ in range(draw.randrange(200)):
                    await asyncio.sleep(0)
            Client.clock_s += draw.random()
            try:
                reply = await (client.beat(at + 1) if known else client.hello())
            except NatsUnreachableError:
                continue
            match reply:
                case Welcome():
                    known = True
                    at = 0 if reply.checkpoint is None else reply.checkpoint.offset
                case Heard() if reply.known:
                    at = reply.kept[EVENTS].offset
                case Heard():
                    known = False
                case NameTaken() if known and reply.answers:
                    ended.append(client)
                    client, known = Client(keys, number + 3 * len(ended)), False  # it is started anew

    await asyncio.gather(*(live(number) for number in (1, 2, 3)))
    # Each commit goes on from what stood there, whoever wrote that: nobody has overlooked another's.
    at, commits = 0, 0
    for key, value in keys.written:
        if key == "checkpoint.x":
            note = read_note(CheckpointNote, key, Kept(value, 0))
            offset = 0 if note.position is None else note.position.offset
            assert offset in (at, at + 1), (at, note)
            commits += offset == at + 1
            at = offset
    assert commits > 5
    assert encode_note(kept(keys))


async def test_of_two_who_come_at_once_one_is_let_in(keys: MadeUpKeys) -> None:
    for _ in range(20):
        keys.values.clear()
        replies = await asyncio.gather(*(Client(keys, number).hello() for number in range(5)))
        assert sum(isinstance(reply, Welcome) for reply in replies) == 1
