"""Groups in this process: a consumer to be shared out, members that come and go, and runs for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

import msgspec

from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.group_member import GroupMember
from phase_bus.consumer.options import build_consumer
from phase_bus.consumer.transport import OpenTransport
from phase_bus.consumer.zeromq import ZeroMqTransport
from phase_bus.core.address import Address, parse_any
from phase_bus.core.client import BusClient
from phase_bus.core.control import EVENTS, GroupInfo, Status
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef, PhaseStart, Records, RunComplete, Summary
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until


class Totals(Consumer):
    """Count the records and add up their numbers; the leader publishes the totals at the run's end."""

    group = "totals"

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}  # by run: records, and the sum of their numbers
        self.parts: dict[int, dict[str, list[int]]] = {}
        self.phases = 0
        self.forgotten: list[str] = []

    def state(self) -> bytes:
        return msgspec.msgpack.encode((self.counts, self.phases))

    def restore(self, state: bytes) -> None:
        self.counts, self.phases = msgspec.msgpack.decode(state, type=tuple[dict[str, list[int]], int])

    async def merge(self, states: Mapping[int, bytes]) -> None:
        assert self.partition is None
        assert list(states) == sorted(states)
        for partition, state in states.items():
            counts, _ = msgspec.msgpack.decode(state, type=tuple[dict[str, list[int]], int])
            self.parts[partition] = counts

    def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)
        self.counts.pop(run_id, None)

    async def on_phase_start(self, event: PhaseStart) -> None:
        assert self.partition is None
        self.phases += 1

    async def on_records(self, event: Records) -> None:
        assert self.partition == event.partition
        counts = self.counts.setdefault(event.run_id, [0, 0])
        counts[0] += event.count
        counts[1] += int(RecordBatch(event).values("n").sum())

    async def on_run_complete(self, event: RunComplete) -> None:
        assert self.partition is None
        mine = [part[event.run_id] for part in self.parts.values() if event.run_id in part]
        records, numbers = sum(count for count, _ in mine), sum(total for _, total in mine)
        result = {"records": records, "sum": numbers, "phases": self.phases}
        final = records == event.records
        self.publish(Summary(run_id=event.run_id, producer=self.name, final=final, result=result))


PHASE = PhaseRef("profiling")
EVERYTHING = {EVENTS, *range(16)}


class Member:
    """A member of a group in this process, that can be ended or cut off."""

    def __init__(
        self,
        address: str,
        cls: type[Consumer] = Totals,
        settings: str = "",
        transport: OpenTransport = ZeroMqTransport,
    ) -> None:
        self.ready = asyncio.Event()
        self.runner = GroupMember(
            lambda: build_consumer(cls, "totals", {}),
            "totals",
            parse_any(address),
            settings=settings,
            on_ready=self.ready.set,
            transport=transport,
        )
        self.task = asyncio.create_task(self.runner.run())

    @property
    def shares(self) -> set[int]:
        """What it works on."""
        return set(self.runner.shares)

    async def stop(self) -> None:
        """Let it finish."""
        self.runner.stop()
        await asyncio.wait_for(self.task, 20)


class Sleeper:
    """A member in a thread and event loop of its own, so that it can be blocked alone."""

    def __init__(self, make: Callable[[], Member]) -> None:
        self._make = make
        self._member: Member | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._member = self._make()
        await asyncio.wait((self._member.task,))

    @property
    def shares(self) -> set[int]:
        """What it works on."""
        return self._member.shares if self._member is not None else set()

    def close(self) -> None:
        """Let it finish."""
        assert self._member is not None
        self._loop.call_soon_threadsafe(self._member.runner.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()


@asynccontextmanager
async def members(count: int, address: str) -> AsyncIterator[list[Member]]:
    """A group of some members, from when the work is shared out among them."""
    async with AsyncExitStack() as stack:
        group = []
        for _ in range(count):
            group.append(Member(address))
            stack.push_async_callback(group[-1].stop)
        await until(lambda: shared_out(group))
        for member in group:
            await asyncio.wait_for(member.ready.wait(), 20)
        yield group


def shared_out(group: list[Member]) -> bool:
    """Whether each share has one member, and all have about as many."""
    sizes = [len(member.shares) for member in group]
    union = set().union(*(member.shares for member in group))
    return union == EVERYTHING and sum(sizes) == len(EVERYTHING) and max(sizes) - min(sizes) <= 1


class Run:
    """A run of one publisher, published bit by bit."""

    def __init__(self, address: str, run_id: str = "r") -> None:
        self.run_id = run_id
        self._publisher = Publisher(address, batch_records=7)
        self._next = 0

    def __enter__(self) -> Self:
        self._publisher.publish(PhaseStart(run_id=self.run_id, phase=PHASE))
        return self

    def __exit__(self, *_error: object) -> None:
        self._publisher.close()

    async def publish(self, records: int, *, end: bool = False) -> None:
        """Publish the next records, and wait until the bus has them."""
        for _ in range(records):
            self._publisher.record(self.run_id, PHASE, {"n": self._next}, {})
            self._next += 1
        if end:
            self._publisher.complete_run(self.run_id, "completed")
        assert await asyncio.to_thread(self._publisher.flush, 20)


def publish(address: str, records: int, run_id: str = "r") -> None:
    """Publish a whole run of numbered records, and wait until the bus has them."""
    with Publisher(address, batch_records=7) as publisher:
        publisher.publish(PhaseStart(run_id=run_id, phase=PHASE))
        for number in range(records):
            publisher.record(run_id, PHASE, {"n": number}, {})
        publisher.complete_run(run_id, "completed")
        assert publisher.flush(20)


def status(address: str) -> Status:
    """What the bus knows."""
    with BusClient(Address.parse(address)) as client:
        return client.status()


def group_info(address: str) -> GroupInfo:
    """What the bus knows of the one group."""
    groups = status(address).groups
    return groups[0] if groups else GroupInfo(name="", generation=0, members=0)


async def handled(address: str, run_id: str = "r") -> GroupInfo:
    """Wait until the group has handled a run."""
    return await until(lambda: run_id in (info := group_info(address)).handled_runs and info)
