"""A bus in memory: everything is really encoded, numbered, ordered, decoded and dispatched; no socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, Self

from phase_bus.consumer.share import Origin
from phase_bus.consumer.sink import Sink
from phase_bus.consumer.view import View
from phase_bus.errors import NameTakenError
from phase_bus.events import EventBase, RunStatus
from phase_bus.testing.group import GroupOutcome
from phase_bus.testing.outcome import C, Outcome, RunningOutcome, prepare
from phase_bus.testing.store import MemoryOutcome, MessageStore


class MemoryBus(MessageStore):
    """A bus in memory, for tests of consumers and publishers.

    Like a real one it keeps everything, so that a consumer may come before or after what is published,
    and it remembers under the consumer's name where one stood at its last flush::

        bus = MemoryBus()
        bus.publish(*make_run(records=100))
        run = await bus.run_consumer(MyConsumer, threshold_s=1.5)
        assert run.receipt.complete
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._own = self.publisher("test")

    def publish(self, *events: EventBase) -> None:
        """Publish events, in their order."""
        for event in events:
            self._own.publish(event)

    def complete_run(self, run_id: str, status: RunStatus = "completed", reason: str = "") -> None:
        """End a run, with the count of all that :meth:`publish` published of it."""
        self._own.complete_run(run_id, status, reason)

    def consumer(
        self,
        consumer: C | type[C],
        *,
        name: str = "",
        origin: Origin = "checkpoint",
        attempts: int | None = None,
        **options: Any,
    ) -> MemoryRun[C]:
        """Return a consumer that runs inside ``async with``; the same name goes on from the checkpoint.

        As on a real bus, entering it raises a NameTakenError while another one of its name runs.

        Args:
            consumer: the consumer, or its class to be built with the options.
            name: what it is called; its class's name by default.
            origin: where it begins: at its ``checkpoint``, at the ``start``, with what comes from
                ``now`` on, or after an offset.
            attempts: how often a handler is tried before the event becomes a dead letter; by default as
                often as the consumer's options say.
            options: the options of a class, by name.
        """
        return MemoryRun(self, prepare(consumer, name, options), origin, attempts)

    async def run_group(self, consumer: type[C], *, name: str = "", **options: Any) -> GroupOutcome[C]:
        """Run a consumer as a group: an instance for each partition of the records, and the leader.

        Args:
            consumer: the class.
            name: the group's name; that of the class by default.
            options: the class's options, by name.

        Raises:
            ConfigError: it takes no records.
        """
        group = name or consumer.group or consumer.__name__
        outcome = GroupOutcome(self, lambda: prepare(consumer, group, options), group)
        await outcome._run()
        return outcome


class MemoryRun(MemoryOutcome[C], RunningOutcome[C]):
    """A consumer on an in-memory bus: started when ``async with`` begins, stopped when that ends.

    Handlers run in :meth:`catch_up`, and nowhere else: a test decides when.
    """

    def __init__(self, bus: MemoryBus, consumer: C, origin: Origin, attempts: int | None) -> None:
        super().__init__(bus, consumer, consumer.name)
        self._origin = origin
        self._whole = self._share(consumer, View.whole(consumer), attempts)
        self._read = 0  # how many messages of the bus it has been given
        self._runs = False

    async def __aenter__(self) -> Self:
        name = self._whole.name
        if name in self._bus.names:
            raise NameTakenError(name, os.getpid(), socket.gethostname())
        await self._whole.start()
        self._bus.names.add(name)
        self._runs = True
        kept = self._bus.checkpoints.get(self._whole.name)
        await self._whole.begin(kept, self._bus.lineage, origin=self._origin, head=self._bus.head)
        self._read = self._whole.follower.offset
        return self

    async def __aexit__(self, *_error: object) -> None:
        if not self._runs:
            return
        self._end()
        self._whole.end()
        try:
            await self.flush()
            await self._whole.give_receipts()  # also for what could not be written out: they say so
        finally:
            await self._whole.stop()

    async def catch_up(self) -> None:
        """Let the consumer handle all that was published so far, what it publishes itself included."""
        while self._read < len(self._bus.messages):
            topic, header, payload = self._bus.messages[self._read]
            self._read += 1
            if not topic.startswith(self._whole.view.topics):
                continue
            if await self._whole.handle(topic, header, payload, replayed=False) is not None:
                await self.flush()

    async def flush(self) -> bool:
        """Let the consumer write out, and keep its checkpoint if it could; return whether it could."""
        return await self._flush(self._whole)

    async def crash(self) -> None:
        """End as by SIGKILL: neither flush nor stop is called, and the checkpoint stays where it was."""
        self._end()
        if isinstance(self.consumer, Sink):
            await self.consumer.abandon()
        self._whole.close_outputs()

    def _end(self) -> None:
        self._runs = False
        self._bus.names.discard(self._whole.name)


async def run_consumer(
    consumer: C | type[C], *events: EventBase, name: str = "", **options: Any
) -> Outcome[C]:
    """Run a consumer on an in-memory bus of its own that has these events; return what it did.

    For example: ``run = await run_consumer(MyConsumer, *make_run(), threshold_s=1.5)``.

    Args:
        consumer: the consumer, or its class to be built with the options.
        events: what is published, in order.
        name: what the consumer is called.
        options: the options of a class, by name.
    """
    bus = MemoryBus()
    bus.publish(*events)
    return await bus.run_consumer(consumer, name=name, **options)


def run_consumer_sync(
    consumer: C | type[C], *events: EventBase, name: str = "", **options: Any
) -> Outcome[C]:
    """Do the same in a test that is not async."""
    return asyncio.run(run_consumer(consumer, *events, name=name, **options))
