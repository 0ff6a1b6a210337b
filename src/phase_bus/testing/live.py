"""A real bus for tests: a process with sockets and a journal, on a random address."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import msgspec

from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.consumer.share import Origin
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import ClientInfo, DeadLetterNote, Status
from phase_bus.core.wire import topic_prefix
from phase_bus.events import EventBase, Receipt, RunStatus
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.outcome import Bus, C, RunningOutcome, prepare
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import DEADLINE_S

logger = logging.getLogger("phase_bus.testing")

_RUN_COMPLETE = topic_prefix("run_complete")
_LOOK_S = 0.02


class LiveBus(Bus):
    """A real bus in a process of its own, with the methods of :class:`~phase_bus.testing.MemoryBus`.

    Use it as a context manager: inside, the bus is ready; at its end the process and its directory are
    gone. Events published here are acknowledged, and so in the journal, when the call returns.

    Args:
        options: more of ``phase-bus bus``.

    Attributes:
        address: where the bus is.
        directory: where its sockets, journal and output are.
    """

    def __init__(self, *options: str) -> None:
        # In the system's own place, since the path of a socket must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="phase-bus-test-"))
        self.address = f"ipc://{self.directory}/bus"
        options = ("--heartbeat-s", "0.1", "--data", str(self.directory / "journal"), *options)
        self._process = BusProcess(self.directory / "bus.log", self.address, options=options)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, also again after :meth:`kill`; return when it is ready.

        Raises:
            AssertionError: it is not in time; its output is the message.
        """
        self._process.start()

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self._process.kill()

    def close(self) -> None:
        """End the process and remove its directory."""
        if "_own" in vars(self):
            self._own.close()
        if self._process.runs:
            try:
                self._process.terminate()
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        shutil.rmtree(self.directory)

    # ---- publishing ----

    def publisher(self, name: str = "publisher", **options: Any) -> Publisher:
        """Return a publisher on this bus, to be closed by the caller."""
        return Publisher(self.address, name=name, **options)

    def publish(self, *events: EventBase) -> None:
        """Publish events, in their order.

        Raises:
            AssertionError: the bus did not acknowledge them in time.
        """
        for event in events:
            self._own.publish(event)
        self._check_flushed()

    def complete_run(self, run_id: str, status: RunStatus = "completed", reason: str = "") -> None:
        """End a run, with the count of all that :meth:`publish` published of it."""
        self._own.complete_run(run_id, status, reason)
        self._check_flushed()

    # ---- what is on the bus ----

    def status(self) -> Status:
        """Return who is on the bus and how the runs are.

        Raises:
            BusUnreachableError: it does not answer.
        """
        with BusClient(Address.parse(self.address)) as client:
            return client.status()

    # ---- consumers ----

    def consumer(
        self, consumer: C | type[C], *, name: str = "", origin: Origin = "checkpoint", **options: Any
    ) -> LiveRun[C]:
        """Return a consumer that runs inside ``async with``, in this process.

        Args:
            consumer: the consumer, or its class to be built with the options.
            name: what it is called; its class's name by default.
            origin: where it begins.
            options: the options of a class, by name.
        """
        return LiveRun(self, prepare(consumer, name, options), origin)

    def offsets(self, topics: tuple[bytes, ...]) -> list[int]:
        """Return the offsets of the events on topics that begin so."""
        return [entry.offset for entry in self._entries() if entry.topic.startswith(topics)]

    def reader(self) -> JournalReader:
        """Return a reader of the journal, to be closed by the caller."""
        return JournalReader(self.directory / "journal")

    def _entries(self) -> list[Entry]:
        with self.reader() as reader:
            return list(reader.entries())

    @cached_property
    def _own(self) -> Publisher:
        return self.publisher("test")

    def _check_flushed(self) -> None:
        if not self._own.flush(DEADLINE_S):
            raise AssertionError(f"the bus at {self.address} did not acknowledge everything in time")


class LiveRun(RunningOutcome[C]):
    """A consumer on a real bus, with its process's whole machinery, in this process."""

    def __init__(self, bus: LiveBus, consumer: C, origin: Origin) -> None:
        super().__init__(consumer)
        self._bus = bus
        self._origin = origin
        self._ready = asyncio.Event()
        self._runner = self._host(consumer, origin)
        self._wanted = (*self._runner.share.view.wanted, _RUN_COMPLETE)
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def _host(self, consumer: C, origin: Origin) -> ConsumerRunner:
        where = Address.parse(self._bus.address)
        return ConsumerRunner(consumer, where, origin=origin, on_ready=self._ready.set)

    async def __aenter__(self) -> Self:
        self._keep_published()
        self._task = asyncio.create_task(self._runner.run())
        try:
            await self._until(self._ready.is_set, "was not ready in time")
        except BaseException:
            await self._end(self._task.cancel)
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        if not self._stopped:
            await self._end(self._runner.stop)
        self._collect()

    async def catch_up(self) -> None:
        """Wait until the consumer has handled and written out all that was published so far.

        Raises:
            AssertionError: it did not in time.
        """
        target = -1
        while target != (last := self._last_offset()):  # it may have published something itself meanwhile
            target = last
            await self._until(partial(self._is_at, target), "did not catch up")
        self._collect()

    async def crash(self) -> None:
        """End without a flush: the checkpoint stays where it was. ``stop`` is called all the same."""
        assert self._task is not None
        self._stopped = True
        await self._end(self._task.cancel)

    async def _until(self, condition: Callable[[], bool], failure: str) -> None:
        assert self._task is not None
        deadline_s = time.monotonic() + DEADLINE_S
        while not await asyncio.to_thread(condition):
            if self._task.done():
                await self._task  # raises what ended it
                raise AssertionError(f"consumer {self.consumer.name!r} has ended")
            if time.monotonic() > deadline_s:
                raise AssertionError(f"consumer {self.consumer.name!r} {failure}: {self._info()}")
            await asyncio.sleep(_LOOK_S)

    def _last_offset(self) -> int:
        return max(self._bus.offsets(self._wanted), default=0)

    def _is_at(self, offset: int) -> bool:
        """Return whether all up to an offset is handled and written out."""
        if not offset:
            return True
        with self._bus.reader() as reader:
            kept = reader.checkpoint(self.consumer.name)
        if kept is None or kept.offset < offset:
            return False
        if self._origin in ("checkpoint", "now"):
            return True
        # It reads again what another one of its name had: that one's checkpoint says nothing of this one.
        after = self._origin if isinstance(self._origin, int) else 0
        info = self._info()
        again = sum(offset > after for offset in self._bus.offsets(self._wanted))
        return info is not None and info.received >= again

    def _info(self) -> ClientInfo | None:
        mine = self._runner.client_id
        return next((c for c in self._bus.status().clients if c.client_id == mine), None)

    async def _end(self, how: Callable[[], object]) -> None:
        assert self._task is not None
        how()
        done, _ = await asyncio.wait({self._task}, timeout=DEADLINE_S)
        if not done:
            raise AssertionError(f"consumer {self.consumer.name!r} did not end within {DEADLINE_S:g} s")
        if not self._task.cancelled():
            self._task.result()  # raises what ended it

    def _keep_published(self) -> None:
        """Take note of what the consumer publishes."""
        publish = self.consumer.context.publish

        def keep(event: EventBase) -> None:
            self.published.append(event)
            publish(event)

        self.consumer.context.publish = keep

    def _collect(self) -> None:
        """Fetch from the journal what the bus knows of the consumer."""
        with self._bus.reader() as reader:
            for run in reader.runs():
                for receipt in reader.events(run.run_id, Receipt):
                    if receipt.consumer_id == self._runner.client_id:
                        self.receipts[run.run_id] = receipt
            self.dead_letters = [
                msgspec.convert(letter, DeadLetterNote, from_attributes=True)
                for letter in reader.dead_letters(self.consumer.name)
            ]
