"""What every process around consumers has: its transport, how it reads on, what it publishes, its end.

There are two kinds: :mod:`~phase_bus.consumer.runner` hosts one share over the whole stream, and
:mod:`~phase_bus.consumer.group_member` the shares that are assigned to a member of a group.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress

from phase_bus.consumer.account import Totals
from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.health import ConsumerSnapshot
from phase_bus.consumer.share import Share
from phase_bus.consumer.transport import OpenTransport, Piece
from phase_bus.consumer.zeromq import ZeroMqTransport
from phase_bus.core.address import AnyAddress
from phase_bus.core.control import Assigned, Beat, Heard, Hello, NameTaken, Reply, State, Welcome
from phase_bus.core.health import LEAST_PATIENCE_S
from phase_bus.core.position import Lineage
from phase_bus.core.readable import wait_for_event
from phase_bus.core.throttle import Throttle
from phase_bus.errors import PhaseBusError, WireError
from phase_bus.events import EventBase, JournalLoss, Receipt

logger = logging.getLogger("phase_bus.consumer")
news = logging.getLogger("phase_bus.consumer.news")

FLUSH_S = 1.0
_BREATH_S = 0.005  # how long handlers may run before heartbeats and signals get a turn
_RECEIPT_S = 2.0
LOOK_S = 0.05  # between two looks where nothing tells this process that it can go on
_SILENT_AFTER_S = 10.0  # before a bus has said after how long it counts this process as gone


class Member(ABC):
    """The process around one consumer, or around one member of a consumer group.

    Args:
        high_water_mark: messages queued in this process at most, each an event or a bundle.
        on_ready: called once all subscriptions are in force.
        transport: makes what carries the events.

    Attributes:
        client_id: 32 hex digits that name this process on the bus.
        noun: what it calls itself in the log.
    """

    noun = "consumer"
    _has_news: bool = True  # whether it tells in the log of its connection, too

    def __init__(
        self,
        name: str,
        address: AnyAddress,
        *,
        high_water_mark: int = 1000,
        on_ready: Callable[[], None] | None = None,
        transport: OpenTransport = ZeroMqTransport,
    ) -> None:
        self.name = name
        self.address: AnyAddress = address.connectable()
        self.client_id = uuid.uuid4().hex
        self.state: State = "starting"
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._complaints = Throttle(logger)
        self._prunings = 0  # how many there had been when the bus welcomed it
        self._bus_id = ""  # of the bus that welcomed it last
        self._lineage = Lineage()  # likewise
        self._next_flush_s = 0.0
        self._failure: PhaseBusError | None = None  # why it ends, if that is its bus's word
        self._past = Totals()  # of shares that it had, and that others have now
        self._worst_lag_ns = 0  # likewise
        self._unconfirmed: dict[str, Receipt] = {}  # by run: receipts that are published, and on their way
        self._transport = transport(self.address, self, high_water_mark)

    @abstractmethod
    async def run(self) -> None:
        """Start, handle events until stopped, then finish and write out.

        Raises:
            PhaseBusError, OSError: if it cannot start, or cannot write out at its end.
        """

    def stop(self) -> None:
        """Ask :meth:`run` to finish. Call it from the event loop."""
        self._stop.set()
        for share in self.held:
            share.dispatcher.hurry.set()
        self._transport.look_again()

    @abstractmethod
    def left(self) -> str:
        """Return, in words, what was received and is not written out and committed; empty for nothing.

        It may be called from any thread, while handlers run.
        """

    async def _wait(self, timeout_s: float) -> None:
        """Wait for a live event, for what ends such a wait, or for a time, unless asked to stop."""
        if not self._stop.is_set():
            await self._transport.wait(timeout_s)

    async def pause(self, seconds: float) -> None:
        """Wait for a while, unless asked to stop."""
        await wait_for_event(self._stop, seconds)

    # ---- health ----

    def snapshot(self) -> ConsumerSnapshot:
        """Return how this process is now."""
        held = list(self.held)
        dispatchers = [share.dispatcher for share in held]
        totals = self._past
        for dispatcher in dispatchers:
            totals = totals.plus(dispatcher.totals())
        welcome = self._transport.session.welcome
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
    def takes_live(self) -> bool:
        """Whether the next event may come from the live queue."""

    @abstractmethod
    async def take(self, arrival: Arrival, goes_on: Callable[[], bool], *, replayed: bool) -> None:
        """Give what has arrived to the share that it is for: see :class:`Host`."""

    @property
    @abstractmethod
    def held(self) -> Iterable[Share]:
        """The shares that this process works on."""

    def take_greeting(self) -> None:
        """Take in that all subscriptions are in force, for the first time or again.

        What was published before, and was not received, is in the journal only.
        """
        if self._transport.has_past:
            for share in self.held:
                share.follower.replaying = True

    def skip(self, error: WireError) -> None:
        """Tell of a message that is malformed."""
        self._complaints.warn("%s %r: %s; skipped", self.noun, self.name, error)

    async def breathe(self) -> None:
        """Let heartbeats and signals have their turns."""
        await asyncio.sleep(0)

    async def _fetch(self, share: Share, goes_on: Callable[[], bool]) -> Piece | None:
        """Handle the next piece of what is past while it may; return it, None if none can be had now."""
        piece = await self._transport.fetch(share)
        if piece is None or not goes_on():
            return piece
        share.note_pruned(piece.pruned)
        for first, last in _ranges(piece.damaged):
            stream = self._lineage.position(first).stream
            share.note_journal_loss(JournalLoss(reason="damaged", stream=stream, first=first, last=last))
        breath_s = time.monotonic() + _BREATH_S

        def goes_on_now() -> bool:
            return time.monotonic() < breath_s and may_go_on()

        def may_go_on() -> bool:
            return goes_on() and not self._stop.is_set()

        for arrival in piece.arrivals:
            while arrival.left:
                try:
                    await self.take(arrival, goes_on_now, replayed=True)
                except WireError as error:
                    arrival.drop()
                    self.skip(error)
                if time.monotonic() >= breath_s:
                    await self.breathe()
                    breath_s = time.monotonic() + _BREATH_S
                if not may_go_on():
                    return piece
        if piece.end:
            share.follower.caught_up(piece.offset, piece.event_number)
        share.pass_pruned(share.follower.offset)
        return piece

    # ---- publishing ----

    def publish(self, event: EventBase) -> None:
        """Publish an event for a consumer; in direct mode there is nowhere to publish it."""
        self._transport.publish(event)

    async def _give_receipt(self, receipt: Receipt) -> bool:
        """Publish a receipt, and wait a while for the bus; return whether it has that and all before it."""
        if self.address.direct:
            return True
        key = receipt.run_id
        if self._unconfirmed.get(key) != receipt:  # what is still on its way need not be said twice
            self._unconfirmed[key] = receipt
            self.publish(receipt)
        if not await self._transport.flush(_RECEIPT_S):
            logger.warning(
                "%s %r: the bus has not taken its receipt of run %s within %g s; trying again",
                self.noun,
                self.name,
                receipt.run_id,
                _RECEIPT_S,
            )
            return False
        del self._unconfirmed[key]
        return True

    # ---- the bus ----

    @abstractmethod
    def beat(self) -> Beat:
        """Return what the bus is to know now."""

    @abstractmethod
    def hello(self) -> Hello:
        """Return what introduces this process to the bus."""

    def connected(self) -> None:
        """Tell in the log that somebody answers."""
        if self._has_news:
            what = "stream" if self._transport.ordered else "bus"
            news.info("%s %r: connected to the %s at %s", self.noun, self.name, what, self.address)

    def _on_welcome(self, welcome: Welcome) -> None:
        self._prunings = welcome.pruned

    def fail(self, failure: PhaseBusError) -> None:
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
        return self._transport.session.is_known(time.monotonic())

    def heard(self, reply: Reply) -> None:
        """Take in what the bus answers."""
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
        control = asyncio.create_task(self._transport.run())
        control.add_done_callback(lambda _: self.stop())
        return control

    def _become_ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"
            self._transport.tell_news()
            if self._on_ready is not None:
                self._on_ready()

    async def _close(self, control: asyncio.Task[None] | None) -> None:
        try:
            if control is not None:
                control.cancel()
                with suppress(asyncio.CancelledError):
                    await control
        finally:
            await self._transport.close()


def _ranges(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges, both ends included."""
    ranges: list[tuple[int, int]] = []
    for offset in offsets:
        if ranges and ranges[-1][1] == offset - 1:
            ranges[-1] = (ranges[-1][0], offset)
        else:
            ranges.append((offset, offset))
    return ranges
