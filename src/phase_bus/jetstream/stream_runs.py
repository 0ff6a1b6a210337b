"""Which runs are in a stream, of which bus, and how they stand.

What ended says by itself what there is of it. Of the others the messages are counted, and their phases say
how many requests were answered: nobody reads all records only to list runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import nats.js.errors
from nats.js.api import RawStreamMsg

from phase_bus.core.wire import decode, decode_event, parse_topic
from phase_bus.errors import PhaseBusError, WireError
from phase_bus.events import (
    BEGIN_NO_RUN,
    Event,
    PhaseComplete,
    PhaseEvent,
    PhaseProgress,
    RunComplete,
    RunStart,
)
from phase_bus.jetstream.connection import Connection, asking
from phase_bus.jetstream.message import token, unpacked
from phase_bus.jetstream.stream import Stream
from phase_bus.journal.rows import Entry, RunRow
from phase_bus.journal.writer import RUNNING, UNKNOWN

_COUNT_S = 30.0  # the subjects of a large stream
_AT_ONCE = 32  # questions
_MOST_PHASES = 1000  # that are looked at
_decode_info = msgspec.json.Decoder(dict[str, Any]).decode


class RunOfBus(NamedTuple):
    """A run as one bus has it.

    Attributes:
        bus: the bus's token in subjects; of a run of none, that of one who said something of it.
        token: the run's token in subjects.
        published: how many events each topic got, by the run's end.
        told_by: who else said something of a run of this id, and is no bus that has one: consumers.
    """

    row: RunRow
    bus: str
    token: str
    published: Mapping[str, int]
    told_by: tuple[str, ...]


def bus_of(subject: str) -> str:
    """Return the token of who put a message into a stream: a bus, or a consumer there."""
    return subject.split(".", 2)[1]


async def counts_of_subjects(connection: Connection, stream: str, rest: str) -> dict[str, int]:
    """Return the subjects in a stream, without the stream's token, with the number of their messages.

    Args:
        rest: the filter, likewise.

    Raises:
        NatsUnreachableError: no answer in time.
        PhaseBusError: the server refuses it.
    """
    found: dict[str, int] = {}
    api = f"$JS.API.STREAM.INFO.{stream}"
    with asking(connection.address):
        while True:  # a large stream comes in parts
            request = msgspec.json.encode({"subjects_filter": f"{stream}.{rest}", "offset": len(found)})
            answer = await connection.client.request(api, request, timeout=_COUNT_S)
            info = decode(_decode_info, answer.data, "an answer of NATS")
            if "error" in info:
                why = info["error"].get("description", "")
                raise PhaseBusError(f"NATS at {str(connection.address)!r} does not list the stream: {why}")
            part = info["state"].get("subjects") or {}
            found |= part
            if not part or len(found) >= info.get("total", 0):
                return {subject.removeprefix(f"{stream}."): count for subject, count in found.items()}


class _Known:
    """What is known of a run of a bus.

    Attributes:
        layer: which run of its id it is, from 0.
        started_ns: its first start, None if it has none.
        end, end_offset: its last end, if it did not go on after that.
    """

    def __init__(self, run_id: str, layer: int) -> None:
        self.run_id = run_id
        self.layer = layer
        self.started_ns: int | None = None
        self.end: RunComplete | None = None
        self.end_offset = 0
        self._producer = ""

    @property
    def publisher(self) -> str:
        """What a person calls its publishers; of a single one it is what makes the load."""
        names = [part.publisher for part in self.end.parts.values()] if self.end else []
        return f"{names[0]} +{len(names) - 1}" if len(names) > 1 else "".join(names) or self._producer

    def take(self, event: Event | None, offset: int) -> None:
        """Take in the next of its starts and ends."""
        if isinstance(event, RunStart):
            earlier = event.ts_ns if self.started_ns is None else self.started_ns
            self.started_ns = min(event.ts_ns, earlier)
            self._producer = self._producer or event.producer
            self.end = None
        elif isinstance(event, RunComplete):
            self.end, self.end_offset = None if event.running else event, offset


class _Single(NamedTuple):
    """A message of the stream that was asked for alone.

    Attributes:
        ts_ns: the event's own time; of one that cannot be read, when the stream took it in.
    """

    offset: int
    run_id: str
    source: bytes
    ts_ns: int
    event: Event | None


def _single(message: RawStreamMsg) -> _Single | None:
    """Return what is in a message, None if it is none of ours."""
    try:
        topic, header, _, _, payload = unpacked(message.data or b"")
        run_id = parse_topic(topic).run_id
    except WireError:
        return None
    event = _decoded(topic, payload)
    taken_ns = int(message.time.timestamp() * 1e9) if message.time is not None else 0
    ts_ns = taken_ns if event is None else event.ts_ns
    return _Single(message.seq or 0, run_id, header.source, ts_ns, event)


def _decoded(topic: bytes, payload: bytes | memoryview) -> Event | None:
    """Return an event; None if it cannot be read, of which whoever reads the run tells."""
    try:
        return decode_event(topic, payload)
    except WireError:
        return None


class StreamRuns:
    """Takes the starts and ends of the runs of a stream, and then says what is known of each run.

    Args:
        subjects: those of all events but records, as :func:`counts_of_subjects` has them.
    """

    def __init__(self, connection: Connection, stream: Stream, subjects: Mapping[str, int]) -> None:
        self._connection = connection
        self._stream = stream.name
        self._until = stream.last_offset
        self._kinds: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # by bus and run
        for subject, count in subjects.items():
            bus, kind, run = subject.split(".")
            self._kinds[bus, run][kind] += count
        self._told_by: dict[str, list[str]] = defaultdict(list)  # by run
        for (bus, run), kinds in self._kinds.items():
            if kinds.keys() <= BEGIN_NO_RUN:
                self._told_by[run].append(bus)
        self._known: dict[tuple[str, str], _Known] = {}
        self._layers: Counter[str] = Counter()  # how many runs there are of an id
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def take(self, bus: str, entry: Entry) -> int | None:
        """Take the next event; return which run of its id it is of, from 0, or None for all of them."""
        key = bus, token(entry.run_id)
        if self._kinds[key].keys() <= BEGIN_NO_RUN:
            return None
        known = self._known.get(key) or self._begin(key, entry.run_id)
        known.take(_decoded(entry.topic, entry.payload), entry.offset)
        return known.layer

    async def found(self) -> list[tuple[int, RunOfBus]]:
        """Return all runs, the oldest first, each with which of its id it is.

        Raises:
            NatsUnreachableError: no answer in time.
        """
        of_buses = [key for key, kinds in self._kinds.items() if not kinds.keys() <= BEGIN_NO_RUN]
        of_none = self._told_by.keys() - {run for _, run in of_buses}
        asked = (*map(self._of_bus, of_buses), *map(self._of_none, of_none))
        found = [each for each in await asyncio.gather(*asked) if each is not None]
        return sorted(found, key=lambda each: (each[1].row.started_ns, each[1].row.run_id, each[0]))

    # ---- one run ----

    def _begin(self, key: tuple[str, str], run_id: str) -> _Known:
        known = self._known[key] = _Known(run_id, self._layers[run_id])
        self._layers[run_id] += 1
        return known

    async def _of_bus(self, key: tuple[str, str]) -> tuple[int, RunOfBus] | None:
        bus, run = key
        known = self._known.get(key)
        if known is None or known.started_ns is None:
            first = await self._message(f"{bus}.*.{run}", after=0)
            if first is None:
                return None  # it has gone since its subjects were counted, or is none of ours
            known = known or self._begin(key, first.run_id)
            known.started_ns = first.ts_ns
        end = known.end
        if end is not None and end.status == "lost" and await self._went_on(key, known.end_offset):
            end = None
        if end is not None and end.published:
            events, records = end.events, end.records
        else:
            # It goes on, or it is of a publisher that counts nothing.
            events = await self._events(key) + (end is not None)
            records = max(await self._records(key), 0 if end is None else end.records)
        row = RunRow(
            run_id=known.run_id,
            status=RUNNING if end is None else end.status,
            started_ns=known.started_ns,
            ended_ns=None if end is None else end.ts_ns,
            events=events,
            records=records,
            size_bytes=0,
            publisher=known.publisher,
        )
        published = {} if end is None else end.published
        return known.layer, RunOfBus(row, bus, run, published, tuple(self._told_by.get(run, ())))

    async def _of_none(self, run: str) -> tuple[int, RunOfBus] | None:
        """Return a run of which only consumers said something."""
        bus, *others = self._told_by[run]
        first = await self._message(f"*.*.{run}", after=0)
        if first is None:
            return None
        row = RunRow(
            run_id=first.run_id,
            status=UNKNOWN,
            started_ns=first.ts_ns,
            ended_ns=first.ts_ns,
            events=0,
            records=0,
            size_bytes=0,
            publisher="",
        )
        return 0, RunOfBus(row, bus, run, {}, tuple(others))

    async def _went_on(self, key: tuple[str, str], end_offset: int) -> bool:
        """Return whether there is more of a run after its end: it was taken for lost, and came back."""
        bus, run = key
        kinds = self._kinds[key].keys() - BEGIN_NO_RUN - {RunComplete.kind}
        last = [await self._message(f"{bus}.{kind}.{run}") for kind in kinds]
        return any(end_offset < each.offset <= self._until for each in last if each is not None)

    async def _events(self, key: tuple[str, str]) -> int:
        """Return how many events there are of a run, its ends left out."""
        bus, run = key
        kinds = self._kinds[key]
        batches = await counts_of_subjects(self._connection, self._stream, f"{bus}.records.*.{run}")
        return sum(batches.values()) + sum(
            kinds[kind] for kind in kinds.keys() - BEGIN_NO_RUN - {RunComplete.kind}
        )

    async def _records(self, key: tuple[str, str]) -> int:
        """Return how many requests were answered, by what the phases of a run last said."""
        bus, run = key
        told = [await self._message(f"{bus}.{PhaseProgress.kind}.{run}")]
        after = 0
        for _ in range(_MOST_PHASES):
            ended = await self._message(f"{bus}.{PhaseComplete.kind}.{run}", after=after)
            if ended is None:
                break
            told.append(ended)
            after = ended.offset
        answered = {
            (each.source, each.event.phase): each.event.stats.completed
            for each in told
            if each is not None and isinstance(each.event, PhaseEvent)
        }
        return sum(answered.values())

    async def _message(self, subject: str, after: int | None = None) -> _Single | None:
        """Return the last message of a subject, or the first one after an offset; None for none."""
        async with self._turns:
            with asking(self._connection.address):
                try:
                    found = await self._connection.js.get_msg(
                        self._stream,
                        subject=f"{self._stream}.{subject}",
                        seq=None if after is None else after + 1,
                        next=after is not None,
                    )
                except nats.js.errors.NotFoundError:
                    return None
        return _single(found)
