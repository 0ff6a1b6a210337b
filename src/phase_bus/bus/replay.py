"""The replay socket: past events for consumers that lack them, read beside the bus's loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq

from phase_bus.bus.access import Access
from phase_bus.bus.owners import Owners, not_yours
from phase_bus.bus.rejections import Rejections
from phase_bus.core.control import Fetch, FetchStates, ReadFailed
from phase_bus.core.past import DeadLetter, FetchedPast, FetchPast
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import decode_request, encode_control, receive_frames, send_frames
from phase_bus.errors import JournalError, WireError
from phase_bus.journal.pieces import read_piece, read_states
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import parse_checkpoint_name

logger = logging.getLogger("phase_bus.bus")

_LOOK_MS = 200
_LARGEST = 1 << 20  # a piece; one letter comes in any case
_MOST_RUNS = 1000  # in one answer
_MOST_LETTERS = 1000
_LETTER_BYTES = 500  # of a dead letter, besides what was raised
_MOST_KINDS = 64  # that a fetch may name


class ReplayServer:
    """Answers :class:`~phase_bus.core.control.Fetch` from a thread and a database connection of its own.

    A consumer asks for one bounded piece at a time, so a slow one costs no memory here. The socket, a bound
    ROUTER, belongs to the thread until :meth:`close`.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        path: Path,
        stream: str,
        *,
        access: Access,
        owners: Owners,
        rejections: Rejections,
    ) -> None:
        self._access = access
        self._owners = owners
        self._rejections = rejections
        self._socket = socket
        self._stream = stream
        self._complaints = Throttle(logger)
        self._told: set[int] = set()  # damaged events that the log has
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="phase-bus-replay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._stop.set()
        self._thread.join()

    def _main(self) -> None:
        reader: JournalReader | None = None
        try:
            while not self._stop.is_set():
                if not self._socket.poll(_LOOK_MS):
                    continue
                try:
                    frames = receive_frames(self._socket, 3)
                    reader = reader or JournalReader(self._path)
                    self._answer(reader, frames)
                except WireError as error:
                    self._rejections.count(error.counted_as, self._access.where(frames[0]))
                    self._send(frames[0].bytes, encode_control(ReadFailed(reason=str(error))))
                    self._complaints.warn("phase-bus bus: %s; skipped", error)
                except JournalError as error:
                    logger.error("phase-bus bus: %s", error)
                    self._send(frames[0].bytes, encode_control(ReadFailed(reason=str(error))))
                except Exception:  # whatever one consumer asked for, the others go on reading
                    logger.exception("phase-bus bus: a request for replay failed")
        finally:
            if reader is not None:
                reader.close()

    def _answer(self, reader: JournalReader, frames: list[zmq.Frame]) -> None:
        party = self._access.expect(frames[0], "consume")
        identity = frames[0].bytes
        match decode_request(frames[1].bytes) if len(frames) == 2 else None:
            case Fetch(stream=stream) | FetchStates(stream=stream) | FetchPast(stream=stream) if (
                stream not in ("", self._stream)
            ):
                moved = ReadFailed(
                    reason="this is another bus than the one that it was asked of", moved=True
                )
                self._send(identity, encode_control(moved))
            case Fetch() as fetch:
                self._send(identity, *_events(reader, fetch))
                self._tell_damage(reader)
            case FetchStates() as fetch:
                if not self._owners.is_of("consumer", fetch.group, party):
                    raise not_yours(party, f"the consumer group {fetch.group!r:.100}")
                self._send(identity, encode_control(read_states(reader, fetch)))
            case FetchPast() as fetch:
                mine = partial(self._owners.is_of, "consumer", party=party)
                answer = _runs(reader, fetch) if fetch.what == "runs" else _letters(reader, fetch, mine)
                self._send(identity, encode_control(answer))
            case _:
                raise WireError("the replay socket answers nothing but a fetch")

    def _tell_damage(self, reader: JournalReader) -> None:
        new = sorted(reader.damaged - self._told)
        if new:
            what = (
                "phase-bus bus: %s: %d events do not match their checksums and are left out (offset %s%s); "
            )
            offsets, more = ", ".join(map(str, new[:10])), " ..." if len(new) > 10 else ""
            logger.error(
                f"{what}'phase-bus journal verify' says more", reader.path, len(new), offsets, more
            )
        self._told |= reader.damaged

    def _send(self, identity: bytes, *frames: bytes) -> None:
        send_frames(self._socket, [identity, *frames], int(zmq.NOBLOCK))


def _events(reader: JournalReader, fetch: Fetch) -> list[bytes]:
    """Return the frames of a bounded piece of the journal."""
    if len(fetch.kinds) > _MOST_KINDS:
        raise WireError(f"it names {len(fetch.kinds)} kinds of events ({_MOST_KINDS} at most)")
    answer, entries = read_piece(reader, fetch)
    return [encode_control(answer), *(part for e in entries for part in (e.topic, e.header, e.payload))]


def _runs(reader: JournalReader, request: FetchPast) -> FetchedPast:
    """Return a bounded piece of the list of runs."""
    runs = reader.runs()[request.after :]
    more = request.after + _MOST_RUNS if len(runs) > _MOST_RUNS else 0
    lineage = tuple(reader.lineage.segments)
    return FetchedPast(offset=reader.head.offset, lineage=lineage, runs=tuple(runs[:_MOST_RUNS]), next=more)


def _letters(reader: JournalReader, request: FetchPast, mine: Callable[[str], bool]) -> FetchedPast:
    """Return a bounded piece of the dead letters, without those of consumers that are not ``mine``."""
    letters: list[DeadLetter] = []
    more, size_bytes, withheld = request.after, 0, 0
    for _ in range(_MOST_LETTERS):
        (letter,) = reader.dead_letters(after=more, limit=1) or (None,)
        if letter is None:
            more = 0
            break
        more = letter.id
        if not mine(parse_checkpoint_name(letter.consumer)[0]):
            withheld += 1
            continue
        letters.append(letter)
        size_bytes += len(letter.traceback) + len(letter.error) + _LETTER_BYTES
        if size_bytes >= _LARGEST:
            break
    left_out = reader.dead_letters_left_out()
    return FetchedPast(
        offset=reader.head.offset,
        lineage=tuple(reader.lineage.segments),
        dead_letters=tuple(letters),
        left_out={name: n for name, n in left_out.items() if mine(parse_checkpoint_name(name)[0])},
        withheld=withheld,
        next=more,
    )
