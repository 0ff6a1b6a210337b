"""Reads a stream in order from a place on, ahead of whoever takes what was read, within bounds."""

from __future__ import annotations

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

from phase_bus.core.throttle import Throttle
from phase_bus.errors import WireError
from phase_bus.jetstream.connection import Connection
from phase_bus.jetstream.message import Message, unpacked

logger = logging.getLogger("phase_bus.jetstream")

_BATCH_MESSAGES, _BATCH_BYTES = 1000, 4 << 20  # of one request
_AHEAD_BYTES = 8 << 20  # what is read ahead, beyond which nothing more is asked for
_EXPIRES_S = 30.0  # after which the server forgets a request
_BEAT_S = 1.0  # how often it says that it has not
_SILENT_S = 4 * _BEAT_S  # then the request, or the server, is lost
_ABANDONED_S = 60.0  # after which the server forgets a reader from which nothing comes
_RETRY_S = 0.5

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
        after: the offset after which to begin.
        on_news: called when there is something to take.

    Attributes:
        position: the offset up to which everything was taken, or is of no interest.
        at_end: whether there was nothing more in the stream when last heard from it.
        lost: ranges of offsets, both ends included, that the stream does not hold any more; take them out.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        after: int,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self.position = after
        self.at_end = False
        self.lost: list[tuple[int, int]] = []
        self._connection = connection
        self._stream = stream
        self._filters = list(filters)
        self._on_news = on_news
        self._read = after  # the offset of the last message that was read ahead
        self._delivered = 0  # how many the server has sent this reader
        self._waiting: deque[Taken] = deque()
        self._waiting_bytes = 0
        self._parts: list[Message] = []  # of an event that has come in part
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._asked = 0  # messages that are asked for and have not come
        self._heard_s = 0.0
        self._retry_s = 0.0
        self._complaints = Throttle(logger)

    @property
    def has_more(self) -> bool:
        """Whether there is something to take at once."""
        return bool(self._waiting or self.lost)

    async def take(self, limit_bytes: int = 1 << 20) -> list[Taken]:
        """Return the next events that have come, at least one if there are any, up to a size.

        Raises:
            nats.errors.Error, TimeoutError, OSError: the server does not answer; call it again later.
        """
        await self._keep_asking()
        taken: list[Taken] = []
        size = 0
        while self._waiting and (not taken or size < limit_bytes):
            each = self._waiting.popleft()
            size += len(each.message.payload)
            taken.append(each)
        self._waiting_bytes -= size
        if taken:
            self.position = taken[-1].offset
        if self.at_end and not self._waiting:
            self.position = max(self.position, self._read)
        return taken

    async def close(self) -> None:
        """Read no more."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._connection.client.is_closed:
            await subscription.unsubscribe()
            with suppress(nats.errors.Error, TimeoutError, OSError):  # the server forgets it by itself
                await self._connection.js.delete_consumer(self._stream, self._consumer)

    # ---- asking ----

    async def _keep_asking(self) -> None:
        now_s = time.monotonic()
        silent = self._subscription is not None and self._asked > 0 and now_s > self._heard_s + _SILENT_S
        if silent:
            await self._begin_anew("no word from the server")
        if self._subscription is None and now_s >= self._retry_s:
            self._retry_s = now_s + _RETRY_S
            await self._begin()
        if self._subscription is not None and self._asked == 0 and self._waiting_bytes < _AHEAD_BYTES:
            await self._ask()

    async def _begin(self) -> None:
        js, client = self._connection.js, self._connection.client
        state = (await js.stream_info(self._stream)).state
        if state.first_seq > self._read + 1:
            self.lost.append((self._read + 1, state.first_seq - 1))
            self._read = state.first_seq - 1
        info = await js.add_consumer(
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
        self._consumer = info.name
        self._delivered = self._asked = 0
        if not info.num_pending:
            self._at_end(state.last_seq)
        else:
            self.at_end = False
        self._subscription = await client.subscribe(
            client.new_inbox(), cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def _begin_anew(self, why: str) -> None:
        """Forget the reader at the server; another one goes on after the last message that was read."""
        self._complaints.log(logging.INFO, "reading stream %r anew: %s", self._stream, why)
        subscription, self._subscription = self._subscription, None
        self._parts.clear()
        if subscription is not None:
            await subscription.unsubscribe()

    async def _ask(self) -> None:
        subscription = self._subscription
        assert subscription is not None  # asked by the caller
        self._asked = _BATCH_MESSAGES
        self._heard_s = time.monotonic()
        request = {
            "batch": _BATCH_MESSAGES,
            "max_bytes": _BATCH_BYTES + self._connection.max_payload_bytes,
            "expires": int(_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_BEAT_S * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._connection.client.publish(subject, _encode(request), reply=subscription.subject)

    # ---- what comes ----

    async def _on_message(self, message: Msg) -> None:
        if self._subscription is None or (
            message.subject != self._subscription.subject and not message.reply
        ):
            return
        self._heard_s = time.monotonic()
        status = (message.headers or {}).get("Status") if not message.reply else None
        if status is not None:
            await self._on_status(status, message)
            return
        offset, delivered, pending = _numbers_of(message.reply)
        if delivered != self._delivered + 1:
            await self._begin_anew(f"message {self._delivered + 1} of it is missing")
            return
        self._delivered = delivered
        self._asked -= 1
        self._take_in(offset, message.subject, message.data)
        self.at_end = pending == 0
        if self._asked == 0 and self._waiting_bytes < _AHEAD_BYTES:
            await self._ask()
        if not self._parts:
            self._on_news()

    async def _on_status(self, status: str, message: Msg) -> None:
        if status == "100":  # a heartbeat: the request stands
            return
        description = (message.headers or {}).get("Description", "")
        self._asked = 0
        if status in ("404", "408") or "exceed" in description.lower() or "batch" in description.lower():
            self._on_news()  # the request has run out; the next look asks anew
        else:
            await self._begin_anew(f"{status} {description}")
            self._on_news()

    def _take_in(self, offset: int, subject: str, data: bytes) -> None:
        try:
            message = unpacked(data)
        except WireError as error:
            self._complaints.warn("stream %r, offset %d: %s; skipped", self._stream, offset, error)
            self._read = offset
            return
        if message.parts:
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


def _numbers_of(reply: str) -> tuple[int, int, int]:
    """Return a message's offset, its number among those delivered to this reader, and how many follow.

    ``Msg.metadata`` has the same, and a date; a fifth of what reading a small event costs would be for it.
    """
    tokens = reply.split(".")
    first = 5 if len(tokens) == _TOKENS else 7  # longer ones have a domain and an account before them
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3])
