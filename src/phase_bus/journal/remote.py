"""The journal of a bus, asked for from anywhere: what is wanted of it is copied into a journal here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypeVar

import msgspec
import zmq

from phase_bus.core.address import Address
from phase_bus.core.bundle import split
from phase_bus.core.client import BusClient
from phase_bus.core.control import Fetch, Fetched, ReadFailed
from phase_bus.core.handshakes import watched_dealer
from phase_bus.core.ipc_directory import check_answer
from phase_bus.core.keys import key_for
from phase_bus.core.past import FetchedPast, FetchPast
from phase_bus.core.position import Lineage
from phase_bus.core.sockets import queue
from phase_bus.core.wire import decode_reply, encode_control, receive_frames, unpack_header
from phase_bus.errors import BusUnreachableError, PhaseBusError
from phase_bus.journal.mirror import DAMAGED, OUTLINE, Mirror, entry_of
from phase_bus.journal.rows import Entry, RunRow

_TIMEOUT_S = 5.0

_A = TypeVar("_A", Fetched, FetchedPast)

Showing: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], object]]]


class RemoteJournal:
    """The journal of a bus here or elsewhere.

    It is read a bounded piece at a time, so a slow reader costs the bus nothing. A run that goes on is as
    it was when the list of runs was read.

    Args:
        address: the bus's.
        directory: where to put copies; whoever made it removes it.
        showing: is entered for each copy, with the bytes to come, 0 if that is unknown; what it gives is
            called with those of each piece.

    Attributes:
        withheld: how many dead letters the bus kept to itself, as they are of other clients' consumers.

    Raises:
        BusUnreachableError, AddressError, KeyFileError: as :class:`~phase_bus.core.client.BusClient`, and
            by whatever asks.
        PhaseBusError: if the bus keeps no journal, or is too old; by whatever asks, if it cannot read its
            journal, or there is another bus by now.
    """

    def __init__(self, address: Address, directory: Path, showing: Showing) -> None:
        with BusClient(address) as client:
            self.address, status = client.address, client.status()
        if status.journal is None or status.replay is None:
            why = "keeps no journal" if status.journal is None else "is of an older phase-bus"
            raise PhaseBusError(f"the bus at {str(address)!r} {why} and cannot be asked for past runs")
        self.withheld = 0
        self._stream = status.bus_id
        self._directory = directory
        self._showing = showing
        self._copies = 0
        self._copied: dict[tuple[str, bool], Path] = {}  # the runs, with their records or without
        self._endpoint = self.address.endpoint(status.replay)
        key = key_for(self.address)
        with ExitStack() as stack:
            context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
            self._dealer, self._watch = watched_dealer(context, self._endpoint, key, immediate=False)
            stack.callback(self._dealer.close, linger=0)
            stack.callback(self._watch.close)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._open.close()

    @cached_property
    def runs(self) -> list[RunRow]:
        """All runs, the oldest first."""
        return list({row.run_id: row for part in self._list for row in part.runs}.values())

    @property
    def journal_id(self) -> str:
        """Which journal it is, however often its bus was started anew on it."""
        return Lineage(self._list[-1].lineage).journal_id

    def entries(self, after: int, until: int) -> Iterator[list[Entry]]:
        """Yield the events after an offset up to another one, piece by piece, without damaged ones."""
        return self._pieces(Fetch(after=after, records=True), until)

    @cached_property
    def outline(self) -> Path:
        """A journal with the start, the end and the verdicts of each run."""
        return self._copy(self.runs, Fetch(after=0, records=False, kinds=OUTLINE))

    @cached_property
    def everything(self) -> Path:
        """A journal with all events."""
        damaged_in = self.runs[-1].run_id if self.runs else "unknown"
        return self._copy(self.runs, Fetch(after=0, records=True), damaged_in)

    @property
    def place(self) -> str:
        """Where this is, in words."""
        return f"on the bus at {str(self.address)!r}"

    def listed(self) -> list[tuple[Path, RunRow]]:
        """Return all runs, the oldest first, each with a journal that has its start, end and verdicts."""
        return [(self.outline, row) for row in self.runs]

    def run(
        self,
        run_id: str,
        outline: Path | None = None,  # noqa: ARG002 - a bus has one run of an id
        *,
        records: bool = True,
    ) -> Path:
        """Copy a run once, with its records or without, and return the journal that it is in.

        Args:
            outline: the journal that it was listed with.

        Raises:
            PhaseBusError: also if the run is, or was meanwhile, pruned.
        """
        if (copied := self._copied.get((run_id, records))) is not None:
            return copied
        rows = [row for row in self.runs if row.run_id == run_id]
        path = self._copy(rows, Fetch(after=0, records=records, run_id=run_id), run_id)
        if not any(row.run_id == run_id for part in self._past("runs") for row in part.runs):
            raise PhaseBusError(f"run {run_id!r}: the bus at {str(self.address)!r} has just pruned it")
        self._copied[run_id, records] = path
        return path

    def dead_letters(self, *, with_event: int | None = None) -> Path:
        """Copy the dead letters, and the event of one of them; return the journal that they are in."""
        parts = list(self._past("dead_letters"))
        self.withheld = sum(part.withheld for part in parts)
        letters = [letter for part in parts for letter in part.dead_letters]
        with self._mirror() as mirror:
            mirror.keep_dead_letters(letters, parts[-1].left_out)
            for letter in letters:
                if letter.id == with_event:
                    fetch = Fetch(after=letter.offset - 1, records=True, limit_bytes=1)
                    entries, *_ = self._pieces(fetch, until=letter.offset)
                    mirror.copy(entries)
        return mirror.path

    # ---- copies ----

    def _copy(self, rows: list[RunRow], fetch: Fetch, damaged_in: str = "") -> Path:
        size_bytes = sum(row.size_bytes for row in rows) if fetch.records else 0
        with self._mirror() as mirror, mirror.transaction(), self._showing(size_bytes) as show:
            for entries in self._pieces(fetch, self._list[-1].offset, damaged_in):
                mirror.copy(entries)
                show(sum(len(each.topic) + len(each.header) + len(each.payload) for each in entries))
            for row in rows:
                mirror.keep_run(row)
        return mirror.path

    def _mirror(self) -> Mirror:
        self._copies += 1
        mirror = Mirror(self._directory / str(self._copies))
        mirror.keep_lineage(self._list[-1].lineage, self._list[-1].offset)
        return mirror

    # ---- asking ----

    @cached_property
    def _list(self) -> list[FetchedPast]:
        return list(self._past("runs"))

    def _past(self, what: Literal["runs", "dead_letters"]) -> Iterator[FetchedPast]:
        after = 0
        while True:
            answer, _ = self._ask(FetchPast(what=what, after=after, stream=self._stream), FetchedPast)
            yield answer
            if answer.next <= after:
                return
            after = answer.next

    def _pieces(self, fetch: Fetch, until: int, run_id: str = "") -> Iterator[list[Entry]]:
        """Yield the events up to an offset, and one that is damaged in place of each that is damaged there.

        Args:
            run_id: the run that these are put down to.
        """
        after = fetch.after
        while after < until:
            request = msgspec.structs.replace(fetch, after=after, stream=self._stream)
            answer, frames = self._ask(request, Fetched)
            messages = (frames[place : place + 3] for place in range(0, len(frames) - 2, 3))
            entries = [entry for message in messages for entry in _entries(*message)]
            if run_id:
                entries += [_damaged(run_id, offset) for offset in answer.damaged]
            # What is damaged beyond the last one comes again with the next piece.
            last = min(until, answer.offset)
            yield sorted(entry for entry in entries if after < entry.offset <= last)
            if answer.end or answer.offset <= after:
                return
            after = answer.offset

    def _ask(self, request: Fetch | FetchPast, wanted: type[_A]) -> tuple[_A, list[zmq.Frame]]:
        """Return the bus's answer, and the frames that come with it."""
        asked = queue(self._dealer, encode_control(request))
        deadline_s = time.monotonic() + _TIMEOUT_S
        while asked and (left_s := deadline_s - time.monotonic()) > 0:
            if self._dealer.poll(math.ceil(left_s * 1000)):
                frame, *more = receive_frames(self._dealer)
                check_answer(self.address, frame)
                answer = decode_reply(frame.buffer)
                if isinstance(answer, wanted):
                    return answer, more
                reason = answer.reason if isinstance(answer, ReadFailed) else "that is no answer to it"
                raise PhaseBusError(
                    f"the bus at {str(self.address)!r} cannot be asked for its past: {reason}"
                )
        why = self._watch.reason or f"nothing comes from {self._endpoint}, where it answers for the past"
        raise BusUnreachableError(str(self.address), _TIMEOUT_S, why)


def _entries(topic: zmq.Frame, header: zmq.Frame, payload: zmq.Frame) -> Iterator[Entry]:
    name, frame = topic.bytes, header.bytes
    for each, part in split(unpack_header(frame, name), frame, payload.buffer, name):
        yield entry_of(name, each, each.pack(), bytes(part))


def _damaged(run_id: str, offset: int) -> Entry:
    """Return what stands for an event of a run that is damaged."""
    topic = f"{DAMAGED}.{run_id}$".encode()
    return Entry(offset, topic, b"", b"", run_id, DAMAGED, bytes(16), 1, 0, offset, ts_ns=0)
