"""What every process around consumers has: its sockets, how it reads on, its link to the bus, its end.

There are two kinds: :mod:`~phase_bus.consumer.runner` hosts one share over the whole stream, and
:mod:`~phase_bus.consumer.group_member` the shares that are assigned to a member of a group.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import ClassVar, TypeVar

import zmq

from phase_bus.consumer.account import Totals
from phase_bus.consumer.health import ConsumerSnapshot
from phase_bus.consumer.link import ControlLink
from phase_bus.consumer.live import LiveQueue, ask_for_firewall
from phase_bus.consumer.replay import Piece, ReplayClient
from phase_bus.consumer.share import Share
from phase_bus.core.address import Address
from phase_bus.core.control import (
    RESULTS_SUFFIX,
    Assigned,
    Beat,
    Heard,
    Hello,
    NameTaken,
    Reply,
    State,
    Welcome,
)
from phase_bus.core.health import LEAST_PATIENCE_S
from phase_bus.core.ipc_directory import CHECKED_FOR_S, check_answer, check_directory
from phase_bus.core.keys import key_for
from phase_bus.core.peer import property_of
from phase_bus.core.position import Lineage
from phase_bus.core.readable import wait_for_event
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import (
    NO_STREAM,
    READY,
    Header,
    decode_event,
    receive_event,
    stream_tag,
    topic_prefix,
    unpack_header,
)
from phase_bus.errors import (
    AddressError,
    BusUnreachableError,
    JournalUnreadableError,
    PhaseBusError,
    StreamMovedError,
    WireError,
)
from phase_bus.events import EventBase, Heartbeat, JournalLoss, Receipt
from phase_bus.publisher.publisher import Publisher

logger = logging.getLogger("phase_bus.consumer")
news = logging.getLogger("phase_bus.consumer.news")

FLUSH_S = 1.0
_HEARTBEAT = topic_prefix("heartbeat")
_BREATH_S = 0.005  # how long handlers may run before heartbeats and signals get a turn
_RECEIPT_S = 2.0
LOOK_S = 0.05  # between two looks where nothing tells this process that it can go on
_SILENT_AFTER_S = 10.0  # before a bus has said after how long it counts this process as gone
_READ_AGAIN_S = 1.0  # after the bus could not read its journal

T = TypeVar("T")


class Member(ABC):
    """The process around one consumer, or around one member of a consumer group.

    Args:
        high_water_mark: events queued in this process at most.
        on_ready: called once all subscriptions are in force.

    Attributes:
        client_id: 32 hex digits that name this process on the bus.
    """

    _noun: ClassVar[str] = "consumer"  # what it calls itself in the log
    _has_news = True  # whether it tells there of its connection, too

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        high_water_mark: int = 1000,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.address = address = address.connectable()
        check_directory(address)
        self.client_id = uuid.uuid4().hex
        self.state: State = "starting"
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._complaints = Throttle(logger)
        self._publisher: Publisher | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._key = key_for(address)
        self._live = LiveQueue(self._context, self.client_id, high_water_mark)
        self._replay: ReplayClient | None = None
        self._prunings = 0  # how many there had been when that bus welcomed it
        self._bus_id = ""  # of the bus that welcomed it last
        self._lineage = Lineage()  # likewise
        self._tag = NO_STREAM  # what of its stream's id is in the headers
        self._old_tags: set[bytes] = set()  # of the buses before
        self._next_flush_s = 0.0
        self._complained_of = ""  # the endpoint at which no answer about the journal came
        self._checked_s = -math.inf  # when the bus's place was seen to be nobody else's
        # In direct mode nothing but the events themselves tells who is there now.
        self._may_change = address.direct and address.scheme == "ipc"
        self._peer = ""  # whose the last event was then, and was found to be right
        self._failure: PhaseBusError | None = None  # why it ends, if that is its bus's word
        self._past = Totals()  # of shares that it had, and that others have now
        self._worst_lag_ns = 0  # likewise
        self._unconfirmed: dict[str, Receipt] = {}  # by run: receipts that are published, and on their way
        self._link = ControlLink(
            self._context,
            address,
            self._key,
            hello=self._hello,
            beat=self._beat,
            on_connect=self._tell_connected,
            on_reply=self._on_reply,
            on_fault=self._fail,
        )

    @abstractmethod
    async def run(self) -> None:
        """Start, handle events until stopped, then finish and write out.

        Raises:
            PhaseBusError, OSError: if it cannot start, or cannot write out at its end.
        """

    def stop(self) -> None:
        """Ask :meth:`run` to finish. Call it from the event loop."""
        self._stop.set()
        for share in self._held:
            share.dispatcher.hurry.set()
        self._live.readable.look_again()

    @abstractmethod
    def left(self) -> str:
        """Return, in words, what was received and is not written out and committed; empty for nothing.

        It may be called from any thread, while handlers run.
        """

    async def _wait(self, timeout_s: float) -> None:
        """Wait for a live event, for what ends such a wait, or for a time, unless asked to stop."""
        if not self._stop.is_set():
            await self._live.readable.wait(timeout_s)

    async def _pause(self, seconds: float) -> None:
        """Wait for a while, unless asked to stop."""
        await wait_for_event(self._stop, seconds)

    # ---- health ----

    def snapshot(self) -> ConsumerSnapshot:
        """Return how this process is now."""
        held = list(self._held)
        dispatchers = [share.dispatcher for share in held]
        totals = self._past
        for dispatcher in dispatchers:
            totals = totals.plus(dispatcher.totals())
        welcome = self._link.session.welcome
        silent_after_s = _SILENT_AFTER_S if welcome is None else welcome.silent_after_s
        return ConsumerSnapshot(
            taken_s=time.monotonic(),
            patience_s=max(silent_after_s, LEAST_PATIENCE_S),
            name=self.name,
            state=self.state,
            connected=self.address.direct or welcome is not None,
            cannot_write=any(dispatcher.cannot_write for dispatcher in dispatchers),
            totals=totals,
            lag_s=max((dispatcher.lag_ns for dispatcher in dispatchers), default=0) / 1e9,
            worst_lag_s=max((self._worst_lag_ns, *(d.worst_lag_ns for d in dispatchers))) / 1e9,
            dead_letters=sum(len(dispatcher.dead_letters) for dispatcher in dispatchers),
            offset=max((share.follower.offset for share in held), default=0),
            behind=max((share.follower.behind for share in held), default=0),
        )

    # ---- reading on ----

    @property
    @abstractmethod
    def _takes_live(self) -> bool:
        """Whether the next event may come from the live queue."""

    @abstractmethod
    async def _take(
        self, topic: bytes, header: Header, payload: bytes | memoryview, *, replayed: bool
    ) -> None:
        """Give an event to the share that it is for, if it may have it now."""

    @property
    @abstractmethod
    def _held(self) -> Iterable[Share]:
        """The shares that this process works on."""

    def _take_greeting(self) -> None:
        """Take in that all subscriptions are in force, for the first time or again.

        What was published before, and was not received, is in the journal only.
        """
        if self._replay is not None:
            for share in self._held:
                share.follower.replaying = True

    def _meet(self, tag: bytes) -> None:
        """Take in that a live event is not of the stream that is followed.

        ZeroMQ may have connected to a bus that was started anew, before that has welcomed this process.
        What is left of the old stream in the queue, and matters, comes from the journal.
        """
        if tag not in self._old_tags:
            self._link.ask_anew()

    def _take_heartbeat(self, topic: bytes, header: Header, payload: memoryview) -> None:
        """Take in where the stream and each partition of it stand."""
        event = decode_event(topic, payload)
        if isinstance(event, Heartbeat):
            for share in self._held:
                share.heartbeat(header, event.partitions)

    def _skip(self, error: WireError) -> None:
        """Tell of a message that is malformed."""
        self._complaints.warn("%s %r: %s; skipped", self._noun, self.name, error)

    async def _breathe(self) -> None:
        """Let heartbeats and signals have their turns."""
        await asyncio.sleep(0)

    async def _drain(self) -> bool:
        """Handle what has arrived live, for a breath at most; return whether there may be more."""
        now_s = time.monotonic()
        if now_s > self._checked_s + CHECKED_FOR_S:
            if not self._is_safe():
                return False
            self._checked_s = now_s
        breath_s = time.monotonic() + _BREATH_S
        while self._takes_live:
            try:
                topic, header_frame, payload = receive_event(self._live.socket)
                if self._may_change and (peer := property_of(payload, "Peer-Address")) != self._peer:
                    check_answer(self.address, payload)
                    self._peer = peer
                if topic.startswith(READY):
                    if self._live.is_greeting(topic):
                        self._take_greeting()
                    continue
                header = unpack_header(header_frame, topic)
                if header.stream != self._tag and not self.address.direct:
                    self._meet(header.stream)
                    continue
                if topic.startswith(_HEARTBEAT) and not self.address.direct:
                    self._take_heartbeat(topic, header, payload.buffer)
                else:
                    await self._take(topic, header, payload.buffer, replayed=False)
            except zmq.Again:
                return False
            except AddressError as error:
                self._distrust(error)
                return False
            except WireError as error:
                self._skip(error)
            if time.monotonic() >= breath_s:
                await self._breathe()
                return True
        return False

    async def _read_journal(self, ask: Callable[[ReplayClient], Awaitable[T]]) -> T | None:
        """Return what the bus answers from its journal, None if it cannot now: then ask again."""
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
            connected = self._link.session.connected and asked is self._replay
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
            await self._pause(LOOK_S)
            return None
        except (JournalUnreadableError, WireError) as error:
            logger.warning("%s %r: %s; trying again", self._noun, self.name, error)
            await self._pause(_READ_AGAIN_S)
            return None

    async def _fetch(self, share: Share, goes_on: Callable[[], bool]) -> Piece | None:
        """Handle the next piece of the journal while it may; return it, None if the bus could give none."""
        follower, partition = share.follower, share.view.partition
        piece = await self._read_journal(
            lambda replay: replay.fetch(follower.offset, records=follower.records, partition=partition)
        )
        if piece is None or not goes_on():
            return piece
        share.note_pruned(piece.pruned)
        for first, last in _ranges(piece.damaged):
            stream = self._lineage.position(first).stream
            share.note_journal_loss(JournalLoss(reason="damaged", stream=stream, first=first, last=last))
        breath_s = time.monotonic() + _BREATH_S
        for topic, header, payload in piece.events:
            try:
                await self._take(topic, header, payload, replayed=True)
            except WireError as error:
                self._skip(error)
            if time.monotonic() >= breath_s:
                await self._breathe()
                breath_s = time.monotonic() + _BREATH_S
            if self._stop.is_set() or not goes_on():
                return piece
        if piece.end:
            follower.caught_up(piece.offset, piece.event_number)
        share.pass_pruned(follower.offset)
        return piece

    # ---- publishing ----

    def publish(self, event: EventBase) -> None:
        """Publish an event for a consumer; in direct mode there is nowhere to publish it."""
        if self._publisher is None and not self.address.direct and self._is_safe():
            self._publisher = Publisher(str(self.address), name=f"{self.name}{RESULTS_SUFFIX}")
        if self._publisher is not None:
            self._publisher.publish(event)

    async def _give_receipt(self, receipt: Receipt) -> bool:
        """Publish a receipt, and wait a while for the bus; return whether it has that and all before it."""
        if self._publisher is None and self.address.direct:
            return True
        key = receipt.run_id
        if self._unconfirmed.get(key) != receipt:  # what is still on its way need not be said twice
            self._unconfirmed[key] = receipt
            self.publish(receipt)
        if self._publisher is None:
            return False
        if not await asyncio.to_thread(self._publisher.flush, _RECEIPT_S):
            logger.warning(
                "%s %r: the bus has not taken its receipt of run %s within %g s; trying again",
                self._noun,
                self.name,
                receipt.run_id,
                _RECEIPT_S,
            )
            return False
        del self._unconfirmed[key]
        return True

    # ---- the bus ----

    @property
    @abstractmethod
    def _beat(self) -> Callable[[], Beat]:
        """What makes the beat, which says what the bus is to know now."""

    @abstractmethod
    def _hello(self) -> Hello:
        """Return what introduces this process to the bus."""

    def _tell_connected(self) -> None:
        if self._has_news:
            news.info("%s %r: connected to the bus at %s", self._noun, self.name, self.address)

    def _on_welcome(self, welcome: Welcome) -> None:
        self._prunings = welcome.pruned
        self._live.connect(self.address.endpoint(welcome.events), self._key)
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        if welcome.replay is not None:
            self._replay = ReplayClient(
                self._context, self.address, welcome.replay, welcome.bus_id, self._key
            )
        if welcome.bus_id != self._bus_id:
            self._old_tags.add(self._tag)
            self._tag = stream_tag(welcome.bus_id)
            self._old_tags.discard(self._tag)

    def _is_safe(self) -> bool:
        """Return whether nobody else can be in the bus's place; if somebody can, this process ends."""
        try:
            check_directory(self.address)
        except AddressError as error:
            self._distrust(error)
            return False
        return True

    def _distrust(self, error: AddressError) -> None:
        """End: somebody else may be in the bus's place."""
        self._link.session.lose(time.monotonic())
        self._fail(error)

    def _fail(self, failure: PhaseBusError) -> None:
        """End with an error, and without another word to the bus that told it so."""
        self._failure = failure
        self.stop()

    @property
    def _claim(self) -> str:
        """What the bus gives to one process at a time; who has it next may take over the files."""
        return f"{self.address} {self.name}"

    def _is_known(self) -> bool:
        """Return whether the bus cannot have taken this process for gone, and given what it has to others.

        It may have when a handler has blocked this process for long, or it was suspended.
        """
        return self._link.session.is_known(time.monotonic())

    def _on_reply(self, reply: Reply) -> None:
        match reply:
            case Heard():
                self._on_ack(reply)
            case Welcome():
                self._on_welcome(reply)
            case Assigned():
                self._on_assigned(reply)
            case NameTaken():
                self._on_name_taken(reply)

    @abstractmethod
    def _on_ack(self, heard: Heard) -> None:
        """Take in the bus's answer to a beat."""

    def _on_assigned(self, assigned: Assigned) -> None:
        """Take in what a member of a group is to work on."""
        logger.warning("consumer %r is in no group: %s; ignored", self.name, assigned)

    def _on_name_taken(self, taken: NameTaken) -> None:
        """Take in that another process has the name."""
        logger.warning("consumer group %r is in a group: %s; ignored", self.name, taken)

    def _start_link(self) -> asyncio.Task[None]:
        control = asyncio.create_task(self._link.run())
        control.add_done_callback(lambda _: self.stop())
        return control

    def _become_ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"
            self._link.tell_news()
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


def _ranges(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges, both ends included."""
    ranges: list[tuple[int, int]] = []
    for offset in offsets:
        if ranges and ranges[-1][1] == offset - 1:
            ranges[-1] = (ranges[-1][0], offset)
        else:
            ranges.append((offset, offset))
    return ranges
