"""What consumers publish into a stream: receipts, summaries, verdicts."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

import nats.errors
import nats.js.errors

from phase_bus.core.outbox import Message, Outbox
from phase_bus.core.readable import wait_for_event
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import stream_tag, unpack_header
from phase_bus.errors import PhaseBusError
from phase_bus.events import EventBase
from phase_bus.jetstream.batch import HEADER_BYTES, MOST_MESSAGES, Addressed, append
from phase_bus.jetstream.connection import Connection, end
from phase_bus.jetstream.message import packed, subject_of, subjects_of_bus, unpacked

logger = logging.getLogger("phase_bus.jetstream")

_NO_LIMIT = 1 << 62
_RETRY_S = 0.5
_MOST_AT_ONCE = 100  # events
_MOST_BYTES_AT_ONCE = 1 << 20
_LAST_S = 5.0  # how long what was published may take to get there when the process ends


class StreamPublisher:
    """Appends one process's events to a stream, in order and each once.

    They are there as if the process were a bus of its own, with its client id for the id of its journal.

    Args:
        connection: returns the connection, None while there is none.
        name: what the consumer is called.
    """

    def __init__(
        self, connection: Callable[[], Connection | None], stream: str, client_id: str, name: str
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._client_id = client_id
        self._name = name
        self._subjects = subjects_of_bus(stream, client_id)
        self._outbox = Outbox(bytes.fromhex(client_id), _NO_LIMIT)
        self._last: int | None = 0  # the sequence number of its last message there, None if that is unknown
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._emptied = asyncio.Event()
        self._closed = False
        self._complaints = Throttle(logger)

    def publish(self, event: EventBase) -> None:
        """Publish an event. Never blocks."""
        try:
            self._outbox.put(event)
        except (TypeError, ValueError, OverflowError) as error:
            logger.error("consumer %r: a %s cannot be published: %s", self._name, event.kind, error)
            return
        self._news.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send())

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that was published is in the stream; return whether it is."""
        until_s = time.monotonic() + timeout_s
        while len(self._outbox):
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            self._emptied.clear()
            await wait_for_event(self._emptied, left_s)
        return True

    async def close(self) -> None:
        """Wait a while for what was published, and publish no more."""
        if self._task is None:
            return
        if not await self.flush(_LAST_S):
            logger.error(
                "consumer %r: %d events that it published are not known to be in the stream: NATS did not "
                "answer within %g s",
                self._name,
                len(self._outbox),
                _LAST_S,
            )
        self._closed = True
        await end(self._task)

    async def _send(self) -> None:
        while not self._closed:
            self._news.clear()
            connection = self._connection()
            try:
                while connection is not None and (messages := self._take()):
                    await self._append(connection, messages)
            except (PhaseBusError, nats.errors.Error, TimeoutError, OSError) as error:
                self._last = None
                why = str(error) or "no answer in time"
                self._complaints.log(
                    logging.INFO, "consumer %r: publishing: %s; trying again", self._name, why
                )
            await wait_for_event(self._news, _RETRY_S if len(self._outbox) else 60.0)

    def _take(self) -> list[Message]:
        """Return the next events, as many as go at once."""
        taken: list[Message] = []
        size = 0
        for message in itertools.islice(self._outbox, _MOST_AT_ONCE):
            size += message.size_bytes
            if taken and size > _MOST_BYTES_AT_ONCE:
                break
            taken.append(message)
        return taken

    async def _append(self, connection: Connection, messages: list[Message]) -> None:
        if self._last is None:
            await self._find_out(connection)
            messages = [message for message in messages if message.seq >= self._outbox.next_seq]
        addressed: list[Addressed] = []
        last_seq = 0
        for message in messages:
            parts = self._addressed(message, connection.max_payload_bytes - HEADER_BYTES)
            if addressed and len(addressed) + len(parts) > MOST_MESSAGES:
                break
            addressed += parts
            last_seq = message.seq
        if addressed:
            last, self._last = self._last, None
            assert last is not None  # by _find_out
            self._last = await append(connection, addressed, self._subjects, last)
            self._acknowledge(last_seq)

    async def _find_out(self, connection: Connection) -> None:
        """Ask how much of it is there."""
        try:
            last = await connection.js.get_last_msg(self._stream, self._subjects)
        except nats.js.errors.NotFoundError:
            self._last = 0
        else:
            self._last = last.seq
            self._acknowledge(unpacked(last.data or b"").header.offset)

    def _acknowledge(self, seq: int) -> None:
        self._outbox.acknowledge(seq)
        if not len(self._outbox):
            self._emptied.set()

    def _addressed(self, message: Message, limit_bytes: int) -> list[Addressed]:
        topic, frame, payload = message.frames
        tag, seq = stream_tag(self._client_id), message.seq
        header = unpack_header(frame, topic).pack_at(seq, seq, 0, tag)
        subject = subject_of(self._stream, self._client_id, topic)
        frames = packed(topic, header, self._client_id, payload, limit_bytes)
        return [Addressed(subject, data) for data in frames]
