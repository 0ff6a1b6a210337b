"""The parts that other processes play around a stream of NATS: nats-py alone, and phase-bus.

Each says on its connection that it is ready, begins when it is told to, and says when it is done.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks import shapes
from benchmarks.harness import installed
from benchmarks.peers import run_member
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address, StreamAddress
from phase_bus.core.wire import Header
from phase_bus.events import PhaseProgress, PhaseStats, RunStart
from phase_bus.jetstream.connection import connected
from phase_bus.jetstream.cursor import Cursor
from phase_bus.jetstream.forwarder import Forwarder
from phase_bus.jetstream.message import packed, subject_of, subjects_of_bus
from phase_bus.jetstream.transport import JetStreamTransport
from phase_bus.publisher.publisher import Publisher

STREAM = "phase-bus"
ALL = f"{STREAM}.>"
_BATCH, _BATCH_BYTES = 500, 4 << 20  # of an atomic batch
_UNLIMITED = 1 << 31  # of what a subscriber has received and not looked at: never reached
_ASK_S = 30.0
_POOL = 256
_UNDER_WAY, _AGAIN_S = 10164, 0.02  # a cluster may say so of what it has just acknowledged
_SUBJECTS_LAST = "Nats-Expected-Last-Subject-Sequence"


class Event(NamedTuple):
    """An event as it travels."""

    topic: bytes
    payload: bytes

    def as_messages(self, count: int) -> list[Message]:
        """Return it so many times, as a forwarder would append it for some bus."""
        bus, source = uuid.uuid4().hex, uuid.uuid4().bytes
        subject = subject_of(STREAM, bus, self.topic)
        return [
            Message(bus, subject, body)
            for number in range(1, count + 1)
            for body in packed(
                self.topic, Header(source, number, number, offset=number).pack(), bus, self.payload, 1 << 20
            )
        ]


class Message(NamedTuple):
    """What is appended to a stream for a bus."""

    bus: str
    subject: str
    body: bytes


def appender(ready: Connection, how: str, url: str, event: Event, count: int) -> None:
    """Append with nats-py alone: each on its own, many under way, or in atomic batches."""
    made = event.as_messages(count)
    ready.send(url)
    ready.recv()
    asyncio.run(_APPEND[how](url, made))
    ready.send(count)


async def _one_by_one(url: str, made: Sequence[Message]) -> None:
    client = await _client(url)
    js = client.jetstream(timeout=_ASK_S)
    for message in made:
        await js.publish(message.subject, message.body)
    await client.close()


async def _many_under_way(url: str, made: Sequence[Message]) -> None:
    client = await _client(url)
    js = client.jetstream(timeout=_ASK_S)
    answers = [await js.publish_async(message.subject, message.body) for message in made]
    await asyncio.gather(*answers)
    await client.close()


async def append_in_batches(url: str, made: Sequence[Message]) -> None:
    """Append in atomic batches, one after another."""
    client = await _client(url)
    batch_messages = max(1, min(_BATCH, _BATCH_BYTES // len(made[0].body)))
    last = 0
    for first in range(0, len(made), batch_messages):
        last = await _append(client, made[first : first + batch_messages], last)
    await client.close()


_APPEND = {
    "one by one": _one_by_one,
    "many under way": _many_under_way,
    "in batches": append_in_batches,
}


def competitors(
    ready: Connection, url: str, event: Event, clients: int, batch: int, lasts_s: float
) -> None:
    """Append for several buses at once, so many messages on a condition, then the next; tell how many."""
    made = [event.as_messages(batch) for _ in range(clients)]
    ready.send(url)
    ready.recv()
    ready.send(asyncio.run(_compete(url, made, time.monotonic() + lasts_s)))


async def _compete(url: str, made: Sequence[Sequence[Message]], until_s: float) -> int:
    async def one(some: Sequence[Message]) -> int:
        client = await _client(url)
        done = last = 0
        while time.monotonic() < until_s:
            last = await _append(client, some, last)
            done += len(some)
        await client.close()
        return done

    return sum(await asyncio.gather(*map(one, made)))


async def _append(client: Any, some: Sequence[Message], last: int) -> int:
    """Append messages as one if nothing has come for their bus since its last; return where they end."""
    batch = uuid.uuid4().hex
    for number, message in enumerate(some, 1):
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)} if len(some) > 1 else {}
        if number == 1:
            headers[_SUBJECTS_LAST] = str(last)
            headers[f"{_SUBJECTS_LAST}-Subject"] = subjects_of_bus(STREAM, message.bus)
        if number < len(some):
            await client.publish(message.subject, message.body, headers=headers)
            continue
        if number > 1:
            headers["Nats-Batch-Commit"] = "1"
        answer = await client.request(message.subject, message.body, _ASK_S, headers=headers)
        said = json.loads(answer.data)
        if said.get("error", {}).get("err_code") == _UNDER_WAY:
            await asyncio.sleep(_AGAIN_S)
            return await _append(client, some, last)
        if "error" in said:
            raise RuntimeError(f"messages were refused: {said}")
        last = said["seq"]
    return last


def reader(ready: Connection, how: str, url: str, count: int) -> None:
    """Read a stream from its beginning, and count: with nats-py alone, or with what transports read by."""
    ready.send(url)
    ready.recv()
    asyncio.run(_READ[how](url, count))
    ready.send(count)


async def _pushed(url: str, count: int) -> None:
    client = await _client(url)
    done = asyncio.Event()
    received = 0

    async def receive(_message: Any) -> None:
        nonlocal received
        received += 1
        if received == count:
            done.set()

    await client.jetstream().subscribe(
        ALL,
        stream=STREAM,
        cb=receive,
        ordered_consumer=True,
        pending_msgs_limit=-1,
        pending_bytes_limit=_UNLIMITED,
    )
    await done.wait()
    await client.close()


async def _pulled(url: str, count: int) -> None:
    client, api = await _client(url), installed("nats.js.api")
    config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE, mem_storage=True)
    subscription = await client.jetstream().pull_subscribe(
        ALL, stream=STREAM, config=config, pending_msgs_limit=-1, pending_bytes_limit=_UNLIMITED
    )
    received = 0
    while received < count:
        received += len(await subscription.fetch(min(500, count - received)))
    await client.close()


async def _by_cursor(url: str, count: int) -> None:
    news = asyncio.Event()
    async with connected(StreamAddress.parse(url), "benchmark") as connection:
        cursor = Cursor(connection, STREAM, [ALL], 0, news.set)
        received = 0
        while received < count:
            news.clear()
            received += len(taken := await cursor.take())
            if not taken:
                await asyncio.wait_for(news.wait(), _ASK_S)
        await cursor.close()


_READ = {"pushed": _pushed, "pulled": _pulled, "by a cursor": _by_cursor}


async def _client(url: str) -> Any:
    client = installed("nats.aio.client").Client()
    servers = url.removeprefix("nats://").split(",")
    await client.connect([f"nats://{server}" for server in servers], pending_size=_UNLIMITED)
    return client


def forwarder(ready: Connection, name: str, bus: str, url: str) -> None:
    """Run a forwarder of a bus, from when it is told to."""
    for chatty in ("phase_bus.jetstream", "phase_bus.consumer"):  # what is not durable is known here
        logging.getLogger(chatty).setLevel(logging.ERROR)

    async def run() -> None:
        runner = ConsumerRunner(named(Forwarder(url), name), Address.parse(bus))
        ready.send(url)
        await asyncio.to_thread(ready.recv)
        await run_member(runner)

    asyncio.run(run())


def consumer(ready: Connection, make: Callable[..., Consumer], url: str, *arguments: Any) -> None:
    """Run a consumer of the stream as ``phase-bus consume`` does, from when it is told to."""

    async def run() -> None:
        runner = ConsumerRunner(
            named(make(*arguments), make.__name__),
            StreamAddress.parse(url),
            receipts=False,
            transport=JetStreamTransport,
        )
        ready.send(url)
        await asyncio.to_thread(ready.recv)
        await run_member(runner)

    asyncio.run(run())


def load_generators(
    ready: Connection, addresses: Sequence[str], group: int, rate: int, lasts_s: float
) -> None:
    """Be the benchmarks of several buses, each with a run of its own, from when it is told to.

    Args:
        rate: records a second of each.
    """
    pool = shapes.records(_POOL)
    with ExitStack() as stack:
        runs = {
            f"host-{group}-{number}": stack.enter_context(Publisher(address))
            for number, address in enumerate(addresses)
        }
        ready.send(group)
        ready.recv()
        for run_id, publisher in runs.items():
            publisher.publish(RunStart(run_id=run_id, producer="fleet"))
        started_s = time.monotonic()
        for turn in range(int(lasts_s * rate)):
            stats = PhaseStats(sent=turn)
            for run_id, publisher in runs.items():
                publisher.record(run_id, shapes.PHASE, *pool[turn % _POOL])
                if turn % rate == 0:
                    publisher.publish(PhaseProgress(run_id=run_id, phase=shapes.PHASE, stats=stats))
            time.sleep(max(started_s + (turn + 1) / rate - time.monotonic(), 0.0))
        for run_id, publisher in runs.items():
            publisher.complete_run(run_id, "completed")
        for publisher in runs.values():
            publisher.flush(_ASK_S)
        ready.recv()  # until it is ended
