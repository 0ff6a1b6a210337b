"""The process around one consumer: readiness, live and replay, its position."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
import zmq

from phase_bus.consumer.consumer import Consumer, handlers_of, named, subscriptions_of
from phase_bus.consumer.dispatcher import Dispatcher
from phase_bus.consumer.follower import Follower, Verdict
from phase_bus.consumer.live import EVENT_TOPICS
from phase_bus.consumer.origin import Origin, begin_at
from phase_bus.consumer.process import FLUSH_S, ConsumerProcess
from phase_bus.core.address import Address, default_address
from phase_bus.core.control import Beat, Heard, Hello, Welcome
from phase_bus.core.wire import Header, topic_prefix, unpack_header
from phase_bus.errors import WireError
from phase_bus.events import RunComplete

logger = logging.getLogger("phase_bus.consumer")

_RECORDS = topic_prefix("records")
_RUN_COMPLETE = topic_prefix("run_complete")  # every consumer learns of the end of runs
_HEARTBEAT = topic_prefix("heartbeat")
_DRAIN_S = 10.0


class ConsumerRunner(ConsumerProcess):
    """Runs one consumer against a bus, or against a publisher in direct mode.

    Args:
        consumer: the consumer, built and named.
        address: where the bus is.
        high_water_mark: events queued in this process at most.
        receipts: whether to publish a receipt at the end of each run.
        topics: take these prefixes instead of those the handlers ask for.
        origin: where to begin: at the ``checkpoint`` of the consumer's name (or the start, if there is
            none), at the ``start`` of the journal, with what comes from ``now`` on, or after an offset.
        on_ready: called once all subscriptions are in force.
    """

    def __init__(
        self,
        consumer: Consumer,
        address: Address,
        *,
        high_water_mark: int = 1000,
        receipts: bool = True,
        topics: tuple[str, ...] | None = None,
        origin: Origin = "checkpoint",
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(consumer.name, address, high_water_mark=high_water_mark, on_ready=on_ready)
        self.consumer = consumer
        self._receipts = receipts
        self._origin = origin
        handlers = handlers_of(consumer)
        wanted = subscriptions_of(handlers) if topics is None else topics
        self._wanted = tuple(topic.encode() for topic in wanted)
        self._handled_topics = (*self._wanted, _RUN_COMPLETE)
        records = any(topic.startswith(_RECORDS) or _RECORDS.startswith(topic) for topic in self._wanted)
        self._follower = Follower(records=records)
        if address.direct:
            self._subscriptions = self._wanted
        elif records:
            self._subscriptions = (b"",)  # everything: kinds that are newer than this program too
        else:
            others = (topic for topic in self._wanted if not topic.startswith(EVENT_TOPICS))
            self._subscriptions = (*EVENT_TOPICS, *others)
        self._dispatcher = Dispatcher(consumer, handlers, self._wanted, self.client_id)
        self._welcomed = asyncio.Event()
        # Whether it has a place in the stream that it is connected to; in direct mode there are no places.
        self._has_place = address.direct
        self._moved = False  # whether it followed another stream before this one
        self._journal_id = ""
        self._bus_id = ""
        self._flushed: tuple[int, bytes | None] | None = None  # position and state to be kept
        self._kept: tuple[int, bytes | None] | None = None  # what of that the bus has heard
        self._told: tuple[int, bytes | None] | None = None  # what of that the last beat said
        self._ends: dict[str, RunComplete] = {}  # of runs whose receipts are to be given
        self._flushed_events = 0  # how many events had been received when that was
        self._next_flush_s = 0.0

    async def run(self) -> None:
        """Start the consumer, handle events until stopped, then finish and flush.

        Raises:
            PhaseBusError, OSError: the consumer could not start, or not write out at its end.
        """
        self.consumer._publish = self.publish
        control: asyncio.Task[None] | None = None
        try:
            await self.consumer.start()
            try:
                if not self.address.direct:
                    control = asyncio.create_task(self._conversation.run())
                    control.add_done_callback(lambda _: self.stop())
                await self._receive()
                self.state = "stopping"
                await self._flush()
                await self._give_receipts()  # also for what could not be written out: they say so
                self._conversation.tell_news()
            finally:
                await self.consumer.stop()
        finally:
            await self._close(control)

    # ---- the two conversations: control, and events ----

    async def _receive(self) -> None:
        self._live.subscribe(self._subscriptions)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            if self.address.direct:
                self._live.connect(self.address.direct_events)
                self._become_ready()
                self._follower.replaying = False
            while not self._stop.is_set():
                await self._step(stopping)
            if not self._follower.replaying:
                await self._drain_rest()
        finally:
            stopping.cancel()

    @property
    def _reads_journal(self) -> bool:
        """Whether the next event comes from the journal."""
        return self._follower.replaying and self._replay is not None and self.state != "starting"

    async def _step(self, stopping: asyncio.Task[bool]) -> None:
        """Read on: from the journal while something lacks there, else what has come live."""
        if not self._has_place:
            await self._find_place(stopping)
        if not self._reads_journal:
            await self._drain()
        if self._reads_journal:  # maybe since what was live showed that something lacks
            await self._fetch()
        else:
            await self._live.readable.wait(stopping, timeout_s=FLUSH_S)
            if self.state == "starting":
                self._live.ask_again()
        if time.monotonic() >= self._next_flush_s:
            await self._flush_when_moved()

    async def _find_place(self, stopping: asyncio.Task[bool]) -> None:
        """Wait for the bus, and decide from which event on this consumer reads."""
        while (welcome := self._conversation.session.welcome) is None:
            self._welcomed.clear()
            waiting = asyncio.create_task(self._welcomed.wait())
            await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if stopping.done():
                return
        self.consumer.journal_id = welcome.journal_id
        stored = await self.consumer.position()
        if welcome.bus_id != self._bus_id:
            return  # that was the place in another one's stream
        begin, saved = begin_at(
            None if welcome.checkpoint is None else (welcome.checkpoint, welcome.state),
            stored,
            origin="checkpoint" if self._moved else self._origin,
            head=welcome.offset,
        )
        if saved is not None:
            self._dispatcher.restore(saved)
        # What a consumer stored beyond its checkpoint is counted again, but not handled again.
        self._dispatcher.done_offset = stored or 0
        if welcome.replay is None:  # nothing is kept: begin with whatever comes from now on
            head = (0, 0) if self._moved else (welcome.offset, welcome.event_number)
            self._follower.stand_at(*head, replay=False)
        else:
            number = welcome.event_number if begin >= welcome.offset else None
            self._follower.stand_at(begin, number)
        self._has_place = True

    async def _fetch(self) -> None:
        """Handle the next piece of the journal."""
        follower = self._follower
        piece = await self._read_journal(
            lambda replay: replay.fetch(follower.offset, records=follower.records)
        )
        if piece is None or not self._has_place:
            return
        if await self._handle(piece, lambda: self._has_place) and piece.end:
            follower.caught_up(piece.offset, piece.event_number)

    @property
    def _takes_live(self) -> bool:
        return self._has_place and (not self._follower.replaying or self.state == "starting")

    async def _breathe(self) -> None:
        await super()._breathe()
        if time.monotonic() >= self._next_flush_s:
            await self._flush_when_moved()

    async def _drain_rest(self) -> None:
        """Handle what had arrived when the consumer was to stop, for a while at most."""
        until_s = time.monotonic() + _DRAIN_S
        while await self._drain():
            if time.monotonic() > until_s:
                logger.warning(
                    "consumer %r: stopped with events still waiting: more than %g s of them",
                    self.consumer.name,
                    _DRAIN_S,
                )
                return

    def _be_welcomed(self, welcome: Welcome) -> None:
        self._kept = None  # tell it anew
        super()._be_welcomed(welcome)
        same = bool(welcome.journal_id) and welcome.journal_id == self._journal_id
        if self._bus_id and self._bus_id != welcome.bus_id and not same:
            # Another stream: the old one's offsets say nothing about it.
            self._has_place, self._moved, self._flushed = False, True, None
        self._bus_id, self._journal_id = welcome.bus_id, welcome.journal_id
        self._welcomed.set()

    def _be_heard(self, heard: Heard) -> None:
        self._dispatcher.forget_dead_letters(heard.dead_letters)
        self._kept = self._told

    # ---- one event ----

    def _take(self, topic: bytes, header_frame: bytes, _payload: zmq.Frame) -> Header | None:
        if self._live.is_greeting(topic):
            self._subscriptions_in_force()
            return None
        header = unpack_header(header_frame, topic)
        if topic.startswith(_HEARTBEAT) and not self.address.direct:
            self._follower.heartbeat(header)
            if self._replay is None and self._follower.replaying:
                self._follower.accept_lost_end(header)
            return None
        if self.state == "starting" and self._replay is not None:
            return None  # the journal has it, and the sooner the bus's greeting is reached the better
        return header

    def _set_aside(self, error: WireError) -> None:
        self._dispatcher.failed += 1
        super()._set_aside(error)

    async def _judge(
        self, topic: bytes, header: Header, payload: bytes | memoryview, *, replayed: bool
    ) -> None:
        verdict = Verdict.HANDLE
        if not self.address.direct:
            verdict = self._follower.replayed(header) if replayed else self._follower.live(header)
            if verdict is Verdict.HOLE:
                if self._replay is not None:
                    return  # it comes again, from the journal, after what lacks
                self._follower.accept_loss(header)
        if not topic.startswith(self._handled_topics):
            return
        if verdict is Verdict.REPETITION or (not replayed and self._dispatcher.knows(topic, header)):
            self._dispatcher.repetition(topic)
            return
        try:
            end = await self._dispatcher.take(topic, header, payload, replayed=replayed)
        except WireError as error:
            logger.error("consumer %r: %s; set aside", self.consumer.name, error)
            return
        if end is not None and self._receipts:
            self._ends[end.run_id] = end
            await self._flush()

    def _subscriptions_in_force(self) -> None:
        """All subscriptions count from now on, for the first time or again.

        What was published before, and was not received, is in the journal only.
        """
        if self._replay is not None:
            self._follower.replaying = True
        self._become_ready()

    async def _give_receipts(self) -> None:
        """Give the receipts of runs whose end was handled; the runs count as handled then."""
        while self._ends:
            _, end = self._ends.popitem()
            await self._give_receipt(self._dispatcher, end)
            self._conversation.tell_news()

    async def _flush_when_moved(self) -> None:
        if self._dispatcher.received != self._flushed_events:
            await self._flush()
        self._next_flush_s = time.monotonic() + FLUSH_S

    async def _flush(self) -> None:
        """Let the consumer write out; if it could, give receipts and remember the position."""
        if not await self._dispatcher.flush():
            return
        self._flushed_events = self._dispatcher.received
        await self._give_receipts()
        if (
            self._has_place
            and self._receipts
            and not (self.address.direct or self.consumer.holds_checkpoint)
        ):
            self._flushed = (self._follower.offset, self._dispatcher.saved())

    # ---- what the bus is told ----

    def _hello(self) -> Hello:
        return msgspec.structs.replace(
            super()._hello(),
            role="consumer" if self._receipts else "client",
            subscriptions=tuple(topic.decode() for topic in self._wanted),
        )

    def _beat(self) -> Beat:
        dispatcher = self._dispatcher
        self._told = self._flushed
        news = None if self._flushed is self._kept else self._flushed
        position, saved = news or (None, None)
        return Beat(
            client_id=self.client_id,
            state=self.state,
            handled_runs=tuple(dispatcher.handled),
            incomplete_runs=tuple(run_id for run_id, whole in dispatcher.handled.items() if not whole),
            received=dispatcher.received,
            failed=dispatcher.failed,
            position=position,
            saved=saved,
            dead_letters=tuple(dispatcher.dead_letters),
        )


async def run_consumer(consumer: Consumer, address: str | None = None, *, name: str = "") -> None:
    """Run a consumer against a bus, as ``phase-bus consume`` does, until this task is cancelled.

    When that happens, what has arrived is handled and written out first.

    Args:
        consumer: the consumer.
        address: where the bus is; by default the one that the command line would use.
        name: what the bus calls it, and remembers its checkpoint by; by default its class's name.

    Raises:
        PhaseBusError, OSError: it could not start, or not write out at its end.
    """
    named(consumer, name or consumer.name or type(consumer).__name__)
    runner = ConsumerRunner(consumer, Address.parse(address or default_address()))
    running = asyncio.create_task(runner.run())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        runner.stop()
        await running
        raise
