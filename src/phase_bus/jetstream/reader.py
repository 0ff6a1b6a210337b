"""Reads a stream for one share of a consumer, which may leave part of what it is given for later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.share import Share
from phase_bus.consumer.transport import Piece
from phase_bus.core.wire import stream_tag
from phase_bus.jetstream.connection import Connection
from phase_bus.jetstream.cursor import Cursor, Taken
from phase_bus.jetstream.message import subjects
from phase_bus.jetstream.stream import Stream

_AHEAD_BYTES = 8 << 20  # what is read ahead for a share
# Of these a worker may have all; a server drops who leaves more than 64 MiB untaken while it is busy.
_OF_A_PARTITION_BYTES = 1 << 20


class Reader:
    """Gives one share what it wants of a stream, in order.

    What a share is given it may handle in part. It says with the next :meth:`read` how far it has come,
    and is given the rest once more.

    Args:
        on_news: called when there may be something to read.

    Attributes:
        cursor: what reads for it.
    """

    def __init__(
        self, connection: Connection, stream: Stream, share: Share, on_news: Callable[[], None]
    ) -> None:
        records, partition = share.follower.records, share.view.partition
        wanted = subjects(stream.name, records=records, partition=partition)
        self._after = share.follower.offset  # all up to here was handled
        self.cursor = Cursor(
            connection,
            stream.name,
            [wanted],
            self._after,
            on_news,
            identity=stream.id,
            ahead_bytes=_AHEAD_BYTES if partition is None else _OF_A_PARTITION_BYTES,
        )
        self._connection = connection
        self._stream = stream
        self._tag = stream_tag(stream.id)
        self._given: deque[Taken] = deque()

    def fits(self, connection: Connection, stream: Stream, offset: int) -> bool:
        """Return whether it can go on after an offset of a stream."""
        is_here = connection is self._connection and stream.id == self._stream.id
        return is_here and offset >= self._after

    def has_more(self, offset: int) -> bool:
        """Return whether there is something for a share that stands at an offset."""
        return self.cursor.has_more or self.cursor.position > offset

    async def read(self, offset: int) -> Piece:
        """Return what comes after an offset; maybe nothing."""
        self._after = offset
        while self._given and self._given[0].offset <= offset:
            self._given.popleft()
        if not self._given:
            self._given.extend(await self.cursor.take())
        arrivals = [
            Arrival(
                message.topic,
                message.header._replace(offset=at, previous=0, stream=self._tag),
                message.payload,
            )
            for at, message, _ in self._given
            if at > offset
        ]
        return Piece(arrivals, self.cursor.position, 0, end=not self.cursor.has_more)

    def take_lost(self) -> list[tuple[int, int]]:
        """Return the ranges of offsets that the stream does not hold any more, each once."""
        lost, self.cursor.lost = self.cursor.lost, []
        return lost

    async def close(self) -> None:
        """Read no more."""
        await self.cursor.close()
