"""The process around a consumer: sockets, readiness, live and replay, checkpoints, signals."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias

import msgspec
import zmq

from phase_bus.address import Address
from phase_bus.consumer import Consumer, handlers_of, subscriptions_of
from phase_bus.control import Beat, Heard, Hello, State, Welcome
from phase_bus.conversation import Conversation
from phase_bus.dispatcher import Dispatcher
from phase_bus.errors import BusUnreachableError, WireError
from phase_bus.events import KINDS, EventBase, RunComplete
from phase_bus.follower import Follower, Verdict
from phase_bus.publisher import Publisher
from phase_bus.readable import Readable
from phase_bus.replay_client import ReplayClient
from phase_bus.wire import (
    WIRE_VERSION,
    Header,
    receive_frames,
    topic_prefix,
    unpack_header,
)

logger = logging.getLogger("phase_bus.consumer")

Origin: TypeAlias = Literal["checkpoint", "start", "now"] | int

_RECORDS = topic_prefix("records")
_RUN_COMPLETE = topic_prefix("run_complete")  # every consumer learns of the end of runs
_HEARTBEAT = topic_prefix("heartbeat")
_BREATH_S = 0.005  # how long handlers may run before heartbeats and signals get a turn
_DRAIN_S = 10.0
_FLUSH_S = 1.0
_GREETING_S = 1.0  # how long the bus's greeting may take
_RECEIPT_S = 2.0

# The accounts of runs, and the consumer's own state: what is kept with a position.
encode_saved = msgspec.msgpack.Encoder().encode
decode_saved = msgspec.msgpack.Decoder(tuple[bytes, bytes | None]).decode


class ConsumerRunner:
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
        address.check_connectable()
        self.consumer = consumer
        self.address = address
        self.client_id = uuid.uuid4().hex
        self.state: State = "starting"
        self._on_ready = on_ready
        self._receipts = receipts
        self._origin = origin
        handlers = handlers_of(consumer)
        wanted = subscriptions_of(handlers) if topics is None else topics
        self._wanted = tuple(topic.encode() for topic in wanted)
        records = any(topic.startswith(_RECORDS) or not topic for topic in self._wanted)
        self._follower = Follower(records=records)
        # All kinds but records, wanted or not, so that no loss of an event can hide (docs/decisions/0007).
        events = tuple(topic_prefix(kind) for kind in KINDS if kind != "records")
        others = tuple(topic for topic in self._wanted if not topic.startswith((*events, _RECORDS)))
        self._subscriptions = (*events, *others, _RECORDS) if records else (*events, *others)
        if address.direct:
            self._subscriptions = self._wanted
        self._ready_topic = f"ready.{self.client_id}$".encode()
        self._dispatcher = Dispatcher(consumer, handlers, self._wanted, self.client_id)
        self._welcomed = asyncio.Event()
        self._placed = False  # whether the place to begin at is known
        self._moved = False  # whether it followed another stream before this one
        self._journal_id = ""
        self._bus_id = ""
        self._flushed: tuple[int, bytes | None] | None = None  # position and state to be kept
        self._kept: tuple[int, bytes | None] | None = None  # what of that the bus has heard
        self._told: tuple[int, bytes | None] | None = None  # what of that the last beat said
        self._ends: dict[str, RunComplete] = {}  # of runs whose receipts are to be given
        self._flushed_events = 0  # how many events had been received when that was
        self._next_flush_s = 0.0
        self._next_greeting_s = 0.0
        self._stop = asyncio.Event()
        self._signals = 0
        self._publisher: Publisher | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.LINGER, 0)
        self._sub.setsockopt(zmq.RCVHWM, high_water_mark)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._connected_to = ""
        self._readable = Readable(self._sub)
        self._replay: ReplayClient | None = None
        self._conversation = Conversation(
            self._context,
            address,
            hello=self._hello,
            beat=self._beat,
            on_welcome=self._be_welcomed,
            on_heard=self._be_heard,
        )

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

    def stop(self) -> None:
        """Ask :meth:`run` to finish. Call it from the event loop."""
        self._stop.set()

    def publish(self, event: EventBase) -> None:
        """Publish an event for the consumer; in direct mode there is nowhere to publish it."""
        if self._publisher is None and not self.address.direct:
            self._publisher = Publisher(str(self.address), name=f"{self.consumer.name} (results)")
        if self._publisher is not None:
            self._publisher.publish(event)

    def install_signals(self) -> None:
        """Let the first SIGTERM or SIGINT finish and flush, and a second one end at once."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)

    def stop_on_eof(self, descriptor: int) -> None:
        """Finish when a file descriptor ends: the process at its other end is gone."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            if not os.read(descriptor, 4096):
                loop.remove_reader(descriptor)
                self.stop()

        loop.add_reader(descriptor, read)

    def _on_signal(self, signum: int) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + signum)
        self.stop()

    # ---- the two conversations: control, and events ----

    async def _receive(self) -> None:
        for prefix in self._subscriptions:
            self._sub.subscribe(prefix)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            if self.address.direct:
                self._connect(self.address.direct_events)
                self._become_ready()
                self._follower.replaying = False
            while not self._stop.is_set():
                await self._step(stopping)
            if not self._follower.replaying:
                await self._drain(until_s=time.monotonic() + _DRAIN_S)
        finally:
            stopping.cancel()

    @property
    def _has_place(self) -> bool:
        """Whether it has a place in the stream that it is connected to; there is none in direct mode."""
        return self._placed or self.address.direct

    async def _step(self, stopping: asyncio.Task[bool]) -> None:
        """Read on: from the journal while something lacks there, else what has come live."""
        if not self._has_place:
            await self._find_place(stopping)
        if self._follower.replaying and self._replay is not None and self.state != "starting":
            await self._fetch()
        else:
            await self._drain()
            await self._readable.wait(stopping, timeout_s=_FLUSH_S)
            self._ask_for_greeting()
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
        begin = self._begin(welcome, stored)
        # What a consumer stored beyond its checkpoint is counted again, but not handled again.
        self._dispatcher.done_offset = stored or 0
        if welcome.replay is None:  # nothing is kept: begin with whatever comes from now on
            head = (0, 0) if self._moved else (welcome.offset, welcome.event_number)
            self._follower.stand_at(*head, replay=False)
        else:
            number = welcome.event_number if begin >= welcome.offset else None
            self._follower.stand_at(begin, number if begin else 0, replay=True)
        self._placed = True

    def _begin(self, welcome: Welcome, stored: int | None) -> int:
        """Return the offset after which to begin."""
        origin = "checkpoint" if self._moved else self._origin
        if isinstance(origin, int):
            return origin
        if origin == "now":
            return welcome.offset
        kept = welcome.checkpoint if origin == "checkpoint" else None
        if kept is None or (stored is not None and stored < kept):
            # Never here before, or its data were set back to before the checkpoint: there is no account
            # of what it stored, so all is counted anew, but handled only after that.
            return 0
        self._restore(welcome.state)
        return kept

    def _restore(self, saved: bytes | None) -> None:
        if saved is None:
            return
        accounts, state = decode_saved(saved)
        self._dispatcher.restore(accounts)
        if state is not None:
            self.consumer.restore(state)

    async def _fetch(self) -> None:
        """Handle the next piece of the journal."""
        assert self._replay is not None
        try:
            piece = await self._replay.fetch(self._follower.offset, records=self._follower.records)
        except BusUnreachableError:
            return  # it may have been restarted; the control connection finds out
        breath_s = time.monotonic() + _BREATH_S
        for topic, header, payload in piece.events:
            await self._judge(topic, header, payload, replayed=True)
            now_s = time.monotonic()
            if now_s >= breath_s:
                await asyncio.sleep(0)
                breath_s = now_s + _BREATH_S
            if now_s >= self._next_flush_s:
                await self._flush_when_moved()
            if self._stop.is_set() or not self._has_place:
                return
        if piece.end and self._has_place:
            self._follower.caught_up(piece.offset, piece.event_number)

    async def _drain(self, until_s: float | None = None) -> None:
        """Handle all that has arrived, letting heartbeats and signals have their turns.

        Args:
            until_s: when to give up; by default as soon as the consumer is to stop.
        """
        breath_s = time.monotonic() + _BREATH_S
        while self._has_place and (not self._follower.replaying or self.state == "starting"):
            try:
                frames = receive_frames(self._sub)
            except zmq.Again:
                return
            await self._take(frames)
            now_s = time.monotonic()
            if now_s >= breath_s:
                await asyncio.sleep(0)
                breath_s = now_s + _BREATH_S
                if until_s is None and (self._stop.is_set() or now_s >= self._next_flush_s):
                    self._readable.look_again()
                    return
            if until_s is not None and now_s > until_s:
                logger.warning(
                    "consumer %r: stopped with events still waiting: more than %g s of them",
                    self.consumer.name,
                    _DRAIN_S,
                )
                return

    def _be_welcomed(self, welcome: Welcome) -> None:
        self._kept = None  # tell it anew
        self._connect(self.address.endpoint(welcome.events))
        if welcome.replay is not None:
            endpoint = self.address.endpoint(welcome.replay)
            if self._replay is None:
                self._replay = ReplayClient(self._context, endpoint)
            else:
                self._replay.connect(endpoint)
        elif self._replay is not None:
            self._replay.close()
            self._replay = None
        same = bool(welcome.journal_id) and welcome.journal_id == self._journal_id
        if self._bus_id and self._bus_id != welcome.bus_id and not same:
            # Another stream: the old one's offsets say nothing about it.
            self._placed, self._moved, self._flushed = False, True, None
        self._bus_id, self._journal_id = welcome.bus_id, welcome.journal_id
        self._welcomed.set()

    def _connect(self, endpoint: str) -> None:
        if endpoint == self._connected_to:
            return
        if self._connected_to:
            self._sub.disconnect(self._connected_to)
        self._sub.connect(endpoint)
        self._connected_to = endpoint
        # After the others on the same connection: once the bus answers it, all are in force. (What was
        # subscribed to before the connection is sent in the order of the alphabet.)
        self._sub.subscribe(self._ready_topic)
        self._readable.look_again()

    def _ask_for_greeting(self) -> None:
        """Subscribe to the bus's greeting again, should the first one have found the queue full."""
        now_s = time.monotonic()
        if self.state == "starting" and self._connected_to and now_s >= self._next_greeting_s:
            if self._next_greeting_s:
                self._sub.unsubscribe(self._ready_topic)
                self._sub.subscribe(self._ready_topic)
                self._readable.look_again()
            self._next_greeting_s = now_s + _GREETING_S

    def _be_heard(self, heard: Heard) -> None:
        self._dispatcher.forget_dead_letters(heard.dead_letters)
        self._kept = self._told

    def _become_ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"
            self._conversation.tell_news()
            if self._on_ready is not None:
                self._on_ready()

    # ---- one event ----

    async def _take(self, frames: list[zmq.Frame]) -> None:
        """Take a message of the live queue."""
        try:
            topic = frames[0].bytes
            if topic == self._ready_topic:
                self._subscriptions_in_force()
                return
            _, header_frame, payload = frames
            header = unpack_header(header_frame.bytes, topic)
            if topic.startswith(_HEARTBEAT) and not self.address.direct:
                self._follower.heartbeat(header)
                if self._replay is None and self._follower.replaying:
                    self._follower.accept_lost_end(header)
                return
            if self.state == "starting" and self._replay is not None:
                return  # the journal has it, and the sooner the bus's greeting is reached the better
        except (WireError, ValueError) as error:
            self._dispatcher.failed += 1
            logger.error("consumer %r: %s; set aside", self.consumer.name, error)
            return
        await self._judge(topic, header, payload.buffer, replayed=False)

    async def _judge(
        self, topic: bytes, header: Header, payload: bytes | memoryview, *, replayed: bool
    ) -> None:
        """Decide whether an event is the next, a repetition, or shows a hole; handle the next."""
        if not self._placed:
            repeated = self._dispatcher.knows(topic, header)
        elif replayed:
            repeated = self._follower.replayed(header) is Verdict.REPETITION
        else:
            verdict = self._follower.live(header)
            if verdict is Verdict.HOLE:
                if self._replay is not None:
                    return  # it comes again, from the journal, after what lacks
                self._follower.accept_loss(header)
            repeated = verdict is Verdict.REPETITION or self._dispatcher.knows(topic, header)
        if not topic.startswith((*self._wanted, _RUN_COMPLETE)):
            return
        if repeated:
            self._dispatcher.repetition(topic)
            return
        try:
            end = await self._dispatcher.take(topic, header, payload, replayed=replayed)
        except WireError as error:
            logger.error("consumer %r: %s; set aside", self.consumer.name, error)
            return
        if end is not None and self._receipts:
            await self._finish_run(end)

    def _subscriptions_in_force(self) -> None:
        """All subscriptions count from now on, for the first time or again.

        What was published before, and was not received, is in the journal only.
        """
        if self._replay is not None:
            self._follower.replaying = True
        self._become_ready()

    async def _finish_run(self, end: RunComplete) -> None:
        self._ends[end.run_id] = end
        await self._flush()

    async def _give_receipts(self) -> None:
        """Give the receipts of runs whose end was handled; the runs count as handled then."""
        while self._ends:
            run_id, end = self._ends.popitem()
            receipt = self._dispatcher.receipt(end)
            self.publish(receipt)
            if self._publisher is not None:
                # The summary and the receipt are on the bus before the run counts as handled.
                await asyncio.to_thread(self._publisher.flush, _RECEIPT_S)
            self._dispatcher.finished(run_id, whole=receipt.complete)
            self._conversation.tell_news()

    async def _flush_when_moved(self) -> None:
        if self._dispatcher.received != self._flushed_events:
            await self._flush()
        self._next_flush_s = time.monotonic() + _FLUSH_S

    async def _flush(self) -> None:
        """Let the consumer write out; if it could, give receipts and remember the position."""
        try:
            await self.consumer.flush()
        except Exception:
            logger.exception("consumer %r could not write out; trying again", self.consumer.name)
            return
        self._flushed_events = self._dispatcher.received
        self._dispatcher.written()
        await self._give_receipts()
        self._keep_position()

    def _keep_position(self) -> None:
        if self._placed and self._receipts:
            saved = encode_saved((self._dispatcher.saved(), self.consumer.state()))
            self._flushed = (self._follower.offset, saved)

    # ---- what the bus is told ----

    def _hello(self) -> Hello:
        return Hello(
            client_id=self.client_id,
            role="consumer" if self._receipts else "client",
            name=self.consumer.name,
            pid=os.getpid(),
            host=socket.gethostname(),
            subscriptions=tuple(topic.decode() for topic in self._wanted),
            wire_version=WIRE_VERSION,
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
            self._sub.close(linger=0)
            self._context.destroy()
