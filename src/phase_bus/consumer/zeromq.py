"""A bus of ZeroMQ sockets as a transport: a SUB for what is live, a DEALER each for the past, the rest."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import zmq

from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.link import ControlLink
from phase_bus.consumer.live import LiveQueue, ask_for_firewall
from phase_bus.consumer.replay import ReplayClient
from phase_bus.consumer.share import Share
from phase_bus.consumer.transport import Host, Piece, Transport
from phase_bus.core.address import Address
from phase_bus.core.control import RESULTS_SUFFIX, Reply, Welcome
from phase_bus.core.ipc_directory import CHECKED_FOR_S, check_answer, check_directory
from phase_bus.core.keys import key_for
from phase_bus.core.peer import property_of
from phase_bus.core.wire import (
    NO_STREAM,
    READY,
    decode_event,
    receive_event,
    stream_tag,
    topic_prefix,
)
from phase_bus.errors import (
    AddressError,
    BusUnreachableError,
    JournalUnreadableError,
    StreamMovedError,
    WireError,
)
from phase_bus.events import EventBase, Heartbeat
from phase_bus.journal.rows import Checkpoint
from phase_bus.publisher.publisher import Publisher

logger = logging.getLogger("phase_bus.consumer")

_HEARTBEAT = topic_prefix("heartbeat")
_BREATH_S = 0.005  # how long handlers may run before heartbeats and signals get a turn
_MOVED_S = 0.05  # after another bus has come to the place of the one asked
_READ_AGAIN_S = 1.0  # after the bus could not read its journal

T = TypeVar("T")


class ZeroMqTransport(Transport):
    """The sockets of one process to a bus, or to a publisher in direct mode.

    Args:
        high_water_mark: messages queued in this process at most, each an event or a bundle.
    """

    def __init__(self, address: Address, host: Host, high_water_mark: int) -> None:
        check_directory(address)
        self._address = address
        self._host = host
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._key = key_for(address)
        self._live = LiveQueue(self._context, host.client_id, high_water_mark)
        self._replay: ReplayClient | None = None
        self._publisher: Publisher | None = None
        self._bus_id = ""  # of the bus that welcomed this process last
        self._tag = NO_STREAM  # what of its stream's id is in the headers
        self._old_tags: set[bytes] = set()  # of the buses before
        self._rest: Arrival | None = None  # what is left of the last live message: the next to be handled
        self._complained_of = ""  # the endpoint at which no answer about the journal came
        self._checked_s = -math.inf  # when the bus's place was seen to be nobody else's
        # In direct mode nothing but the events themselves tells who is there now.
        self._may_change = address.direct and address.scheme == "ipc"
        self._peer = ""  # whose the last event was then, and was found to be right
        self._link = ControlLink(
            self._context,
            address,
            self._key,
            hello=host.hello,
            beat=host.beat,
            on_connect=host.connected,
            on_reply=self._on_reply,
            on_fault=host.fail,
        )
        self.session = self._link.session

    # ---- the conversation ----

    async def run(self) -> None:
        await self._link.run()

    def tell_news(self) -> None:
        self._link.tell_news()

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply, Welcome):
            self._connect(reply)
        self._host.heard(reply)

    def _connect(self, welcome: Welcome) -> None:
        self._live.connect(self._address.endpoint(welcome.events), self._key)
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        if welcome.replay is not None:
            self._replay = ReplayClient(
                self._context,
                self._address,
                welcome.replay,
                welcome.bus_id,
                self._key,
                welcome.journal,
            )
        if welcome.bus_id != self._bus_id:
            self._old_tags.add(self._tag)
            self._tag = stream_tag(welcome.bus_id)
            self._old_tags.discard(self._tag)
        self._bus_id = welcome.bus_id

    def _is_safe(self) -> bool:
        """Return whether nobody else can be in the bus's place; if somebody can, the process ends."""
        try:
            check_directory(self._address)
        except AddressError as error:
            self._distrust(error)
            return False
        return True

    def _distrust(self, error: AddressError) -> None:
        """End the process, without another word: somebody else may be in the bus's place."""
        self.session.lose(time.monotonic())
        self._host.fail(error)

    # ---- live events ----

    @property
    def greeted(self) -> bool:
        return self._live.greeted

    def subscribe(self, topics: Iterable[bytes]) -> None:
        self._live.subscribe(topics)
        if self._address.direct:
            self._live.connect(self._address.direct_events)

    def unsubscribe(self, topics: Iterable[bytes]) -> None:
        self._live.unsubscribe(topics)

    def ask_for_greeting(self) -> None:
        self._live.ask_for_greeting()

    def ask_again(self) -> None:
        self._live.ask_again()

    async def wait(self, timeout_s: float) -> None:
        if self._rest is None or not self._host.takes_live:
            await self._live.readable.wait(timeout_s)

    def look_again(self) -> None:
        self._live.readable.look_again()

    async def drain(self) -> bool:
        host, now_s = self._host, time.monotonic()
        if now_s > self._checked_s + CHECKED_FOR_S:
            if not self._is_safe():
                return False
            self._checked_s = now_s
        breath_s, tag = time.monotonic() + _BREATH_S, self._tag

        def goes_on() -> bool:
            # What another bus has after the same offset may be something else.
            return host.takes_live and self._tag is tag and time.monotonic() < breath_s

        while host.takes_live:
            try:
                arrival, self._rest = self._rest or self._receive(), None
                if arrival is None:
                    continue
                if arrival.header.stream != self._tag and not self._address.direct:
                    self._meet(arrival.header.stream)
                    continue
                if arrival.topic.startswith(_HEARTBEAT) and not self._address.direct:
                    self._take_heartbeat(arrival)
                else:
                    await host.take(arrival, goes_on, replayed=False)
                if arrival.left:
                    self._rest = arrival
            except zmq.Again:
                return False
            except AddressError as error:
                self._distrust(error)
                return False
            except WireError as error:
                host.skip(error)
            if time.monotonic() >= breath_s:
                await host.breathe()
                return True
        return False

    def _receive(self) -> Arrival | None:
        """Return what has arrived next, None for the bus's greeting.

        Raises:
            zmq.Again: if there is nothing.
            AddressError: if it may be somebody else's.
            WireError: if it is malformed.
        """
        topic, header_frame, payload = receive_event(self._live.socket)
        if self._may_change and (peer := property_of(payload, "Peer-Address")) != self._peer:
            check_answer(self._address, payload)
            self._peer = peer
        if not topic.startswith(READY):
            return Arrival.of(topic, header_frame, payload.buffer)
        if self._live.is_greeting(topic):
            self._host.take_greeting()
        return None

    def _meet(self, tag: bytes) -> None:
        """Take in that a live event is not of the stream that is followed.

        ZeroMQ may have connected to a bus that was started anew, before that has welcomed this process.
        What is left of the old stream in the queue, and matters, comes from the journal.
        """
        if tag not in self._old_tags:
            self._link.ask_anew()

    def _take_heartbeat(self, arrival: Arrival) -> None:
        """Take in where the stream and each partition of it stand."""
        event = decode_event(arrival.topic, arrival.payload)
        if isinstance(event, Heartbeat):
            for share in self._host.held:
                share.heartbeat(arrival.header, event.partitions)
        arrival.done(1)

    # ---- what is past ----

    @property
    def has_past(self) -> bool:
        return self._replay is not None

    async def fetch(self, share: Share) -> Piece | None:
        follower = share.follower
        return await self._ask(
            lambda replay: replay.fetch(
                follower.offset, records=follower.records, partition=share.view.partition
            )
        )

    async def fetch_states(
        self, group: str, after: Mapping[int, int], only: int | None = None
    ) -> dict[int, Checkpoint] | None:
        return await self._ask(lambda replay: replay.fetch_states(group, after, only))

    async def _ask(self, ask: Callable[[ReplayClient], Awaitable[T]]) -> T | None:
        """Return what the bus answers from its journal, None if it cannot now."""
        asked = self._replay
        if asked is None:
            return None
        try:
            return await ask(asked)
        except AddressError as error:
            self._distrust(error)
            return None
        except BusUnreachableError as error:
            # It may have been restarted: the control connection finds out, or has just done so.
            connected = self.session.connected and asked is self._replay
            if connected and self._complained_of != error.address:
                self._complained_of = error.address
                logger.warning(
                    "the bus answers, but its journal at %s did not within %g s%s Still trying",
                    error.address,
                    error.timeout_s,
                    ask_for_firewall(error.address),
                )
            return None
        except StreamMovedError:
            self._link.ask_anew()
            await self._host.pause(_MOVED_S)
            return None
        except (JournalUnreadableError, WireError) as error:
            logger.warning("%s %r: %s; trying again", self._host.noun, self._host.name, error)
            await self._host.pause(_READ_AGAIN_S)
            return None

    # ---- publishing ----

    def publish(self, event: EventBase) -> None:
        """Publish an event for a consumer; in direct mode there is nowhere to publish it."""
        if self._publisher is None and not self._address.direct and self._is_safe():
            self._publisher = Publisher(str(self._address), name=f"{self._host.name}{RESULTS_SUFFIX}")
        if self._publisher is not None:
            self._publisher.publish(event)

    async def flush(self, timeout_s: float) -> bool:
        if self._publisher is None:
            return False
        return await asyncio.to_thread(self._publisher.flush, timeout_s)

    async def close(self) -> None:
        try:
            if self._publisher is not None:
                await asyncio.to_thread(self._publisher.close)
        finally:
            if self._replay is not None:
                self._replay.close()
            self._live.close()
            self._context.destroy()
