"""A stream in NATS as a transport: cursors read it, a seat answers beside it, results are appended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import ClassVar

import nats.js.errors

from phase_bus.consumer.share import Share
from phase_bus.consumer.transport import Host, Piece, Transport
from phase_bus.core.address import StreamAddress
from phase_bus.core.control import Beat, Hello, Reply
from phase_bus.core.readable import wait_for_event
from phase_bus.core.session import Session
from phase_bus.core.throttle import Throttle
from phase_bus.errors import PhaseBusError
from phase_bus.events import EventBase, JournalLoss
from phase_bus.jetstream.connection import Connection, NatsUnreachableError, asking, connect, end
from phase_bus.jetstream.ends import Ends
from phase_bus.jetstream.groups import GroupSeat
from phase_bus.jetstream.keys import open_keys
from phase_bus.jetstream.publishing import StreamPublisher
from phase_bus.jetstream.reader import Reader
from phase_bus.jetstream.seats import HEARTBEAT_S, SILENT_AFTER_S, ConsumerSeat, OnlookerSeat, Seat
from phase_bus.jetstream.stream import NoStreamError, Stream, cut_stream, identity_of, open_stream
from phase_bus.journal.rows import Checkpoint

logger = logging.getLogger("phase_bus.jetstream")

_RETRY_S = 0.5
_COMPLAIN_AFTER_S = 3.0
_GOODBYE_S = 3.0  # how long the last words may take


class JetStreamTransport(Transport):
    """The connection of one process to a stream in NATS JetStream.

    What a bus decides for its clients, a :class:`~phase_bus.jetstream.seats.Seat` decides here, by what is
    kept beside the stream. Nothing is pushed: that a stream has more for a share shows at its cursor.
    """

    ordered = True
    heartbeat_s: ClassVar[float] = HEARTBEAT_S
    silent_after_s: ClassVar[float] = SILENT_AFTER_S

    def __init__(self, address: StreamAddress, host: Host, high_water_mark: int) -> None:  # noqa: ARG002
        self.session = Session(host.hello, host.beat, time.monotonic())
        self._address = address
        self._host = host
        self._connection: Connection | None = None
        self._stream: Stream | None = None
        self._seat: Seat | None = None
        self._readers: dict[Share, Reader] = {}
        self._greeted = False
        self._look_s = 0.0  # when to look next how far the stream is
        self._ends = False
        self._news = asyncio.Event()  # there may be something to read
        self._due = asyncio.Event()  # there may be something to say
        self._publisher = StreamPublisher(
            lambda: self._connection, address.stream, host.client_id, host.name
        )
        self._complaints = Throttle(logger)
        self._silence = ""  # why nobody answers, as it was told last
        self._missed: PhaseBusError | None = None  # why the last beat was not taken in

    # ---- the conversation ----

    async def run(self) -> None:
        talking = asyncio.create_task(self._keep_talking())
        try:
            await asyncio.wait({talking})
        finally:
            self._ends = True
            await end(talking)
            await self._say_goodbye()

    async def _keep_talking(self) -> None:
        started_s = time.monotonic()
        try:
            while not self._ends:
                try:
                    await self._talk()
                    await wait_for_event(self._due, self.session.wait_s(time.monotonic()))
                    self._due.clear()
                except (NatsUnreachableError, NoStreamError) as error:
                    self._miss(error, started_s)
                    await asyncio.sleep(_RETRY_S)
        except PhaseBusError as error:
            self.session.lose(time.monotonic())
            self._host.fail(error)

    def tell_news(self) -> None:
        self.session.beat_now(time.monotonic())
        self._due.set()

    async def _talk(self) -> None:
        """Say what is due, and take in the answers; look how far the stream is."""
        now_s = time.monotonic()
        was_connected = self.session.connected
        request = self.session.due(now_s)
        if was_connected and not self.session.connected and not self._silence:
            self._silence = (type(self._missed) if self._missed else NatsUnreachableError).__name__
            logger.warning("%s; waiting for it", self._missed or f"NATS at {self._address} is silent")
        if isinstance(request, Hello):
            seat = await self._take_seat(request)
            self._take_in([await seat.hello(request)], now_s)
        elif isinstance(request, Beat):
            assert self._seat is not None  # it was welcomed
            # What counts is when it was said: others count the silence from then on.
            self._take_in(await self._seat.beat(request), now_s)
            self._missed = None
            if isinstance(self._seat, GroupSeat):
                now_s = time.monotonic()
                self.session.beat_now(now_s + min(self.session.wait_s(now_s), self._seat.soon_s))
            await self._look()

    def _take_in(self, replies: Iterable[Reply], asked_s: float) -> None:
        self._silence = ""
        for reply in replies:
            was_connected = self.session.connected
            if self.session.heard(reply, asked_s):
                self._greeted = False
                self.look_again()
            if self.session.connected and not was_connected:
                self._host.connected()
            self._host.heard(reply)

    def _miss(self, error: PhaseBusError, started_s: float) -> None:
        """Take in that nobody answers; tell so once."""
        if self.session.connected:
            self._missed = error
            if self.session.is_known(time.monotonic()):
                return  # it may be for a moment only
            self.session.lose(time.monotonic())
        what = type(error).__name__
        waited_s = time.monotonic() - started_s
        if what != self._silence and (self._stream is not None or waited_s > _COMPLAIN_AFTER_S):
            self._silence = what
            logger.warning("%s; waiting for it", error)

    async def _take_seat(self, hello: Hello) -> Seat:
        """Return what answers at the stream, which is looked for anew."""
        if self._connection is None or self._connection.client.is_closed:  # for good: it was not let in
            self._connection = await connect(self._address, self._host.name)
            self._seat = None
        self._stream = stream = await open_stream(self._connection, make=False)
        keys = await open_keys(self._connection, stream)
        if self._seat is None:
            if hello.group:
                self._seat = GroupSeat(
                    keys,
                    stream,
                    Ends(self._connection, stream.name),
                    hello.group,
                    hello.client_id,
                    heartbeat_s=self.heartbeat_s,
                    silent_after_s=self.silent_after_s,
                )
            elif hello.role == "consumer":
                self._seat = ConsumerSeat(
                    keys, stream, heartbeat_s=self.heartbeat_s, silent_after_s=self.silent_after_s
                )
            else:
                self._seat = OnlookerSeat(stream, heartbeat_s=self.heartbeat_s)
        self._seat.stream = stream
        return self._seat

    async def _look(self) -> None:
        """Look whether the stream is the same one, and how far it is, for those who see only a part."""
        connection, stream = self._connection, self._stream
        now_s = time.monotonic()
        if connection is None or stream is None or not self.session.connected or now_s < self._look_s:
            return
        self._look_s = now_s + self.heartbeat_s  # there may be beats between, with news
        with asking(self._address):
            try:
                found = identity_of(info := await connection.js.stream_info(stream.name))
            except nats.js.errors.NotFoundError:
                found = ""
        readers = list(self._readers.items())
        cut_after = next((r.cursor.cut_after for _, r in readers if r.cursor.cut_after is not None), None)
        if found != stream.id:
            logger.warning("stream %r at %s is not the one that it was", stream.name, self._address)
            self.session.lose(time.monotonic())
            self._due.set()
            return
        if cut_after is not None:
            with asking(self._address):
                await cut_stream(connection, cut_after)
            return
        last = info.state.last_seq
        for share, _ in readers:
            share.follower.known_offset = max(share.follower.known_offset, last)
        with asking(self._address):
            await asyncio.gather(*(reader.cursor.pass_over(last) for _, reader in readers))

    async def _say_goodbye(self) -> None:
        if not self.session.connected or self._seat is None:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._seat.goodbye(self._host.beat())
        except (PhaseBusError, TimeoutError) as error:
            logger.warning(
                "%s %r: NATS did not take the last word of it: %s",
                self._host.noun,
                self._host.name,
                str(error) or "no answer in time",
            )

    # ---- live events ----

    @property
    def greeted(self) -> bool:
        return self._greeted

    def subscribe(self, topics: Iterable[bytes]) -> None:
        """Do nothing: a reader knows by its share what to read."""

    def unsubscribe(self, topics: Iterable[bytes]) -> None:
        """Do nothing, likewise."""

    def ask_for_greeting(self) -> None:
        """Do nothing: whatever is read is read from a place on."""

    def ask_again(self) -> None:
        """Do nothing, likewise."""

    async def drain(self) -> bool:
        """Let shares that have something to read do so: nothing comes in another way."""
        if not self._greeted and self.has_past and self._host.takes_live:
            self._greeted = True
            self._host.take_greeting()
        held = set(self._host.held)
        for share in [share for share in self._readers if share not in held]:
            await self._readers.pop(share).close()
        for share in held:
            reader = self._readers.get(share)
            if share.placed and (reader is None or reader.has_more(share.follower.offset)):
                share.follower.replaying = True
        return False

    async def wait(self, timeout_s: float) -> None:
        await wait_for_event(self._news, timeout_s)
        self._news.clear()

    def look_again(self) -> None:
        self._news.set()

    # ---- what is past ----

    @property
    def has_past(self) -> bool:
        return self._stream is not None and self.session.connected

    async def fetch(self, share: Share) -> Piece | None:
        connection, stream = self._connection, self._stream
        if connection is None or stream is None:
            return None
        offset = share.follower.offset
        reader = self._readers.get(share)
        if reader is not None and not reader.fits(connection, stream, offset):
            del self._readers[share]
            await reader.close()
            reader = None
        if reader is None:
            reader = self._readers[share] = Reader(connection, stream, share, self.look_again)
        piece = await reader.read(offset)
        if share.leads and isinstance(self._seat, GroupSeat):
            self._seat.see(piece)
        if isinstance(self._seat, ConsumerSeat):
            for loss in self._seat.take_losses():
                share.note_journal_loss(loss)
        for first, last in reader.take_lost():
            share.note_journal_loss(JournalLoss(reason="removed", stream=stream.id, first=first, last=last))
        return piece

    async def fetch_states(
        self, group: str, after: Mapping[int, int], only: int | None = None
    ) -> dict[int, Checkpoint] | None:
        seat = self._seat
        if not isinstance(seat, GroupSeat) or not self.session.connected:
            return None
        try:
            return await seat.states(after, only)
        except NatsUnreachableError as error:
            self._complaints.warn("%s %r: %s; trying again", self._host.noun, group, error)
            await self._host.pause(_RETRY_S)
            return None

    # ---- publishing ----

    def publish(self, event: EventBase) -> None:
        self._publisher.publish(event)

    async def flush(self, timeout_s: float) -> bool:
        return await self._publisher.flush(timeout_s)

    async def close(self) -> None:
        try:
            await self._publisher.close()
        finally:
            readers, self._readers = self._readers, {}
            await asyncio.gather(*(reader.close() for reader in readers.values()))
            if self._connection is not None:
                await self._connection.close()
