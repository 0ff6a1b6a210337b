"""The parts that other processes play: the bus, a bare proxy, consumers, bare receive loops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.group_member import GroupMember
from phase_bus.consumer.member import Member
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.collector import leave_alone_what_is_there
from phase_bus.core.keys import find_key
from phase_bus.events import EventBase, PhaseProgress
from phase_bus.harness.ending import BUS_S, CONSUMER_S, Ending
from phase_bus.journal.rows import Durability
from phase_bus.journal.writer import Journal
from phase_bus_consumers.aggregator import ResultsAggregator

HIGH_WATER_MARK = 20_000  # more than is ever in flight: nothing is dropped on either side
NOTHING = b"nothing"  # a bare message that only shows that a subscription is in force


def bus(
    ready: Connection,
    address: str,
    durability: Durability = "write",
    *,
    data: str = "",
    key_file: str = "",
) -> None:
    """Run a bus; with a key if there is a file of one."""
    logging.getLogger("phase_bus.bus").setLevel(logging.ERROR)  # that a run never ends is intended here
    where = Address.parse(address)
    journal = Journal(Path(data or where.directory) / "journal", durability=durability)
    key = find_key(key_file)
    server = Bus([where], BusOptions(high_water_mark=HIGH_WATER_MARK), journal, key)
    with Ending(print, BUS_S) as ending:
        ending.begin("bus", server.stop)
        try:
            server.bind()
            ready.send(str(server.addresses[0]))
            leave_alone_what_is_there()
            server.run()
        finally:
            server.close()


def proxy(ready: Connection, publishers: str, subscribers: str) -> None:
    """Run ``zmq.proxy`` between an XSUB and an XPUB."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    for sock, endpoint in ((front, publishers), (back, subscribers)):
        sock.set_hwm(HIGH_WATER_MARK)
        sock.bind(endpoint)
    ready.send(subscribers)
    zmq.proxy(front, back)


def consumer(ready: Connection, make: Callable[..., Consumer], address: str, *arguments: Any) -> None:
    """Run a consumer as ``phase-bus consume`` does."""
    made = named(make(*arguments), make.__name__)

    async def run() -> None:
        runner = ConsumerRunner(
            made,
            Address.parse(address),
            high_water_mark=HIGH_WATER_MARK,
            receipts=False,
            on_ready=lambda: ready.send(address),
        )
        await run_member(runner)

    asyncio.run(run())


def late_consumer(ready: Connection, make: Callable[..., Consumer], address: str, *arguments: Any) -> None:
    """Run a consumer from when it is told to; it finds all in the journal."""
    ready.send(address)
    ready.recv()
    consumer(ready, make, address, *arguments)


def member(ready: Connection, address: str, group: str) -> None:
    """Run a member of a group of aggregators, from when it is told to."""

    def build() -> Consumer:
        return named(ResultsAggregator(output=None), group)

    async def run() -> None:
        runner = GroupMember(build, group, Address.parse(address))
        ready.send(address)
        await asyncio.to_thread(ready.recv)
        await run_member(runner)

    asyncio.run(run())


async def run_member(member: Member) -> None:
    """Run it until SIGTERM."""
    with Ending(print, CONSUMER_S) as ending:
        loop = asyncio.get_running_loop()
        ending.begin(member.name, lambda: loop.call_soon_threadsafe(member.stop))
        leave_alone_what_is_there()
        await member.run()


class Counting(Consumer):
    """Count all events, in memory shared with the parent."""

    def __init__(self, counts: Any, place: int) -> None:
        self._counts = counts
        self._place = place
        self._count = 0

    async def on_event(self, event: EventBase) -> None:  # noqa: ARG002 - decoded, and that is all
        self._count += 1
        self._counts[self._place] = self._count


class Timing(Consumer):
    """Note how long each event took from its making to the handler, in memory shared with the parent."""

    def __init__(self, latencies_ns: Any, counts: Any, place: int) -> None:
        self._latencies_ns = latencies_ns
        self._counts = counts
        self._place = place

    async def on_phase_progress(self, event: PhaseProgress) -> None:
        count = self._counts[self._place]
        self._latencies_ns[count] = time.time_ns() - event.ts_ns
        self._counts[self._place] = count + 1


def bare_consumer(ready: Connection, endpoint: str, counts: Any, place: int, *, by_frame: bool) -> None:
    """Receive and count, nothing else: with ``recv_multipart``, or with a ``recv`` for each frame."""
    sub = _sub(endpoint)
    ready.send(endpoint)
    count = 0
    recv, recv_multipart = sub.recv, sub.recv_multipart
    while True:
        topic = recv() if by_frame else recv_multipart()[0]
        if topic == NOTHING:
            counts[place] = -1  # the subscription is in force; the parent resets it
            continue
        if by_frame:
            recv()
            recv()
        count += 1
        counts[place] = count


def bare_timing(ready: Connection, endpoint: str, latencies_ns: Any, counts: Any, place: int) -> None:
    """Receive messages whose third frame begins with their time, and note how long each took."""
    sub = _sub(endpoint)
    ready.send(endpoint)
    while True:
        frames = sub.recv_multipart()
        if frames[0] == NOTHING:
            counts[place] = -1
            continue
        count = counts[place]
        latencies_ns[count] = time.time_ns() - int.from_bytes(frames[2][:8], "little")
        counts[place] = count + 1


def _sub(endpoint: str) -> zmq.Socket[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.set_hwm(HIGH_WATER_MARK)
    sub.subscribe(b"")
    sub.connect(endpoint)
    return sub
