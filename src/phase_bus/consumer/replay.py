"""What is past, for a consumer: a bounded piece of the journal at a time, from its file or the bus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

import zmq

from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.local import LocalJournal
from phase_bus.consumer.transport import Piece
from phase_bus.core.address import Address
from phase_bus.core.control import (
    Endpoint,
    Fetch,
    Fetched,
    FetchedStates,
    FetchStates,
    JournalFile,
    ReadFailed,
    Reply,
)
from phase_bus.core.ipc_directory import check_answer
from phase_bus.core.keys import Key
from phase_bus.core.readable import Readable
from phase_bus.core.sockets import dealer, queue
from phase_bus.core.wire import decode_reply, encode_control, receive_frames
from phase_bus.errors import BusUnreachableError, JournalUnreadableError, StreamMovedError, WireError
from phase_bus.journal.pieces import read_piece, read_states
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Checkpoint

_TIMEOUT_S = 5.0

T = TypeVar("T")


class ReplayClient:
    """Fetches past events, in the event loop of its caller, of a stream and those before it.

    Args:
        socket: the bus's replay socket.
        stream: that of the bus.
        file: the bus's journal, if it is on this machine: what can be read there is not asked for.

    Raises:
        AddressError: by whatever fetches, if somebody else may be in the bus's place.
        StreamMovedError: likewise, if another bus has come to the place of the one asked.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        socket: Endpoint,
        stream: str,
        key: Key | None = None,
        file: JournalFile | None = None,
    ) -> None:
        self._local = None if file is None else LocalJournal(file, stream)
        self._stream = stream
        self._key = key
        self._context = context
        self._address = address
        self._endpoint = address.endpoint(socket)
        self._connect()

    def _connect(self) -> None:
        self._dealer: zmq.Socket[bytes] | None = dealer(
            self._context, self._endpoint, key=self._key, immediate=False
        )
        self._readable = Readable(self._dealer)

    async def fetch(self, after: int, *, records: bool, partition: int | None = None) -> Piece:
        """Return what comes after an offset: with records or without, or one partition's records alone.

        Raises:
            BusUnreachableError: if no answer comes in time.
            JournalUnreadableError: if the bus cannot read its journal.
        """
        fetch = Fetch(after=after, records=records, partition=partition, stream=self._stream)
        if (found := await self._read(partial(read_piece, fetch=fetch))) is not None:
            told, entries = found
            return _piece(told, ((e.topic, e.header, memoryview(e.payload)) for e in entries))
        frames = await self._ask(fetch)
        answer = _answer(frames)
        if not isinstance(answer, Fetched) or len(frames) % 3 != 1:
            raise WireError("not a piece of the journal")
        triples = zip(*[iter(frames[1:])] * 3, strict=True)
        return _piece(answer, ((topic.bytes, header.bytes, body.buffer) for topic, header, body in triples))

    async def fetch_states(
        self, group: str, after: Mapping[int, int], only: int | None = None
    ) -> dict[int, Checkpoint]:
        """Return a group's checkpoints by share, in the order of the shares.

        Args:
            after: by partition the offset that is known already; a checkpoint not beyond it is left out.
            only: this share alone; by default all partitions.

        Raises:
            BusUnreachableError: if no answer comes in time.
            JournalUnreadableError: if the bus cannot read its journal.
        """
        known = dict(after)
        checkpoints: dict[int, Checkpoint] = {}
        while True:
            fetch = FetchStates(group=group, after=known, only=only, stream=self._stream)
            answer = await self._read(partial(read_states, fetch=fetch)) or _answer(await self._ask(fetch))
            if not isinstance(answer, FetchedStates):
                raise WireError("not the states of a group")
            checkpoints |= {share: Checkpoint(*state) for share, state in answer.states.items()}
            if answer.end:
                return checkpoints
            known |= {share: checkpoint.offset for share, checkpoint in checkpoints.items()}

    async def _read(self, read: Callable[[JournalReader], T]) -> T | None:
        """Return what is read from the journal's file, None if the bus is to be asked."""
        found = None if self._local is None else await self._local.read(read)
        if self._dealer is None:  # another bus has welcomed this process meanwhile
            raise BusUnreachableError(self._endpoint, 0.0)
        return found

    async def _ask(self, request: Fetch | FetchStates) -> list[zmq.Frame]:
        if self._dealer is None:
            raise BusUnreachableError(self._endpoint, 0.0)
        message = encode_control(request)
        if not queue(self._dealer, message):
            self._disconnect()
            self._connect()
            queue(self._dealer, message)
        sock = self._dealer
        deadline_s = time.monotonic() + _TIMEOUT_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            await self._readable.wait(timeout_s=left_s)
            if self._dealer is None:
                raise BusUnreachableError(self._endpoint, _TIMEOUT_S)
            try:
                frames = receive_frames(sock)
            except zmq.Again:
                continue
            check_answer(self._address, frames[0])
            return frames
        self._disconnect()  # the answer to this question must not be taken for one to the next
        self._connect()
        raise BusUnreachableError(self._endpoint, _TIMEOUT_S)

    def close(self) -> None:
        """Close the socket; whoever waits for an answer gets none."""
        if self._local is not None:
            self._local.close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._dealer is not None:
            self._readable.release()
            self._dealer.close(linger=0)
            self._dealer = None


def _answer(frames: list[zmq.Frame]) -> Reply:
    answer = decode_reply(frames[0].buffer)
    if isinstance(answer, ReadFailed):
        raise StreamMovedError(answer.reason) if answer.moved else JournalUnreadableError(answer.reason)
    return answer


def _piece(answer: Fetched, messages: Iterable[tuple[bytes, bytes, memoryview]]) -> Piece:
    """Return a piece of messages' frames."""
    arrivals = [Arrival.of(*frames) for frames in messages]
    return Piece(arrivals, answer.offset, answer.event_number, answer.end, answer.pruned, answer.damaged)
