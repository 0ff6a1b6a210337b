"""What may befall a group: handlers that block, leaders that sleep, merges that fail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zmq

from phase_bus.bus.options import BusOptions
from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.position import Position
from phase_bus.core.wire import receive_event
from phase_bus.errors import ConfigError, JournalError
from phase_bus.events import PhaseStart, Receipt, Records, Summary
from phase_bus.journal.reader import JournalReader
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.groups import Member, Run, Sleeper, Totals, group_info, handled, publish, shared_out

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_leaks")]

BRIEF = BusOptions(heartbeat_s=0.1, silent_after_s=0.5)


def summaries(kept: DurableBus) -> list[Summary]:
    """All summaries of the run, in order."""
    with JournalReader(kept.data) as reader:
        return reader.events("r", Summary)


def has_forgotten(member: Member, run_id: str = "r") -> Callable[[], bool]:
    """Whether the instances of a member that has everything have let go of the run."""

    def forgotten() -> bool:
        consumers = [share.consumer for share in member.runner.shares.values()]
        return sum(run_id in c.forgotten for c in consumers if isinstance(c, Totals)) == 16

    return forgotten


async def test_a_merge_that_fails(kept: DurableBus) -> None:
    """The end of the run waits until it succeeds: a result without these states would be wrong."""
    failures: list[int] = []

    class Failing(Totals):
        async def merge(self, states: Mapping[int, bytes]) -> None:
            if states and len(failures) < 2:
                failures.append(len(states))
                raise ValueError("not now")
            await super().merge(states)

    await asyncio.to_thread(publish, kept.address, 1000)
    member = Member(kept.address, Failing)
    await handled(kept.address)
    await member.stop()
    assert len(failures) == 2
    assert [summary.result["records"] for summary in summaries(kept)] == [1000]


async def test_a_share_that_goes_to_another_and_cannot_finish(kept: DurableBus) -> None:
    """Its next owner may have its file by then: the member, which has other shares, goes on."""
    failures: list[int | None] = []

    class Failing(Totals):
        fails = True

        async def stop(self) -> None:
            if self.fails:
                failures.append(self.partition)
                raise ConfigError("output: 'x' is written by another process")

    group = [Member(kept.address, Failing)]
    await until(lambda: shared_out(group))
    group.append(Member(kept.address, Failing))
    await until(lambda: shared_out(group))
    await asyncio.to_thread(publish, kept.address, 1000)
    await handled(kept.address)
    assert len(failures) == 8
    Failing.fails = False
    for member in group:
        await member.stop()
    assert [summary.result["records"] for summary in summaries(kept)] == [1000]


async def test_a_handler_that_blocks_longer_than_the_bus_waits(kept: DurableBus) -> None:
    """A member on its own goes on with what it had: it does not start over for ever."""
    calls = []

    class Blocking(Totals):
        async def on_records(self, event: Records) -> None:
            calls.append(event.partition)
            time.sleep(1.0)  # noqa: ASYNC251
            await super().on_records(event)

    member = Member(kept.address, Blocking)
    await until(lambda: shared_out([member]))
    await asyncio.to_thread(publish, kept.address, 7)  # one batch
    await until(lambda: "r" in group_info(kept.address).handled_runs or len(calls) > 3)
    await member.stop()
    assert len(calls) == 1


async def test_a_leader_that_slept_has_no_more_to_say(kept: DurableBus) -> None:
    """Its successor's result is the last word, on the bus and in what it writes."""
    awake, asleep = threading.Event(), threading.Event()
    written: list[str] = []

    class Successor(Totals):
        async def flush(self) -> None:
            if self.partition is None:
                written.append(type(self).__name__)

    class Sleeping(Successor):
        async def on_phase_start(self, event: PhaseStart) -> None:
            asleep.set()
            awake.wait(30)
            await super().on_phase_start(event)

    sleeper = Sleeper(lambda: Member(kept.address, Sleeping))
    try:
        await until(lambda: len(sleeper.shares) == 17)
        with Run(kept.address) as run:
            await run.publish(700)
            await until(asleep.is_set)
            successor = Member(kept.address, Successor)
            await until(lambda: len(successor.shares) == 17)
            await run.publish(700, end=True)
            await handled(kept.address)
            await until(has_forgotten(successor))
            shares = successor.runner.shares.values()
            await until(lambda: not any(share._changed or share.commit for share in shares))
            written.clear()
            awake.set()
            await until(lambda: len(sleeper.shares) in (8, 9))
            assert "Sleeping" not in written
            await successor.stop()
    finally:
        awake.set()
        sleeper.close()
    assert [summary.result["records"] for summary in summaries(kept)] == [1400]
    with JournalReader(kept.data) as reader:
        assert [receipt.complete for receipt in reader.events("r", Receipt)] == [True]


async def test_a_run_is_handled_when_that_is_kept(kept: DurableBus) -> None:
    """Until the journal has it nobody lets go of the run, since the next leader would need its states."""
    member = Member(kept.address)
    await until(lambda: shared_out([member]))
    real = kept.journal.commit
    refused: list[Position] = []

    def commit(name: str, position: Position, saved: bytes | None = None) -> None:
        if name.endswith("/events") and saved is not None and decode_saved(saved).handled:
            refused.append(position)
            raise JournalError(kept.data, "the disk is full", "free some space")
        real(name, position, saved)

    with Run(kept.address) as run:
        vars(kept.journal)["commit"] = commit
        try:
            await run.publish(16 * 7, end=True)
            await until(lambda: len(refused) > 3)
            assert not group_info(kept.address).handled_runs
        finally:
            del vars(kept.journal)["commit"]
        await handled(kept.address)
    await until(has_forgotten(member))
    await member.stop()
    assert [summary.result["records"] for summary in summaries(kept)] == [112]


async def test_states_larger_than_a_message(ipc_dir: Path, tmp_path: Path) -> None:
    """They are sent in several messages, since the bus refuses one that is too large."""

    class Big(Totals):
        padding = bytes(100_000)

        def state(self) -> bytes:
            return super().state() + self.padding

        def restore(self, state: bytes) -> None:
            super().restore(state.removesuffix(self.padding))

        async def merge(self, states: Mapping[int, bytes]) -> None:
            await super().merge({n: state.removesuffix(self.padding) for n, state in states.items()})

    options = BusOptions(heartbeat_s=0.1, max_message_bytes=1 << 20)
    kept = DurableBus(ipc_dir, tmp_path / "journal", options)
    member = Member(kept.address, Big)
    try:
        await until(lambda: shared_out([member]))
        await asyncio.to_thread(publish, kept.address, 16 * 7)
        await handled(kept.address)
    finally:
        await member.stop()
        kept.close()


async def test_data_that_were_set_back(kept: DurableBus) -> None:
    """A consumer that stores its checkpoint with its data gets again what it has not stored."""
    stored: dict[str, Position] = {}
    seen: list[int] = []

    class Storing(Totals):
        async def position(self) -> Position | None:
            return stored.get(self.name, Position(self.streams[0], 0))

        async def on_records(self, event: Records) -> None:
            seen.append(self.offset)

        async def flush(self) -> None:
            stored[self.name] = Position(self.stream, self.offset)

    await asyncio.to_thread(publish, kept.address, 16 * 7)
    first = Member(kept.address, Storing)
    await handled(kept.address)
    await first.stop()
    stored.clear()
    second = Member(kept.address, Storing)
    await until(lambda: len(seen) == 32)
    await second.stop()
    assert sorted(seen[:16]) == sorted(seen[16:])


async def lose(
    member: Member, lost: list[bytes], loses: Callable[[bytes], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a member reads live, lose the events on topics that it ``loses``; note them in ``lost``."""

    def losing(socket: zmq.Socket[bytes]) -> tuple[bytes, bytes, zmq.Frame]:
        while loses((message := receive_event(socket))[0]):
            lost.append(message[0])
        return message

    await until(lambda: shared_out([member]))
    await until(lambda: not any(share.follower.replaying for share in member.runner.shares.values()))
    monkeypatch.setattr("phase_bus.consumer.zeromq.receive_event", losing)


async def test_a_loss_while_two_runs_go_on(
    ipc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lost on the way is read from the journal, whatever else came in the partition meanwhile."""
    kept = DurableBus(ipc_dir, tmp_path / "journal", BusOptions(heartbeat_s=4.0))
    member = Member(kept.address)
    lost: list[bytes] = []
    try:
        await lose(member, lost, lambda topic: topic == b"records.03.a$" and not lost, monkeypatch)
        with Run(kept.address, "a") as a, Run(kept.address, "b") as b:
            for _ in range(3):
                await a.publish(16 * 7)
                await b.publish(16 * 7)
            await a.publish(7, end=True)
            await b.publish(7, end=True)
            await handled(kept.address, "a")
            await handled(kept.address, "b")
        assert lost
        assert not group_info(kept.address).incomplete_runs
    finally:
        await member.stop()
        kept.close()


async def test_the_last_of_a_partition_is_lost(
    kept: DurableBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing comes after it that could show the hole: the next heartbeat does, and nobody complains."""
    member = Member(kept.address)
    lost: list[bytes] = []
    try:
        await lose(member, lost, lambda topic: topic.startswith(b"records."), monkeypatch)
        with Run(kept.address) as run:
            await run.publish(16 * 7)
            partitions = [share for share in member.runner.shares.values() if not share.leads]
            await until(lambda: all(share.dispatcher.received for share in partitions))
        assert len(lost) == 16
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
    finally:
        await member.stop()


async def test_a_publisher_that_comes_back(kept: DurableBus) -> None:
    """A run that was given up as lost goes on after all: at its real end all its records count."""
    member = Member(kept.address)
    await until(lambda: shared_out([member]))
    try:
        with Run(kept.address) as run:
            await run.publish(700)
            with BusClient(Address.parse(kept.address)) as client:
                await asyncio.to_thread(client.end_runs, "test")
            await handled(kept.address)
            # A run that has really ended meanwhile is forgotten, this one is not.
            with Run(kept.address, "other") as other:
                await other.publish(16 * 7, end=True)
                await until(has_forgotten(member, "other"))
            consumers = [share.consumer for share in member.runner.shares.values()]
            assert not any("r" in c.forgotten for c in consumers if isinstance(c, Totals))
            await run.publish(700, end=True)
            found = await until(lambda: len(found := summaries(kept)) == 2 and found)
    finally:
        await member.stop()
    assert [summary.result["records"] for summary in found] == [700, 1400]
