"""Reads a stream in order from a place on, ahead of whoever takes what was read, within bounds."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from phase_bus.core.position import Position
from phase_bus.core.readable import wait_for_event
from phase_bus.core.throttle import Throttle
from phase_bus.errors import WireError
from phase_bus.jetstream.connection import Connection, end
from phase_bus.jetstream.message import Message, subject_of, unpacked
from phase_bus.jetstream.stream import identity_of

logger = logging.getLogger("phase_bus.jetstream")

_BATCH_MESSAGES = 1000  # of one request
_AHEAD_BYTES = 8 << 20
_EXPIRES_S = 30.0  # after which the server forgets a request
_BEAT_S = 1.0  # how often it says that it has not
_SILENT_S = 4 * _BEAT_S  # then the request, or the server, is lost
_ABANDONED_S = 60.0  # after which the server forgets a reader from which nothing comes
_RETRY_S = 0.5
_LEAVE_S = 1.0  # how long the server may take to forget a reader when asked to
SHORT_S = 5.0
"""How long a stream may seem to lack its end: who leads it now may have to catch up."""

_TOKENS = 9  # of the subject that a message is acknowledged to

_encode = msgspec.json.encode


class Taken(NamedTuple):
    """An event of the stream.

    Attributes:
        offset: its place in the stream: the sequence number of its message, of the last one if it has
            several.
        subject: that of its message.
    """

    offset: int
    message: Message
    subject: str


class Cursor:
    """Reads what filters select, after an offset: every event once, in order.

    It asks for more before that is wanted, and begins anew after its last event when the connection broke,
    the server was restarted, or a message is missing. Nothing of it is kept at the server for long.

    Args:
        stream: the stream's name.
        filters: the subjects wanted; they must not overlap.
        after: the offset after which to begin. From the very beginning on, what the stream does not hold
            any more is no loss.
        on_news: called when there is something to take, or ``position`` or ``at_end`` has changed.
        identity: the stream's id; if it is another one by now, nothing more is read.
        ahead_bytes: what is read ahead, beyond which nothing more is asked for.

    Attributes:
        at_end: whether there was nothing more in the stream when last heard from it.
        lost: ranges of offsets, both ends included, that the stream does not hold any more; take them out.
        moved: whether the stream has another id.
        cut_after: the last offset that the stream has, if that is before what was read of it: the stream
            has lost its end. Nothing more is read then. None as long as it has not.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        after: int,
        on_news: Callable[[], None] = lambda: None,
        *,
        identity: str = "",
        ahead_bytes: int = _AHEAD_BYTES,
    ) -> None:
        self.at_end = False
        self._replicated = False
        self._selected = 0  # the last offset that the filters selected when this reader began
        self.lost: list[tuple[int, int]] = []
        self.moved = False
        self.cut_after: int | None = None
        self._connection = connection
        self._stream = stream
        self._filters = list(filters)
        self._on_news = on_news
        self._identity = identity
        self._ahead_bytes = ahead_bytes
        self._read = self._position = after  # the last offset that was read, and the last that was taken
        self._has_read = False  # whether it has come to where it is by reading
        self._delivered = 0  # how many the server has sent this reader
        self._waiting: deque[Taken] = deque()
        self._waiting_bytes = 0
        self._parts: list[Message] = []  # of an event that has come in part
        self._parts_from = 0  # the offset of the first of them
        self._cut_event: Position | None = None  # one of which a part is missing
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._asked = 0  # messages that are asked for and have not come
        self._reconnects = 0  # of the connection when this reader began
        self._heard_s = 0.0
        self._doubted_s = 0.0  # since when the server seems silent, 0 while it does not
        self._short_s = 0.0  # likewise the stream too short
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self._wake = asyncio.Event()
        self._complaints = Throttle(logger)

    @property
    def position(self) -> int:
        """The offset up to which everything was taken, or is of no interest."""
        return self._position if self._waiting else self._read

    @property
    def has_more(self) -> bool:
        """Whether there is something to take at once."""
        return bool(self._waiting or self.lost)

    async def take(self, limit_bytes: int = 1 << 20) -> list[Taken]:
        """Return the next events that have come, at least one if there are any, up to a size.

        It does not wait: what has not come yet is told by ``on_news``.
        """
        if self._pump is None:
            self._pump = asyncio.create_task(self._keep_reading())
        if self._pump.done():
            self._pump.result()
        taken: list[Taken] = []
        size = 0
        while self._waiting and (not taken or size < limit_bytes):
            each = self._waiting.popleft()
            size += len(each.message.payload)
            taken.append(each)
        if taken:
            self._position = taken[-1].offset
            self._waiting_bytes -= size
            if self._asked == 0:
                self._wake.set()
        return taken

    async def pass_over(self, offset: int) -> None:
        """Take in that the stream reaches to an offset, of which nothing may be selected up to there.

        Raises:
            nats.errors.Error, TimeoutError, OSError: the server does not answer.
        """
        consumer, delivered = self._consumer, self._delivered
        if offset <= self._read or self._subscription is None or self._parts:
            return
        try:
            info = await self._connection.js.consumer_info(self._stream, consumer)
        except nats.js.errors.NotFoundError:
            return  # the server was restarted; another reader follows soon
        same = consumer == self._consumer and delivered == self._delivered and not self._parts
        at_end = info.num_pending == 0 and info.delivered is not None
        if same and at_end and info.delivered and info.delivered.consumer_seq == delivered:
            if self._replicated and await self._last_selected() > self._read:
                return
            if consumer != self._consumer or delivered != self._delivered or self._parts:
                return
            self._at_end(offset)
            self._on_news()

    async def close(self) -> None:
        """Read no more."""
        self._closed = True
        pump, self._pump = self._pump, None
        if pump is not None:
            await end(pump)
        client = self._connection.client
        if self._subscription is not None and client.is_connected:
            await self._forget()
            with suppress(nats.errors.Error, TimeoutError, OSError):  # the server forgets it by itself
                async with asyncio.timeout(_LEAVE_S):
                    await self._connection.js.delete_consumer(self._stream, self._consumer)

    # ---- asking ----

    async def _keep_reading(self) -> None:
        while not (self._closed or self.moved or self.cut_after is not None):
            try:
                await self._keep_asking()
            except (nats.errors.Error, TimeoutError, OSError) as error:
                self._connection.complaints.log(
                    logging.INFO, "reading stream %r: %s; trying again", self._stream, error or "no answer"
                )
                await self._forget()
            timeout_s = _RETRY_S if self._subscription is None else _BEAT_S
            await wait_for_event(self._wake, timeout_s)
            self._wake.clear()
        self._on_news()

    async def _keep_asking(self) -> None:
        if not self._connection.client.is_connected:
            return
        if self._subscription is not None and self._connection.reconnects != self._reconnects:
            await self._begin_anew("the connection is a new one")
        elif self._subscription is not None and self._is_silent():
            await self._begin_anew("no word from the server")
        if self._subscription is None:
            await self._begin()
        if self._subscription is not None and self._asked == 0 and self._waiting_bytes < self._ahead_bytes:
            await self._ask()

    def _is_silent(self) -> bool:
        """Return whether the server has forgotten this reader.

        Not if it was this process that did not listen: then what has come is read before the next look.
        """
        now_s = time.monotonic()
        if not self._asked or now_s < self._heard_s + _SILENT_S:
            self._doubted_s = 0.0
            return False
        self._doubted_s = self._doubted_s or now_s
        return now_s > self._doubted_s + _BEAT_S / 2

    async def _begin(self) -> None:
        js, client = self._connection.js, self._connection.client
        self._reconnects = self._connection.reconnects
        info = await js.stream_info(self._stream)
        if self._identity and identity_of(info) != self._identity:
            self.moved = True
            return
        if self._is_short(info.state.last_seq):
            return
        if info.state.first_seq > self._read + 1:
            self._lose(self._read + 1, info.state.first_seq - 1)
        self._replicated = (info.config.num_replicas or 1) > 1
        self._selected = selected = await self._last_selected() if self._replicated else 0
        made = await js.add_consumer(
            self._stream,
            ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._read + 1,
                ack_policy=AckPolicy.NONE,
                filter_subjects=self._filters,
                mem_storage=True,
                num_replicas=1,
                inactive_threshold=_ABANDONED_S,
                max_deliver=1,
            ),
        )
        self._consumer = made.name
        self._delivered = self._asked = 0
        self.at_end = False
        inbox = client.new_inbox()
        self._subscription = await client.subscribe(
            inbox,
            cb=functools.partial(self._on_message, inbox),
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )
        if not made.num_pending and selected <= self._read:
            self._at_end(info.state.last_seq)
        self._on_news()

    async def _last_selected(self) -> int:
        """Return the offset of the last message that the filters select, 0 for none, as the leader has it.

        A reader is at any of the stream's servers. One that has just started lacks what came last, and says
        that nothing is pending all the same.
        """
        last = 0
        for each in self._filters:
            with suppress(nats.js.errors.NotFoundError):
                found = await self._connection.js.get_last_msg(self._stream, each)
                last = max(last, found.seq or 0)
        return last

    def _is_short(self, last: int) -> bool:
        """Return whether the stream ends before what was read: not at once, its leader may be a new one."""
        if last >= self._read or not self._has_read:  # it may begin with what does not exist yet
            self._short_s = 0.0
            return False
        now_s = time.monotonic()
        self._short_s = self._short_s or now_s
        if now_s > self._short_s + SHORT_S:
            self.cut_after = last
        return True

    def _lose(self, first: int, last: int) -> None:
        if first > 1:
            self.lost.append((first, last))
        self._read = last

    async def _begin_anew(self, why: str) -> None:
        """Forget the reader at the server; another one goes on after the last message that was read."""
        self._connection.complaints.log(logging.INFO, "reading stream %r anew: %s", self._stream, why)
        await self._forget()
        self._wake.set()

    async def _forget(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._parts.clear()
        self._asked, self._doubted_s = 0, 0.0
        if subscription is not None:
            with suppress(nats.errors.Error, OSError):  # the connection is closed
                await subscription.unsubscribe()

    async def _ask(self) -> None:
        subscription = self._subscription
        assert subscription is not None  # asked by the caller
        self._asked = _BATCH_MESSAGES
        self._heard_s = time.monotonic()
        request = {
            "batch": _BATCH_MESSAGES,
            "max_bytes": self._ahead_bytes // 2 + self._connection.max_payload_bytes,
            "expires": int(_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_BEAT_S * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._connection.client.publish(subject, _encode(request), reply=subscription.subject)

    # ---- what comes ----

    async def _on_message(self, inbox: str, message: Msg) -> None:
        if self._subscription is None or inbox != self._subscription.subject:
            return  # it was for a reader of before
        self._heard_s = time.monotonic()
        if message.subject == inbox:
            await self._on_status(message)
            return
        offset, delivered, pending = _numbers_of(message.reply)
        if delivered != self._delivered + 1:
            await self._begin_anew(f"message {self._delivered + 1} of it is missing")
            return
        self._delivered = delivered
        self._has_read = True
        self._asked -= 1
        if offset > self._read:  # else its server began before where it was to: it lacked what came last
            self._take_in(offset, message.subject, message.data)
        self.at_end = pending == 0 and self._read >= self._selected
        if self._asked == 0:
            self._wake.set()
        if not self._parts:
            self._on_news()

    async def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status, description = headers.get("Status", ""), headers.get("Description", "").lower()
        if status == "100":  # a heartbeat: the request stands
            return
        self._asked = 0
        if status in ("404", "408") or "exceed" in description or "batch" in description:
            self._wake.set()  # the request has run out
        else:
            await self._begin_anew(f"{status} {description}")

    def _take_in(self, offset: int, subject: str, data: bytes) -> None:
        try:
            message = unpacked(data)
            _check_subject(self._stream, subject, message.topic)
        except WireError as error:
            self._complaints.warn("stream %r, offset %d: %s; skipped", self._stream, offset, error)
            self._parts.clear()
            self._read = offset
            return
        before = self._parts[-1] if self._parts else None
        if before and (before.position, before.parts) != (message.position, message.parts + 1):
            self._complaints.warn("stream %r, offset %d: the event before is cut", self._stream, offset)
            self.lost.append((self._parts_from, offset - 1))
            self._parts.clear()
            self._cut_event = before.position
        if message.position == self._cut_event:  # what is left of it
            self.lost.append((offset, offset))
            self._read = offset
            return
        if message.parts:
            self._parts_from = self._parts_from if self._parts else offset
            self._parts.append(message)
            return
        if self._parts:
            payload = b"".join([*(part.payload for part in self._parts), message.payload])
            message = message._replace(payload=memoryview(payload))
            self._parts.clear()
        self._read = offset
        self._waiting.append(Taken(offset, message, subject))
        self._waiting_bytes += len(message.payload)

    def _at_end(self, offset: int) -> None:
        self.at_end = True
        self._read = max(self._read, offset)


@functools.lru_cache(maxsize=4096)
def _check_subject(stream: str, subject: str, topic: bytes) -> None:
    """Check that a message is where its event belongs: a reader of a part would go wrong by another one.

    Raises:
        WireError: it is not.
    """
    bus = subject.removeprefix(f"{stream}.").partition(".")[0]
    if subject_of(stream, bus, topic) != subject:
        raise WireError(f"its subject is {subject!r}", topic)


def _numbers_of(reply: str) -> tuple[int, int, int]:
    """Return a message's offset, its number among those delivered to this reader, and how many follow.

    ``Msg.metadata`` has the same, and a date; a fifth of what reading a small event costs would be for it.
    """
    tokens = reply.split(".")
    first = 5 if len(tokens) == _TOKENS else 7  # longer ones have a domain and an account before them
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3])
