"""The past in a stream: what is wanted of it is copied into a journal here."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import nats.errors
import nats.js.errors

from phase_bus.core.address import StreamAddress
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import NO_PARTITION, partition_of, topic_prefix
from phase_bus.errors import WireError
from phase_bus.events import Records
from phase_bus.jetstream.connection import NatsUnreachableError, asking, connect
from phase_bus.jetstream.cursor import Cursor, Taken
from phase_bus.jetstream.keys import kept_below
from phase_bus.jetstream.message import subjects, subjects_of_kind, unpacked
from phase_bus.jetstream.notes import LetterNote, read_note
from phase_bus.jetstream.stream import open_stream
from phase_bus.jetstream.stream_runs import RunOfBus, StreamRuns, bus_of, counts_of_subjects
from phase_bus.journal.mirror import OUTLINE, Mirror, entry_of
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.remote import Showing
from phase_bus.journal.rows import DeadLetter, Entry, RunRow

logger = logging.getLogger("phase_bus.jetstream")

_PATIENCE_S = 15.0  # without anything from the server
_LOOK_S = 0.2

_T = TypeVar("_T")


class _Key(NamedTuple):
    """A run that is listed: the journal of the outline that it is in, and its id."""

    outline: Path
    run_id: str


class StreamPast:
    """The past of all buses that forward to a stream: for :class:`~phase_bus.journal.remote.RemoteJournal`.

    In the copies an event's offset is its place in the stream. Runs of one id from two buses are kept
    apart; what consumers on the stream said of a run of that id is with each. A run that goes on is as it
    was when this was opened.

    Args:
        address: the stream's.
        directory: where to put copies; whoever made it removes it.
        showing: as for :class:`~phase_bus.journal.remote.RemoteJournal`.

    Attributes:
        withheld: always 0: who can read the stream can read all of it.

    Raises:
        PhaseBusError: there is no such stream, or NATS does not let us in; by whatever asks, if it does not
            answer.
    """

    def __init__(self, address: StreamAddress, directory: Path, showing: Showing) -> None:
        self.address = address
        self.withheld = 0
        self._directory = directory
        self._showing = showing
        self._copies = 0
        self._copied: dict[tuple[_Key, bool], Path] = {}  # the runs, with their records or without
        self._complaints = Throttle(logger)
        with ExitStack() as stack:
            self._runner = stack.enter_context(asyncio.Runner())
            self._connection = self._ask(connect(address, "past"))
            stack.callback(lambda: self._ask(self._connection.close()))
            self._stream = self._ask(open_stream(self._connection, make=False))
            self._first_offset = self._stream.first_offset  # that is known to be there
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._open.close()

    @property
    def place(self) -> str:
        """Where this is, in words."""
        return f"in the stream at {str(self.address)!r}"

    def listed(self) -> list[tuple[Path, RunRow]]:
        """Return all runs, each with a journal that has its start, its end and its verdicts."""
        return [(key.outline, run.row) for key, run in self._runs.items()]

    @cached_property
    def everything(self) -> Path:
        """A journal with all events, in the order of the stream."""
        rows = [run.row for run in self._runs.values()]  # of one id the newest counts
        path = self._copy([subjects(self._stream.name, records=True)], rows)
        if self._first_offset > 1:
            logger.warning(
                "stream %r has dropped what was before offset %d", self._stream.name, self._first_offset
            )
        return path

    def run(self, run_id: str, outline: Path, *, records: bool = True) -> Path:
        """Copy a run once, with its records or without, and return the journal that it is in.

        Args:
            outline: the journal that it was listed with.
        """
        key = _Key(outline, run_id)
        if (copied := self._copied.get((key, records))) is not None:
            return copied
        run = self._runs[key]
        name = self._stream.name
        filters = [f"{name}.{who}.*.{run.token}" for who in (run.bus, *run.told_by)]
        if records:
            filters.append(f"{name}.{run.bus}.records.*.{run.token}")
        path = self._copied[key, records] = self._copy(filters, [run.row], run_id)
        if self._first_offset > 1:
            self._tell_dropped(path, run, records=records)
        return path

    def _tell_dropped(self, path: Path, run: RunOfBus, *, records: bool) -> None:
        """Say so if the stream, which has dropped its beginning, has not all of a run any more."""
        here: Counter[str] = Counter()
        with JournalReader(path) as reader:
            for each in reader.streams(run.row.run_id):
                here[each.topic.decode()] += each.events
        dropped = sum(
            max(count - here[topic], 0)
            for topic, count in run.published.items()
            if records or not topic.startswith(topic_prefix(Records.kind).decode())
        )
        if dropped:
            logger.warning(
                "run %s: stream %r has dropped %d of its events", run.row.run_id, self._stream.name, dropped
            )

    def dead_letters(self, *, with_event: int | None = None) -> Path:
        """Copy the dead letters, and the event of one of them; return the journal that they are in.

        A dead letter's number is the revision of its key.
        """
        letters, left_out = self._ask(self._letters())
        with self._mirror() as mirror:
            mirror.keep_dead_letters(letters, left_out)
            for letter in letters:
                if letter.id == with_event:
                    after = self._ask(self._before(letter.offset))
                    for pieces in self._read(
                        [subjects(self._stream.name, records=True)], after, letter.offset
                    ):
                        mirror.copy([entry for _, entry in pieces])
        return mirror.path

    async def _letters(self) -> tuple[list[DeadLetter], Counter[str]]:
        """Return the dead letters, the oldest first, and how many more there are of each consumer."""
        found = []
        left_out: Counter[str] = Counter()
        for key, kept in (await kept_below(self._connection, self._stream, "dead")).items():
            note = read_note(LetterNote, key, kept)
            letter = note.letter
            found.append(
                DeadLetter(
                    id=kept.revision,
                    consumer=note.consumer,
                    stream=letter.stream,
                    offset=letter.offset,
                    run_id=letter.run_id,
                    kind=letter.kind,
                    error=letter.error,
                    traceback=letter.traceback,
                    ts_ns=note.ts_ns,
                    attempts=letter.attempts,
                )
            )
            left_out[note.consumer] += letter.skipped
        return sorted(found, key=lambda letter: letter.id), +left_out

    async def _before(self, offset: int) -> int:
        """Return the offset before an event, which may have come in several parts."""
        before = offset
        with asking(self._connection.address):
            while True:
                before -= 1
                try:
                    message = await self._connection.js.get_msg(self._stream.name, seq=before)
                    if unpacked(message.data or b"").parts != offset - before:
                        return before
                except (nats.js.errors.NotFoundError, WireError):
                    return before

    # ---- what there is ----

    @cached_property
    def _runs(self) -> dict[_Key, RunOfBus]:
        """All runs, the oldest first, by where they are listed.

        Nearly always one journal has the outline of all; of runs of one id each is in another one.
        """
        name = self._stream.name
        counts = self._ask(counts_of_subjects(self._connection, name, "*.*.*"))
        runs = StreamRuns(self._connection, self._stream, counts)
        with ExitStack() as stack:
            mirrors: list[Mirror] = []

            def outline(layer: int) -> Mirror:
                while layer >= len(mirrors):
                    mirrors.append(stack.enter_context(self._mirror()))
                    stack.enter_context(mirrors[-1].transaction())
                return mirrors[layer]

            said: list[Entry] = []  # by consumers on the stream, of a run of whichever bus
            for pieces in self._read([subjects_of_kind(name, kind) for kind in OUTLINE]):
                for taken, entry in pieces:
                    layer = runs.take(bus_of(taken.subject), entry)
                    if layer is None:
                        said.append(entry)
                    else:
                        outline(layer).copy([entry])
            found = self._ask(runs.found())
            for layer, run in found:
                outline(layer).keep_run(run.row)
            for entry in said:
                for layer in {layer for layer, run in found if run.row.run_id == entry.run_id}:
                    outline(layer).copy([entry])
            return {_Key(mirrors[layer].path, run.row.run_id): run for layer, run in found}

    # ---- copies ----

    def _copy(self, filters: Sequence[str], rows: Sequence[RunRow], run_id: str = "") -> Path:
        """Copy what filters select, of one run if its id is given: two may have one token."""
        number = 0
        with self._mirror() as mirror, mirror.transaction(), self._showing(0) as show:
            for pieces in self._read(filters):
                entries = []
                for _, entry in pieces:
                    if run_id in ("", entry.run_id):
                        # The numbers of several buses, or of none, give no order.
                        number += partition_of(entry.topic) == NO_PARTITION
                        entries.append(entry._replace(event_number=number))
                mirror.copy(entries)
                show(sum(len(each.topic) + len(each.header) + len(each.payload) for each in entries))
            for row in rows:
                mirror.keep_run(row)
        return mirror.path

    def _mirror(self) -> Mirror:
        self._copies += 1
        mirror = Mirror(self._directory / str(self._copies))
        mirror.keep_lineage(self._stream.lineage, self._stream.last_offset)
        return mirror

    # ---- asking ----

    def _ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(question)

    def _read(
        self, filters: Sequence[str], after: int = 0, until: int | None = None
    ) -> Iterator[list[tuple[Taken, Entry]]]:
        """Yield what filters select, up to the last offset there was; what is none of ours is left out."""
        news = asyncio.Event()
        after = max(after, self._stream.first_offset - 1)
        until = self._stream.last_offset if until is None else until
        cursor = Cursor(self._connection, self._stream.name, filters, after, news.set)
        try:
            while cursor.position < until:
                taken = self._ask(self._next(cursor, news))
                if not taken:
                    break
                yield [
                    (each, entry)
                    for each in taken
                    if each.offset <= until and (entry := self._entry(each)) is not None
                ]
        finally:
            self._ask(cursor.close())
        for _, last in cursor.lost:  # meanwhile
            self._first_offset = max(self._first_offset, last + 1)

    async def _next(self, cursor: Cursor, news: asyncio.Event) -> list[Taken]:
        """Return the next events; none at the end.

        Raises:
            NatsUnreachableError: nothing comes.
        """
        clock = asyncio.get_running_loop().time
        deadline_s, reason = clock() + _PATIENCE_S, "no word from the stream"
        while clock() < deadline_s:
            news.clear()
            try:
                if (taken := await cursor.take()) or cursor.at_end:
                    return taken
            except (nats.errors.Error, TimeoutError, OSError) as error:
                reason = str(error) or reason
            try:
                await asyncio.wait_for(news.wait(), _LOOK_S)
            except TimeoutError:
                continue
        raise NatsUnreachableError(self.address, reason)

    def _entry(self, taken: Taken) -> Entry | None:
        """Return an event as a journal has it."""
        topic, header, _, _, payload = taken.message
        header = header._replace(offset=taken.offset)
        try:
            partition_of(topic)
            return entry_of(topic, header, taken.message.header.pack(), bytes(payload))
        except WireError as error:
            self._complaints.warn(
                "stream %r, offset %d: %s; skipped", self._stream.name, taken.offset, error
            )
            return None
