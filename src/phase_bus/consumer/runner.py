"""The process around a consumer on its own: one share over the whole stream, live and from the journal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.holdings import told
from phase_bus.consumer.member import FLUSH_S, Member
from phase_bus.consumer.share import Origin, Share
from phase_bus.consumer.transport import OpenTransport
from phase_bus.consumer.view import View
from phase_bus.consumer.zeromq import ZeroMqTransport
from phase_bus.core.address import Address, AnyAddress, default_address, parse_any
from phase_bus.core.control import EVENTS, Beat, Heard, Hello, NameTaken, Role, Welcome
from phase_bus.core.position import Lineage
from phase_bus.core.readable import wait_for_event
from phase_bus.core.session import introduce
from phase_bus.errors import NameTakenError, WireError
from phase_bus.journal.rows import Checkpoint, Head

logger = logging.getLogger("phase_bus.consumer")

_DRAIN_S = 5.0
_LOOK_S = 0.02
_PATIENCE_S = 3.0  # a process that is alive has said so by then
_NAME_S = 1.0  # how long to wait for a bus before the consumer is started, which may take its name's files


class ConsumerRunner(Member):
    """Runs one consumer against a bus, or against a publisher in direct mode.

    Args:
        consumer: the consumer, built and named.
        receipts: whether to publish a receipt at the end of each run, and to keep a checkpoint; an onlooker
            does neither.
        topics: take these prefixes instead of those the handlers ask for.
        origin: where to begin: at the ``checkpoint`` of the consumer's name (or the start, if there is
            none), at the ``start`` of the journal, with what comes from ``now`` on, or after an offset.
        drain_s: how long it may take, once it is to stop, to handle what had arrived.
        transport: makes what carries the events.
    """

    def __init__(
        self,
        consumer: Consumer,
        address: AnyAddress,
        *,
        high_water_mark: int = 1000,
        receipts: bool = True,
        topics: tuple[str, ...] | None = None,
        origin: Origin = "checkpoint",
        on_ready: Callable[[], None] | None = None,
        drain_s: float = _DRAIN_S,
        transport: OpenTransport = ZeroMqTransport,
    ) -> None:
        self._role: Role = "consumer" if receipts else "client"
        self._has_news = receipts
        super().__init__(
            consumer.name, address, high_water_mark=high_water_mark, on_ready=on_ready, transport=transport
        )
        view = View.whole(consumer, topics=topics, direct=address.direct)
        view = view.ordered() if self._transport.ordered else view
        self.share = Share(consumer, view, self.client_id, self._give_receipt if receipts else None)
        consumer.context.publish = self.publish
        consumer.context.address = "" if address.direct else str(self.address)
        self._origin = origin
        self._drain_s = drain_s
        self._welcomed = asyncio.Event()
        self._contested: NameTaken | None = None  # who has its name and does not answer, at last word
        self._begun_at = -1  # the offset of the checkpoint that there was when it came

    def stop(self) -> None:
        """Ask :meth:`run` to finish, though there may be no bus yet."""
        super().stop()
        self._welcomed.set()

    def left(self) -> str:
        """Return, in words, what was received and is not written out and committed; empty for nothing."""
        return self.share.left()

    async def run(self) -> None:
        """Start the consumer, handle events until stopped, then finish and flush.

        Raises:
            NameTakenError: if another process has its name.
            PhaseBusError, OSError: if the consumer cannot start, or cannot write out at its end.
        """
        control: asyncio.Task[None] | None = None
        try:
            if not self.address.direct:
                control = self._start_link()
                await self._get_name()
            if self._failure is None and self._contested is None:
                await self._work()
        finally:
            await self._close(control)
        if self._failure is not None:
            raise self._failure

    async def _work(self) -> None:
        await self.share.start()
        try:
            await self._receive()
            self.state = "stopping"
            await self._make_sure()
            if self._failure is None:
                self.share.end()
                await self.share.flush()
                await self.share.give_receipts()  # also for what could not be written out: they say so
                self._transport.tell_news()
        finally:
            await self.share.stop()

    # ---- its name ----

    async def _get_name(self) -> None:
        """Wait until the bus has given this process the consumer's name, or for a while if there is no bus.

        The consumer is started only then: it may open files that another process of this name still has.
        """
        await wait_for_event(self._welcomed, _NAME_S)
        warned = False
        while (other := self._contested) is not None and not self._stop.is_set():
            self._welcomed.clear()
            await wait_for_event(self._welcomed, _PATIENCE_S)
            if self._contested is not None and not (warned or self._stop.is_set()):
                warned = True
                logger.warning(
                    "consumer %r: the process with pid %d on %s has this name and does not answer; waiting "
                    "until it has been silent for too long",
                    self.name,
                    other.pid,
                    other.host or "an unknown host",
                )

    @property
    def _has_name(self) -> bool:
        """Whether the consumer's name is certainly this process's, or nobody could tell."""
        return self._role != "consumer" or self.address.direct or self._is_known()

    async def _make_sure(self) -> None:
        """Wait a moment for the bus's word that the name is still this process's, if there is doubt."""
        self._transport.tell_news()
        for _ in range(round(_NAME_S / _LOOK_S)):
            if self._has_name or self._failure is not None or not self._transport.session.connected:
                return
            await asyncio.sleep(_LOOK_S)

    async def _flush(self) -> bool:
        """Let the consumer write out, give receipts and commit, unless another may have its name."""
        return self._has_name and await self.share.flush()

    async def _receive(self) -> None:
        self._transport.subscribe(self.share.view.topics)
        if self.address.direct:
            self._become_ready()
        while not self._stop.is_set():
            await self._step()
        if not self.share.follower.replaying and self._failure is None:
            await self._drain_rest()

    # ---- its place in the stream ----

    @property
    def _reads_journal(self) -> bool:
        """Whether the next event comes from the journal."""
        return self.share.follower.replaying and self._transport.has_past and self.state != "starting"

    async def _step(self) -> None:
        """Read on: from the journal while something is missing there, else what has come live."""
        if not self.share.placed:
            await self._find_place()
        if not self._reads_journal:
            await self._transport.drain()
        if self._reads_journal:  # maybe since what was live showed that something is missing
            bus_id = self._bus_id  # what another one has after the same offset may be something else
            await self._fetch(self.share, lambda: self.share.placed and self._bus_id == bus_id)
        else:
            await self._wait(FLUSH_S)
            if self.state == "starting":
                self._transport.ask_again()
        await self._flush_when_due()

    async def _find_place(self) -> None:
        """Wait for the bus, and decide from which event on this consumer reads."""
        while (welcome := self._transport.session.welcome) is None:
            if self._stop.is_set():
                return
            self._welcomed.clear()
            await self._welcomed.wait()
        kept = None if welcome.checkpoint is None else Checkpoint(welcome.checkpoint, welcome.state)
        head, journaled = Head(welcome.offset, welcome.event_number), welcome.replay is not None
        await self.share.begin(
            kept,
            Lineage(welcome.lineage),
            origin=self._origin,
            head=Head(0, 0) if self.share.moving and not journaled else head,
            prunings=welcome.pruned,
            journaled=journaled,
        )
        if welcome.bus_id != self._bus_id:
            self.share.follow(self._lineage)  # that was the place in the stream of an earlier bus

    async def _drain_rest(self) -> None:
        """Handle what had arrived when the consumer was to stop, for a while at most."""
        until_s = time.monotonic() + self._drain_s
        while await self._transport.drain():
            if time.monotonic() > until_s:
                logger.warning(
                    "consumer %r: stopped with events still waiting: more than %g s of them",
                    self.name,
                    self._drain_s,
                )
                return

    # ---- events ----

    @property
    def held(self) -> Iterable[Share]:
        return (self.share,)

    @property
    def takes_live(self) -> bool:
        return self.share.placed and (not self.share.follower.replaying or self.state == "starting")

    async def take(self, arrival: Arrival, goes_on: Callable[[], bool], *, replayed: bool) -> None:
        if self.state == "starting" and self._transport.has_past and not replayed:
            arrival.drop()  # the journal has it, and the sooner the bus's greeting is reached the better
        elif await self.share.take(arrival, goes_on, replayed=replayed) is not None:
            await self._flush()
            self._transport.tell_news()

    def take_greeting(self) -> None:
        super().take_greeting()
        self._become_ready()

    def skip(self, error: WireError) -> None:
        self.share.dispatcher.failed += 1
        super().skip(error)

    async def breathe(self) -> None:
        await super().breathe()
        await self._flush_when_due()

    async def _flush_when_due(self) -> None:
        if time.monotonic() < self._next_flush_s or not self._has_name:
            return
        owed = self.share.owes_receipts
        if self.share.is_due() and await self._flush() and owed:
            self._transport.tell_news()
        self._next_flush_s = time.monotonic() + FLUSH_S

    # ---- what the bus says and is told ----

    def _on_welcome(self, welcome: Welcome) -> None:
        self._contested = None
        same = bool(welcome.lineage) and welcome.lineage[0].stream == self._lineage.journal_id
        kept = -1 if welcome.checkpoint is None else welcome.checkpoint.offset
        if same and self._role == "consumer" and kept > max(self._begun_at, self.share.checkpoint):
            self.fail(NameTakenError(self.name, taken_over=True))  # it has come and gone meanwhile
            return
        self.share.tell_again()
        if self._role == "consumer":
            self.share.consumer.context.claim = self._claim
        super()._on_welcome(welcome)
        self._begun_at = max(self._begun_at, kept) if same else kept
        self._lineage = Lineage(welcome.lineage)
        if self._bus_id and self._bus_id != welcome.bus_id:
            self.share.follow(self._lineage)
        self._bus_id = welcome.bus_id
        self._welcomed.set()

    def _on_name_taken(self, taken: NameTaken) -> None:
        if taken.answers:
            again = bool(self._bus_id)
            self.fail(NameTakenError(taken.name, taken.pid, taken.host, taken_over=again))
        self._contested = taken

    def _on_ack(self, heard: Heard) -> None:
        self.share.dispatcher.forget_dead_letters(heard.dead_letters)
        if EVENTS in heard.kept:
            self.share.confirm(heard.kept[EVENTS])

    def hello(self) -> Hello:
        subscriptions = tuple(topic.decode() for topic in self.share.view.wanted)
        return introduce(self.client_id, self._role, self.name, subscriptions=subscriptions)

    def beat(self) -> Beat:
        dispatcher, commit = self.share.dispatcher, self.share.tell()
        return Beat(
            client_id=self.client_id,
            state=self.state,
            **told(dispatcher.handled),
            received=dispatcher.received,
            failed=dispatcher.failed,
            position=None if commit is None else commit.position,
            journal_losses=tuple(self.share.journal_losses),
            saved=None if commit is None else commit.saved,
            dead_letters=tuple(dispatcher.dead_letters) if self._role == "consumer" else (),
        )


async def run_consumer(
    consumer: Consumer,
    address: str | None = None,
    *,
    name: str = "",
    transport: OpenTransport = ZeroMqTransport,
) -> None:
    """Run a consumer against a bus, as ``phase-bus consume`` does, until this task is cancelled.

    When that happens, what has arrived is handled and written out first.

    Args:
        address: where the bus is; by default the one that the command line would use.
        name: what the bus calls it, and keeps its checkpoint under; by default its class's name.
        transport: what carries the events: for an address of NATS, the ``JetStreamTransport`` of
            ``phase_bus.jetstream.transport``.

    Raises:
        PhaseBusError, OSError: if it cannot start, or cannot write out at its end.
    """
    named(consumer, name or consumer.name or type(consumer).__name__)
    given = address or default_address()
    where = Address.parse(given) if transport is ZeroMqTransport else parse_any(given)
    runner = ConsumerRunner(consumer, where, transport=transport)
    running = asyncio.create_task(runner.run())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        runner.stop()
        await running
        raise
