"""A consumer's side of the replay socket: one bounded piece of the journal at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import zmq

from phase_bus.consumer.transport import Piece
from phase_bus.core import bundle
from phase_bus.core.address import Address
from phase_bus.core.control import (
    Endpoint,
    Fetch,
    Fetched,
    FetchedStates,
    FetchStates,
    ReadFailed,
    Reply,
)
from phase_bus.core.ipc_directory import check_answer
from phase_bus.core.keys import Key
from phase_bus.core.readable import Readable
from phase_bus.core.sockets import dealer
from phase_bus.core.wire import Header, decode_reply, encode_control, receive_frames, unpack_header
from phase_bus.errors import BusUnreachableError, JournalUnreadableError, StreamMovedError, WireError
from phase_bus.journal.rows import Checkpoint

_TIMEOUT_S = 5.0


class ReplayClient:
    """Fetches past events, in the event loop of its caller, of a stream and those before it.

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
    ) -> None:
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
        frames = await self._ask(
            Fetch(after=after, records=records, partition=partition, stream=self._stream)
        )
        return _piece(frames)

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
            frames = await self._ask(FetchStates(group=group, after=known, only=only, stream=self._stream))
            answer = _answer(frames)
            if not isinstance(answer, FetchedStates):
                raise WireError("not the states of a group")
            checkpoints |= {share: Checkpoint(*state) for share, state in answer.states.items()}
            if answer.end:
                return checkpoints
            known |= {share: checkpoint.offset for share, checkpoint in checkpoints.items()}

    async def _ask(self, request: Fetch | FetchStates) -> list[zmq.Frame]:
        sock = self._dealer
        if sock is None:
            raise BusUnreachableError(self._endpoint, 0.0)
        sock.send(encode_control(request))
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
        self.close()  # the answer to this question must not be taken for one to the next
        self._connect()
        raise BusUnreachableError(self._endpoint, _TIMEOUT_S)

    def close(self) -> None:
        """Close the socket; whoever waits for an answer gets none."""
        if self._dealer is not None:
            self._readable.release()
            self._dealer.close(linger=0)
            self._dealer = None


def _answer(frames: list[zmq.Frame]) -> Reply:
    answer = decode_reply(frames[0].buffer)
    if isinstance(answer, ReadFailed):
        raise StreamMovedError(answer.reason) if answer.moved else JournalUnreadableError(answer.reason)
    return answer


def _piece(frames: list[zmq.Frame]) -> Piece:
    answer = _answer(frames)
    if not isinstance(answer, Fetched) or len(frames) % 3 != 1:
        raise WireError("not a piece of the journal")
    events: list[tuple[bytes, Header, memoryview]] = []
    for i in range(1, len(frames), 3):
        topic, header_frame = frames[i].bytes, frames[i + 1].bytes
        header = unpack_header(header_frame, topic)
        parts = bundle.split(header, header_frame, frames[i + 2].buffer, topic)
        events.extend((topic, each, payload) for each, payload in parts)
    return Piece(events, answer.offset, answer.event_number, answer.end, answer.pruned, answer.damaged)
