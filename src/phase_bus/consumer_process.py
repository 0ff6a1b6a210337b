"""What every process around consumers has: its sockets, its talk with the bus, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

import zmq

from phase_bus.address import Address
from phase_bus.control import Assigned, Beat, Heard, Hello, State, Welcome
from phase_bus.conversation import Conversation
from phase_bus.events import KINDS, EventBase, Records
from phase_bus.live import LiveQueue
from phase_bus.publisher import Publisher
from phase_bus.replay_client import ReplayClient
from phase_bus.wire import WIRE_VERSION, topic_prefix

logger = logging.getLogger("phase_bus.consumer")

BREATH_S = 0.005  # how long handlers may run before heartbeats and signals get a turn
FLUSH_S = 1.0
RECEIPT_S = 2.0

# All kinds but records, wanted or not, so that no loss of an event can hide (docs/decisions/0007).
EVENT_TOPICS = tuple(topic_prefix(kind) for kind in KINDS if kind != Records.kind)


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

    def publish(self, event: EventBase) -> None:
        """Publish an event for a consumer; in direct mode there is nowhere to publish it."""
        if self._publisher is None and not self.address.direct:
            self._publisher = Publisher(str(self.address), name=f"{self.name} (results)")
        if self._publisher is not None:
            self._publisher.publish(event)

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

    async def _flush_publisher(self) -> None:
        """Wait until what was published is on the bus, for a while."""
        if self._publisher is not None:
            await asyncio.to_thread(self._publisher.flush, RECEIPT_S)

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
