"""The forwarder: a consumer of a bus that appends all of its journal to a stream in NATS, once.

How far it has come is not remembered here: the last message of the bus in the stream says it. Each append
is several messages as one, on the condition that this is still the last one. So whatever is killed, cut off
or started twice, what comes next is known, and nothing is appended that is there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import nats.errors
from msgspec import Struct

from phase_bus.consumer.patience import Patience
from phase_bus.consumer.raw import RawConsumer, RawEvent
from phase_bus.consumer.rows import UnavailableError
from phase_bus.core.address import Address, StreamAddress
from phase_bus.core.position import Lineage, Position
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import decode, unpack_header
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.events import Int
from phase_bus.jetstream.batch import (
    HEADER_BYTES,
    MOST_MESSAGES,
    Addressed,
    MovedError,
    NotAppendedError,
    append,
)
from phase_bus.jetstream.connection import Connection, NatsUnreachableError, connect
from phase_bus.jetstream.durability import tell_weaknesses
from phase_bus.jetstream.message import packed, subject_of, subjects_of_bus
from phase_bus.jetstream.place import Key, Place, find_place
from phase_bus.jetstream.stream import cut_stream, open_stream
from phase_bus.journal.remote import RemoteJournal
from phase_bus.journal.rows import Entry

logger = logging.getLogger("phase_bus.jetstream")

_BATCH_BYTES = 4 << 20  # what is appended at once, about
_FEW = 8  # events that are appended each on its own: a batch costs a server with a file more than so many
_MOST_WAITING_BYTES = 16 << 20  # beyond which no more events are taken: they wait in the journal
_MOST_WAITING = 20_000
_LEAST_PAYLOAD_BYTES = 64 << 10  # the largest event of a bus has to fit in MOST_MESSAGES messages
_FLUSH_S = 10.0  # how long a flush waits before it fails, to be called again
_LAST_FLUSH_S = 4.0  # and the last one, whose process is to end
_LOOK_S = 1.0
_MOVES = 20  # times in a row that somebody else may be faster


class _Row(NamedTuple):
    """An event that is to be appended."""

    lineage: Lineage
    position: Position
    subject: str
    event: RawEvent

    @property
    def size(self) -> int:
        return len(self.event.payload) + len(self.event.topic)

    @property
    def key(self) -> Key:
        return self.event.header.source, self.event.topic


_Part = list[tuple[_Row, list[Addressed]]]  # rows with their messages, which are appended as one


class Forwarder(RawConsumer):
    """Appends all that the bus has to a stream in NATS JetStream, where consumers elsewhere read it.

    Args:
        to: where the stream is: nats://HOST:PORT, with more hosts after commas, and /STREAM if it has a
            name of its own; tls:// likewise. It is made if it is not there.
    """

    retry_wait_s = 3.0

    def __init__(self, to: str) -> None:
        self._to = StreamAddress.parse(to)
        self._connection: Connection | None = None
        self._opened = self._judged = False  # whether the stream is there; whether its weakness was told
        self._waiting: deque[_Row] = deque()
        self._waiting_bytes = 0
        self._sending: Sequence[_Row] = ()
        self._more = asyncio.Event()
        self._fewer = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._place: Place | None = None  # of the bus named next, where it is certain
        self._bus = ""
        self._stored: Position | None = None  # all up to there is there, as far as is known
        self._checked = -1  # how often the connection had been made anew when that was looked for
        self._highest: int | None = None  # the sequence number of what was appended last, if that is known
        self._made = ""  # the id that the stream was made with in which that is
        self._beyond: dict[Key, int] = {}
        self._complaints = Throttle(logger)
        self._patience = Patience(
            lambda: self.log, lambda: len(self._sending) + len(self._waiting), lambda: self.retry_wait_s
        )

    # ---- what the process around it calls ----

    async def start(self) -> None:
        """Look for the server; if it is not there, what is to be forwarded waits for it."""
        try:
            await self._open()
        except UnavailableError as error:
            self.log.warning(
                "NATS does not answer; what is to be forwarded waits for it", reason=str(error)
            )
        except BaseException:
            await self.stop()
            raise
        self._sender = asyncio.create_task(self._send())

    async def stop(self) -> None:
        """Let go of what was not appended: it comes again, since the checkpoint is before it."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait({self._sender})
        if self._connection is not None:
            await self._connection.close()

    async def on_event(self, event: RawEvent) -> None:
        """Have an event appended; wait while too many of them wait."""
        lineage = self.context.lineage
        subject = subject_of(self._to.stream, lineage.journal_id, event.topic)
        row = _Row(lineage, lineage.position(self.offset), subject, event)
        self._waiting.append(row)
        self._waiting_bytes += row.size
        self._more.set()
        while self._waiting_bytes > _MOST_WAITING_BYTES or len(self._waiting) > _MOST_WAITING:
            self._fewer.clear()
            await self._fewer.wait()

    async def position(self) -> None:
        """Leave it to the bus where to begin; what of that is in the stream already is passed over.

        Raises:
            ConfigError: if the bus has no journal, from which to go on after a break.
        """
        if not self.context.lineage.journal_id:
            raise ConfigError(
                f"consumer {self.name!r}: the bus keeps no journal; run it without --no-journal"
            )

    def state(self) -> bytes | None:
        """Return up to where all was appended: should it be lost one day, it is appended again."""
        if self._stored is None:
            return None
        return _encode(_State(self._stored, self._made, self._highest or 0))

    def restore(self, state: bytes) -> None:
        """Look, even before there is an event, whether all is there that was."""
        kept = decode(_decode, state, "not a place in a journal")
        self._stored, self._made, self._highest = kept.position, kept.made, kept.sequence or None
        self._more.set()

    async def flush(self) -> None:
        """Wait until all is appended."""
        until_s = time.monotonic() + (_LAST_FLUSH_S if self.stopping else _FLUSH_S)
        while self._waiting or self._sending:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                count = len(self._waiting) + len(self._sending)
                why = self._patience.trouble or "no answer so far"
                raise PhaseBusError(f"{count} events are not forwarded to {self._to}: {why}")
            self._fewer.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._fewer.wait(), left_s)

    # ---- sending ----

    async def _send(self) -> None:
        """Append what waits, batch after batch, each for as long as it takes."""
        while True:
            if self._waiting:
                self._sending = self._take()
                await self._patience.insist(self._forward)
                self._sending = ()
                self._fewer.set()
            elif self._is_unsure:
                await self._patience.insist(self._forward)
            else:
                self._more.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), _LOOK_S)

    @property
    def _is_unsure(self) -> bool:
        """Whether the servers may have lost what is there: they were away."""
        if self._stored is None:
            return False
        return self._connection is None or self._checked != self._connection.client.stats["reconnects"]

    def _take(self) -> list[_Row]:
        rows: list[_Row] = []
        size = 0
        while self._waiting and len(rows) < MOST_MESSAGES and size < _BATCH_BYTES:
            row = self._waiting.popleft()
            size += row.size
            rows.append(row)
        self._waiting_bytes -= size
        return rows

    async def _forward(self) -> None:
        """Append all rows that are to be sent and are not there; make sure of what was there before.

        Raises:
            UnavailableError: not all of them are there now; those that are not remain.
        """
        try:
            connection = await self._open()
            if self._is_unsure:
                self._place = None
            if not self._sending:
                await self._find_place(connection, self.context.lineage)
            for _, group in itertools.groupby(self._sending, lambda row: row.lineage.journal_id):
                await self._append(connection, list(group))
        except NotAppendedError as error:
            self._place, self._opened = None, False
            raise UnavailableError(str(error)) from None
        except (nats.errors.Error, TimeoutError, OSError) as error:
            self._place, self._opened = None, False
            raise UnavailableError(f"NATS at {str(self._to)!r}: {error or type(error).__name__}") from None

    async def _append(self, connection: Connection, rows: Sequence[_Row]) -> None:
        """Append rows of one bus, those that are not there yet."""
        lineage = rows[-1].lineage
        last: int | None = None
        for _ in range(_MOVES):
            try:
                place = self._place
                if place is None or self._bus != lineage.journal_id:
                    place = await self._find_place(connection, lineage)
                    if last is not None and place.last > last:
                        self._complaints.warn(
                            "consumer %r: somebody else forwards the same bus to %s; going on after what "
                            "is there",
                            self.name,
                            self._to,
                        )
                lacking = [row for row in rows if not self._is_there(row, place.position)]
                for part in self._parts(connection, lacking):
                    await self._append_part(connection, part)
                    self._stored = part[-1][0].position
                self._stored = rows[-1].position
            except MovedError:
                last, self._place = self._place.last if self._place else 0, None
                continue
            return
        raise NotAppendedError(f"somebody else forwards the same bus to {self._to}, and was always faster")

    async def _append_part(self, connection: Connection, part: _Part) -> None:
        place = self._place
        assert place is not None  # by _find_place
        messages = [message for _, each in part for message in each]
        last = await append(connection, messages, self._subjects, place.last)
        self._place = place._replace(last=last, position=part[-1][0].position)
        self._highest = last

    @property
    def _subjects(self) -> str:
        return subjects_of_bus(self._to.stream, self._bus)

    def _parts(self, connection: Connection, rows: Sequence[_Row]) -> Iterator[_Part]:
        """Yield rows with their messages, as many at a time as can be appended as one."""
        limit_bytes = connection.max_payload_bytes - HEADER_BYTES
        part: _Part = []
        count = 0
        for row in rows:
            event = row.event
            header, stream = event.header.pack(), row.position.stream
            frames = packed(event.topic, header, stream, event.payload, limit_bytes)
            messages = [Addressed(row.subject, frame) for frame in frames]
            if part and (len(rows) <= _FEW or count + len(messages) > MOST_MESSAGES):
                yield part
                part, count = [], 0
            part.append((row, messages))
            count += len(messages)
        if part:
            yield part

    # ---- what is there ----

    def _is_there(self, row: _Row, position: Position | None) -> bool:
        if row.event.header.topic_seq <= self._beyond.get(row.key, 0):
            return True  # its bus had lost it, and has it from its publisher again
        return position is not None and _reaches(row.lineage, position, row.position)

    async def _find_place(self, connection: Connection, lineage: Lineage) -> Place:
        """Ask how far the bus has come; append again what the stream should have up to now and has not."""
        checked = connection.client.stats["reconnects"]
        stream = await open_stream(connection, make=True)
        if self._made != stream.lineage[0].stream or self._bus not in ("", lineage.journal_id):
            self._made, self._highest = stream.lineage[0].stream, None
        if self._bus != lineage.journal_id:
            self._bus, self._beyond = lineage.journal_id, {}
            place = await find_place(connection, lineage, look_back=True)
        else:
            place = await find_place(connection, lineage, look_back=False)
            if place.last < (self._highest or 0):  # what is known of what is beyond may be gone, too
                self._beyond = {}
                place = await find_place(connection, lineage, look_back=True)
        for key, number in place.beyond.items():
            self._beyond[key] = max(number, self._beyond.get(key, 0))
        self._place, at = place, place.position
        if self._stored is not None:
            found, offset = lineage.find(self._stored)
            stored = None if found == "elsewhere" else Position(self._stored.stream, offset)
            if stored is not None and stored.offset and not (at and _reaches(lineage, at, stored)):
                if stream.first_offset > (self._highest or stream.first_offset):
                    # It was not lost: the stream keeps what is new only, and nothing new has come.
                    self._place = place._replace(position=stored)
                else:
                    await self._append_again(connection, lineage, at.offset if at else 0, stored.offset)
        self._checked = checked
        self._highest = max(self._place.last, self._highest or 0) or None
        return self._place

    async def _append_again(self, connection: Connection, lineage: Lineage, after: int, until: int) -> None:
        """Append what the journal has after an offset, up to another one: the stream has lost it."""
        at, found = after, 0
        while at < until:
            try:
                entries = await asyncio.to_thread(_read, self.address, lineage.journal_id, at, until)
            except PhaseBusError as error:
                raise NotAppendedError(
                    f"the stream has lost events, which cannot be read from the bus now: {error}"
                ) from None
            if not entries:
                break
            await self._tell_readers(connection)
            rows = [self._row_of(lineage, entry) for entry in entries]
            for part in self._parts(connection, [row for row in rows if not self._is_there(row, None)]):
                await self._append_part(connection, part)
            at, found = entries[-1].offset, found + len(entries)
        self.log.log(
            logging.ERROR if found < until - after else logging.WARNING,
            "the stream had lost events that it had acknowledged; they come from the journal",
            first_offset=after + 1,
            last_offset=until,
            appended_again=found,
            lost_for_good=until - after - found,
        )

    async def _tell_readers(self, connection: Connection) -> None:
        """Have readers of the stream learn that it has lost its end, if it has."""
        assert self._place is not None  # by _find_place
        last = self._place.last
        lost = last > 0 if self._highest is None else last < self._highest
        if not lost:  # it was made anew, or is another one: nobody reads from there
            return
        try:
            await cut_stream(connection, last)
        except PhaseBusError as error:
            raise NotAppendedError(str(error)) from None
        self._highest = last

    def _row_of(self, lineage: Lineage, entry: Entry) -> _Row:
        event = RawEvent(entry.topic, unpack_header(entry.header, entry.topic), entry.payload)
        subject = subject_of(self._to.stream, lineage.journal_id, entry.topic)
        return _Row(lineage, lineage.position(entry.offset), subject, event)

    # ---- the server ----

    async def _open(self) -> Connection:
        """Return the connection to the stream, made if need be.

        Raises:
            UnavailableError: the server is not there.
            PhaseBusError: it is, but the stream cannot be used.
        """
        try:
            if self._connection is None:
                self._connection = await connect(self._to, self.name)
            if not self._connection.client.is_connected:
                raise UnavailableError(f"there is no connection to NATS at {str(self._to)!r}")
            if not self._opened:
                await open_stream(self._connection, make=True)
                self._opened = True
            if not self._judged:
                await tell_weaknesses(self._connection)
                self._judged = True
        except NatsUnreachableError as error:
            raise UnavailableError(str(error)) from None
        if self._connection.max_payload_bytes < _LEAST_PAYLOAD_BYTES:
            raise ConfigError(
                f"NATS at {str(self._to)!r} takes messages of {self._connection.max_payload_bytes} bytes "
                f"at most; set its max_payload to {_LEAST_PAYLOAD_BYTES} or more"
            )
        return self._connection


class _State(Struct):
    """Up to where all was appended, and in which stream it had which sequence number."""

    position: Position
    made: str = ""
    sequence: Int = 0


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(_State).decode


def _not_showing(_size_bytes: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda _bytes: None)


def _read(address: str, journal_id: str, after: int, until: int) -> list[Entry]:
    """Return some events of a bus's journal between two offsets, none if there are none."""
    with RemoteJournal(Address.parse(address), Path(), _not_showing) as journal:
        if journal.journal_id != journal_id:
            raise PhaseBusError("it has another journal by now")
        return next(filter(None, journal.entries(after, until)), [])


def _reaches(lineage: Lineage, position: Position, other: Position) -> bool:
    """Return whether a position is at another one or beyond it."""
    if position.stream == other.stream:
        return position.offset >= other.offset
    streams = lineage.streams
    if other.stream not in streams or position.stream not in streams:
        return False
    return streams.index(position.stream) > streams.index(other.stream)
