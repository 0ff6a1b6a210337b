"""What every process around consumers has: its sockets, how it reads on, its talk with the bus, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import ClassVar, TypeVar

import zmq

from phase_bus.consumer.account import RunAccount
from phase_bus.consumer.dispatcher import Dispatcher
from phase_bus.consumer.link import Conversation
from phase_bus.consumer.live import LiveQueue
from phase_bus.consumer.replay import Piece, ReplayClient
from phase_bus.core.address import Address
from phase_bus.core.control import Assigned, Beat, Heard, Hello, State, Welcome
from phase_bus.core.wire import WIRE_VERSION, Header
from phase_bus.errors import BusUnreachableError, JournalUnreadableError, WireError
from phase_bus.events import EventBase, RunComplete
from phase_bus.publisher.publisher import Publisher

logger = logging.getLogger("phase_bus.consumer")

FLUSH_S = 1.0
_BREATH_S = 0.005  # how long handlers may run before heartbeats and signals get a turn
_RECEIPT_S = 2.0
_READ_AGAIN_S = 1.0  # after the bus could not read its journal

T = TypeVar("T")


class ConsumerProcess(ABC):
    """The process around one consumer, or around one member of a consumer group.

    Args:
        name: what the bus and its users call it.
        address: where the bus is.
        high_water_mark: events queued in this process at most.
        on_ready: called once all subscriptions are in force.

    Attributes:
        client_id: 32 hex digits that name this process on the bus.
        state: its lifecycle state.
    """

    _noun: ClassVar[str] = "consumer"  # what it calls itself in the log

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        high_water_mark: int = 1000,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        address.check_connectable()
        self.name = name
        self.address = address
        self.client_id = uuid.uuid4().hex
        self.state: State = "starting"
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._publisher: Publisher | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._live = LiveQueue(self._context, self.client_id, high_water_mark)
        self._replay: ReplayClient | None = None
        self._conversation = Conversation(
            self._context,
            address,
            hello=self._hello,
            beat=self._beat,
            on_welcome=self._be_welcomed,
            on_heard=self._be_heard,
            on_assigned=self._be_assigned,
        )

    @abstractmethod
    async def run(self) -> None:
        """Start, handle events until stopped, then finish and write out.

        Raises:
            PhaseBusError, OSError: it could not start, or not write out at its end.
        """

    def stop(self) -> None:
        """Ask :meth:`run` to finish. Call it from the event loop."""
        self._stop.set()

    async def _pause(self, seconds: float) -> None:
        """Wait for a while, unless asked to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    # ---- reading on ----

    @property
    @abstractmethod
    def _takes_live(self) -> bool:
        """Whether the next event may come from the live queue."""

    @abstractmethod
    def _take(self, topic: bytes, header_frame: bytes, payload: zmq.Frame) -> Header | None:
        """Take in a message of the live queue; return its header if it is an event to be judged.

        Raises:
            WireError: it cannot be read.
        """

    @abstractmethod
    async def _judge(
        self, topic: bytes, header: Header, payload: bytes | memoryview, *, replayed: bool
    ) -> None:
        """Decide whether an event is the next, a repetition, or shows a hole; handle the next."""

    def _set_aside(self, error: WireError) -> None:
        """Tell of a message that cannot be read."""
        logger.error("%s %r: %s; set aside", self._noun, self.name, error)

    async def _breathe(self) -> None:
        """Let heartbeats and signals have their turns."""
        await asyncio.sleep(0)

    async def _drain(self) -> bool:
        """Handle what has arrived live, for a breath at most; return whether there may be more."""
        breath_s = time.monotonic() + _BREATH_S
        while self._takes_live:
            try:
                topic, header_frame, payload = self._live.receive()
                header = self._take(topic, header_frame, payload)
            except zmq.Again:
                return False
            except WireError as error:
                self._set_aside(error)
            else:
                if header is not None:
                    await self._judge(topic, header, payload.buffer, replayed=False)
            if time.monotonic() >= breath_s:
                await self._breathe()
                return True
        return False

    async def _read_journal(self, ask: Callable[[ReplayClient], Awaitable[T]]) -> T | None:
        """Return what the bus answers from its journal, None if it cannot now: then ask again."""
        if self._replay is None:
            return None
        try:
            return await ask(self._replay)
        except BusUnreachableError:
            return None  # it may have been restarted; the control connection finds out
        except JournalUnreadableError as error:
            logger.warning("%s %r: %s; trying again", self._noun, self.name, error)
            await self._pause(_READ_AGAIN_S)
            return None

    async def _handle(self, piece: Piece, goes_on: Callable[[], bool]) -> bool:
        """Handle a piece of the journal, breath by breath.

        Args:
            piece: the piece.
            goes_on: whether to go on after an event.

        Returns:
            Whether all of it was judged.
        """
        breath_s = time.monotonic() + _BREATH_S
        for topic, header, payload in piece.events:
            await self._judge(topic, header, payload, replayed=True)
            if time.monotonic() >= breath_s:
                await self._breathe()
                breath_s = time.monotonic() + _BREATH_S
            if self._stop.is_set() or not goes_on():
                return False
        return True

    # ---- publishing ----

    def publish(self, event: EventBase) -> None:
        """Publish an event for a consumer; in direct mode there is nowhere to publish it."""
        if self._publisher is None and not self.address.direct:
            self._publisher = Publisher(str(self.address), name=f"{self.name} (results)")
        if self._publisher is not None:
            self._publisher.publish(event)

    async def _give_receipt(
        self, dispatcher: Dispatcher, end: RunComplete, parts: Iterable[RunAccount] = ()
    ) -> None:
        """Give the receipt of a run whose end was handled; the run counts as handled then."""
        receipt = dispatcher.receipt(end, parts)
        self.publish(receipt)
        if self._publisher is not None:
            # The summary and the receipt are on the bus before the run counts as handled.
            await asyncio.to_thread(self._publisher.flush, _RECEIPT_S)
        dispatcher.finished(end.run_id, whole=receipt.complete)

    # ---- the bus ----

    @abstractmethod
    def _beat(self) -> Beat:
        """Return what the bus is to know now."""

    def _hello(self) -> Hello:
        return Hello(
            client_id=self.client_id,
            role="consumer",
            name=self.name,
            pid=os.getpid(),
            host=socket.gethostname(),
            wire_version=WIRE_VERSION,
        )

    def _be_welcomed(self, welcome: Welcome) -> None:
        self._live.connect(self.address.endpoint(welcome.events))
        if welcome.replay is not None:
            endpoint = self.address.endpoint(welcome.replay)
            if self._replay is None:
                self._replay = ReplayClient(self._context, endpoint)
            else:
                self._replay.connect(endpoint)
        elif self._replay is not None:
            self._replay.close()
            self._replay = None

    @abstractmethod
    def _be_heard(self, heard: Heard) -> None:
        """Take in the bus's answer to a beat."""

    def _be_assigned(self, assigned: Assigned) -> None:
        """Take in what a member of a group is to work on."""
        logger.warning("consumer %r is in no group: %s; set aside", self.name, assigned)

    def _become_ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"
            self._conversation.tell_news()
            if self._on_ready is not None:
                self._on_ready()

    async def _close(self, control: asyncio.Task[None] | None) -> None:
        try:
            if control is not None:
                control.cancel()
                with suppress(asyncio.CancelledError):
                    await control
            if self._publisher is not None:
                await asyncio.to_thread(self._publisher.close)
        finally:
            if self._replay is not None:
                self._replay.close()
            self._live.close()
            self._context.destroy()
