"""The process around a consumer: sockets, readiness, dispatch in order, signals, receipts."""

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

import zmq

from phase_bus.account import RunAccount
from phase_bus.address import Address
from phase_bus.consumer import Consumer, Handler, handlers_of, subscriptions_of
from phase_bus.control import REMEMBERED_RUNS, Beat, Goodbye, Hello, State, Welcome
from phase_bus.errors import WireError
from phase_bus.events import EventBase, RunComplete
from phase_bus.publisher import Publisher
from phase_bus.session import Session
from phase_bus.wire import (
    WIRE_VERSION,
    decode_event,
    decode_reply,
    encode_control,
    parse_topic,
    receive_frames,
    topic_prefix,
    unpack_header,
)

logger = logging.getLogger("phase_bus.consumer")

_ALWAYS = ("run_complete",)  # every consumer learns of the end of runs
_BREATH_S = 0.005  # how long handlers may run before heartbeats and signals get a turn
_DRAIN_S = 10.0
_RECEIPT_S = 2.0
_COMPLAIN_AFTER_S = 3.0


class ConsumerRunner:
    """Runs one consumer against a bus, or against a publisher in direct mode.

    Args:
        consumer: the consumer, built and named.
        address: where the bus is.
        high_water_mark: events queued in this process at most.
        receipts: whether to publish a receipt at the end of each run.
        topics: subscribe to these prefixes instead of those the handlers ask for.
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
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        address.check_connectable()
        self.consumer = consumer
        self.address = address
        self.client_id = uuid.uuid4().hex
        self.state: State = "starting"
        self._on_ready = on_ready
        self._receipts = receipts
        self._handlers: dict[str, Handler] = handlers_of(consumer)
        wanted = subscriptions_of(self._handlers) if topics is None else topics
        self._wanted = tuple(topic.encode() for topic in wanted)
        always = tuple(topic_prefix(kind) for kind in _ALWAYS) if receipts else ()
        self._subscriptions = tuple(dict.fromkeys((*self._wanted, *always)))
        self._ready_topic = f"ready.{self.client_id}$".encode()
        self._accounts: dict[str, RunAccount] = {}
        self._handled: dict[str, bool] = {}  # run id: whether everything was handled
        self._received = 0
        self._failed = 0
        self._unknown: set[str] = set()
        self._stop = asyncio.Event()
        self._signals = 0
        self._publisher: Publisher | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.LINGER, 0)
        self._sub.setsockopt(zmq.RCVHWM, high_water_mark)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._connected_to = ""
        self._readable = _Readable(self._sub)
        self._conversing: _Readable | None = None
        self._session = Session(self._hello, self._beat, time.monotonic())

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
                    control = asyncio.create_task(self._converse())
                    control.add_done_callback(lambda _: self.stop())
                await self._receive()
                self.state = "stopping"
                await self.consumer.flush()
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
        if self.address.direct:
            self._connect(self.address.direct_events)
            self._become_ready()
        readable = self._readable
        stopping = asyncio.create_task(self._stop.wait())
        try:
            while not self._stop.is_set():
                await self._drain()
                await readable.wait(stopping)
            await self._drain(until_s=time.monotonic() + _DRAIN_S)
        finally:
            stopping.cancel()

    async def _drain(self, until_s: float | None = None) -> None:
        """Handle all that has arrived, letting heartbeats and signals have their turns.

        Args:
            until_s: when to give up; by default as soon as the consumer is to stop.
        """
        breath_s = time.monotonic() + _BREATH_S
        while True:
            try:
                frames = receive_frames(self._sub)
            except zmq.Again:
                return
            await self._take(frames)
            now_s = time.monotonic()
            if now_s >= breath_s:
                await asyncio.sleep(0)
                breath_s = now_s + _BREATH_S
                if until_s is None and self._stop.is_set():
                    return
            if until_s is not None and now_s > until_s:
                logger.warning(
                    "consumer %r: stopped with events still waiting: more than %g s of them",
                    self.consumer.name,
                    _DRAIN_S,
                )
                return

    async def _converse(self) -> None:
        """Keep the bus informed, and find it again when it was restarted."""
        dealer = self._dealer()
        readable = self._conversing = _Readable(dealer)
        started_s = time.monotonic()
        complained = False
        try:
            while True:
                now_s = time.monotonic()
                was_connected = self._session.connected
                request = self._session.due(now_s)
                if was_connected and not self._session.connected:
                    logger.warning("the bus at %s is silent; waiting for it", self.address)
                if request is not None:
                    with suppress(zmq.Again):  # not connected: the session repeats it
                        dealer.send(encode_control(request), zmq.NOBLOCK)
                waited_s = now_s - started_s
                if not (self._session.connected or complained) and waited_s > _COMPLAIN_AFTER_S:
                    complained = True
                    logger.warning("no bus answers at %s yet; waiting for one", self.address)
                self._read_replies(dealer)
                await readable.wait(timeout_s=self._session.wait_s(time.monotonic()))
        finally:
            if self._session.connected:
                with suppress(zmq.Again):
                    dealer.send(encode_control(Goodbye(client_id=self.client_id)), zmq.NOBLOCK)
            dealer.close(linger=200)

    def _read_replies(self, dealer: zmq.Socket[bytes]) -> None:
        while True:
            try:
                reply = decode_reply(dealer.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except WireError as error:
                logger.warning("%s; set aside", error)
                continue
            if self._session.heard(reply, time.monotonic()) and isinstance(reply, Welcome):
                self._connect(self.address.endpoint(reply.events))

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

    def _dealer(self) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        dealer.connect(self.address.control)
        return dealer

    def _become_ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"
            self._tell_news()
            if self._on_ready is not None:
                self._on_ready()

    # ---- one event ----

    async def _take(self, frames: list[zmq.Frame]) -> None:
        try:
            topic = frames[0].bytes
            if topic == self._ready_topic:
                self._become_ready()
                return
            _, header_frame, payload = frames
            header = unpack_header(header_frame.bytes, topic)
            run = self._account(topic)
            counts = run.arrived(topic, header)
            if counts is None:
                return  # a repetition
            self._received += 1
        except (WireError, ValueError) as error:
            self._failed += 1
            logger.error("consumer %r: %s; set aside", self.consumer.name, error)
            return
        try:
            event = decode_event(topic, payload.buffer)
        except WireError as error:
            self._failed += 1
            counts.failed += 1
            logger.error("consumer %r: %s; set aside", self.consumer.name, error)
            return
        if event is None:
            self._skip_unknown(topic)
            counts.handled += 1
            return
        handler = self._handlers.get(event.kind) or self._handlers.get("*")
        if handler is None or await self._handle(handler, event):
            counts.handled += 1
        else:
            counts.failed += 1
        if isinstance(event, RunComplete) and self._receipts:
            await self._finish_run(event, run)

    def _account(self, topic: bytes) -> RunAccount:
        run_id = parse_topic(topic).run_id
        account = self._accounts.get(run_id)
        if account is None:
            account = self._accounts[run_id] = RunAccount(run_id)
        return account

    async def _handle(self, handler: Handler, event: EventBase) -> bool:
        try:
            await handler(event)
        except Exception:
            self._failed += 1
            logger.exception(
                "consumer %r failed on a %s event of run %s; it goes on with the next",
                self.consumer.name,
                event.kind,
                event.run_id,
            )
            return False
        return True

    def _skip_unknown(self, topic: bytes) -> None:
        kind = parse_topic(topic).kind
        if kind not in self._unknown:
            self._unknown.add(kind)
            logger.warning(
                "consumer %r: events of kind %r are newer than this phase-bus; skipped",
                self.consumer.name,
                kind,
            )

    async def _finish_run(self, event: RunComplete, run: RunAccount) -> None:
        try:
            await self.consumer.flush()
            flushed = True
        except Exception:
            flushed = False
            logger.exception("consumer %r could not write out run %s", self.consumer.name, event.run_id)
        receipt = run.receipt(event, self._wanted, self.consumer.name, self.client_id)
        for line in run.complaints(receipt):
            logger.warning("consumer %r, run %s: %s", self.consumer.name, event.run_id, line)
        self.publish(receipt)
        if self._publisher is not None:
            # The summary and the receipt are on the bus before the run counts as handled.
            await asyncio.to_thread(self._publisher.flush, _RECEIPT_S)
        self._handled[event.run_id] = flushed and receipt.complete
        for run_id in list(self._handled)[:-REMEMBERED_RUNS]:
            del self._handled[run_id]
            self._accounts.pop(run_id, None)
        self._tell_news()

    # ---- what the bus is told ----

    def _tell_news(self) -> None:
        self._session.beat_now(time.monotonic())
        if self._conversing is not None:
            self._conversing.look_again()

    def _hello(self) -> Hello:
        return Hello(
            client_id=self.client_id,
            role="consumer" if self._receipts else "client",
            name=self.consumer.name,
            pid=os.getpid(),
            host=socket.gethostname(),
            subscriptions=tuple(topic.decode() for topic in self._subscriptions),
            wire_version=WIRE_VERSION,
        )

    def _beat(self) -> Beat:
        return Beat(
            client_id=self.client_id,
            state=self.state,
            handled_runs=tuple(self._handled),
            incomplete_runs=tuple(run_id for run_id, whole in self._handled.items() if not whole),
            received=self._received,
            failed=self._failed,
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
            self._sub.close(linger=0)
            self._context.destroy()


class _Readable:
    """Waits until a ZeroMQ socket has something, in asyncio.

    A socket's descriptor is edge-triggered: it must be read until empty, and looked at again after
    other calls on the socket (https://zguide.zeromq.org, zmq_getsockopt(3), ZMQ_FD). To asyncio it is
    readable until that look: it is watched only while somebody waits, or the loop would spin.
    """

    def __init__(self, sock: zmq.Socket[bytes]) -> None:
        self._sock = sock
        self._event = asyncio.Event()
        self._fd = int(sock.getsockopt(zmq.FD))

    async def wait(self, other: asyncio.Task[bool] | None = None, timeout_s: float | None = None) -> None:
        """Return when the socket may be readable, when ``other`` is done, or after a time."""
        self._event.clear()
        if int(self._sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, self._event.set)
        waiting = asyncio.ensure_future(self._event.wait())
        others = () if other is None else (other,)
        try:
            await asyncio.wait((waiting, *others), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            loop.remove_reader(self._fd)

    def look_again(self) -> None:
        """End a wait: another call on the socket may have taken its signal."""
        self._event.set()
