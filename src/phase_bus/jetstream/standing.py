"""How things stand at a stream, for who only looks: nothing is made for that, and nothing changed."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.js.errors
from msgspec import Struct
from nats.js.api import RawStreamMsg

from phase_bus.bus.groups import Group
from phase_bus.core.address import StreamAddress
from phase_bus.core.control import ClientInfo, GroupInfo
from phase_bus.core.position import Lineage
from phase_bus.core.wire import decode, decode_event, parse_topic
from phase_bus.errors import WireError
from phase_bus.events import BEGIN_NO_RUN, RunStart
from phase_bus.jetstream.connection import Connection, asking, connected
from phase_bus.jetstream.coordinator import GroupNote, MemberNote
from phase_bus.jetstream.durability import durability_of
from phase_bus.jetstream.keys import Kept, kept_below, stream_of_keys
from phase_bus.jetstream.message import subjects_of_bus, unpacked
from phase_bus.jetstream.notes import CheckpointNote, NameNote, read_note
from phase_bus.jetstream.seats import SILENT_AFTER_S
from phase_bus.jetstream.stream import Stream, open_stream
from phase_bus.jetstream.stream_runs import counts_of_subjects

_ASK_S = 5.0
_AT_ONCE = 32  # questions
_decode_info = msgspec.json.Decoder(dict[str, Any]).decode


class BusStanding(Struct, frozen=True, kw_only=True):
    """A bus that forwards to a stream, or did.

    Attributes:
        bus: the id of its journal.
        host: where the load of its latest run is made, as far as that was told.
        offset: the last event's place in its journal.
        stream_offset: its place in the stream.
        run_id: the run that this event is of.
        runs: how many of its runs are in the stream.
        age_s: seconds since the stream took in the event, by the server's clock.
    """

    bus: str
    host: str
    offset: int
    stream_offset: int
    run_id: str
    runs: int
    age_s: float


class Standing(Struct, frozen=True, kw_only=True):
    """A stream, and who has to do with it.

    Attributes:
        stream, stream_id: its name and id.
        first_offset, last_offset: of the events that it holds.
        weaknesses: what is known of how it is kept that is weaker than it could be, and what helps.
        buses: the latest one first.
        consumers: those that are there, or have been silent for a while, or have left a checkpoint.
        behind: how many messages each consumer or group has not passed, by name, up to the last one in the
            stream that is no consumer's word on a run; of a group it is the share that is last.
    """

    address: str
    stream: str
    stream_id: str
    first_offset: int
    last_offset: int
    replicas: int
    memory: bool
    weaknesses: tuple[str, ...]
    buses: tuple[BusStanding, ...]
    consumers: tuple[ClientInfo, ...]
    groups: tuple[GroupInfo, ...]
    behind: dict[str, int]


async def standing_at(address: StreamAddress) -> Standing:
    """Return how things stand at a stream.

    Raises:
        PhaseBusError: there is none, or something beside it cannot be read.
        NatsUnreachableError: no answer in time.
    """
    async with connected(address, "status") as connection:
        stream = await open_stream(connection, make=False)
        look = _Look(connection, stream)
        with asking(address):
            weaknesses = (await durability_of(connection)).weaknesses
            buses, last_offset = await look.buses()
            consumers, groups, behind = await look.consumers(last_offset)
        return Standing(
            address=str(address),
            stream=stream.name,
            stream_id=stream.id,
            first_offset=stream.first_offset,
            last_offset=stream.last_offset,
            replicas=stream.replicas,
            memory=stream.memory,
            weaknesses=tuple(weaknesses),
            buses=tuple(buses),
            consumers=tuple(consumers),
            groups=tuple(groups),
            behind=behind,
        )


class _Look:
    """A look at a stream."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._turns = asyncio.Semaphore(_AT_ONCE)

    # ---- buses ----

    async def buses(self) -> tuple[list[BusStanding], int]:
        """Return the buses, the latest one first, and the offset of the last event that makes up a run."""
        runs: Counter[str] = Counter()
        kinds: dict[tuple[str, str], set[str]] = defaultdict(set)
        counts = await counts_of_subjects(self._connection, self._stream.name, "*.*.*")
        for bus, kind, run in (subject.split(".") for subject in counts):
            kinds[bus, run].add(kind)
        runs.update(bus for (bus, _), of_run in kinds.items() if not of_run <= BEGIN_NO_RUN)
        now = await self._now(self._stream.name)
        found = await asyncio.gather(*(self._bus(bus, count, now) for bus, count in runs.items()))
        name = self._stream.name
        of_runs = set().union(*kinds.values()) - BEGIN_NO_RUN
        filters = [f"{name}.*.records.*.*", *(f"{name}.*.{kind}.*" for kind in of_runs)]
        last = await asyncio.gather(*(self._message(name, subject=each) for each in filters))
        last_offset = max(((each.seq or 0) for each in last if each is not None), default=0)
        return sorted(filter(None, found), key=lambda bus: -bus.stream_offset), last_offset

    async def _bus(self, bus: str, runs: int, now: datetime) -> BusStanding | None:
        name = self._stream.name
        last = await self._message(name, subject=subjects_of_bus(name, bus))
        try:
            message = unpacked((last and last.data) or b"")
            run_id = parse_topic(message.topic).run_id
        except WireError:  # none of ours
            return None
        start = await self._message(name, subject=f"{name}.{bus}.{RunStart.kind}.*")
        assert last is not None
        return BusStanding(
            bus=bus,
            host=_host((start and start.data) or b""),
            offset=message.position.offset,
            stream_offset=last.seq or 0,
            run_id=run_id,
            runs=runs,
            age_s=_age_s(last, now),
        )

    # ---- consumers ----

    async def consumers(self, last_offset: int) -> tuple[list[ClientInfo], list[GroupInfo], dict[str, int]]:
        """Return the consumers and groups, and by name how far they are behind an offset."""
        names, members, groups, checkpoints = [
            await kept_below(self._connection, self._stream, prefix)
            for prefix in ("name", "member", "group", "checkpoint")
        ]
        ages_s = await self._ages_s([*names.values(), *members.values()])
        clients = [
            _single(read_note(NameNote, key, kept), ages_s[kept.revision]) for key, kept in names.items()
        ]
        clients += [
            _member(read_note(MemberNote, key, kept), ages_s[kept.revision])
            for key, kept in members.items()
        ]
        infos = {_text(key.split(".")[1]): read_note(GroupNote, key, kept) for key, kept in groups.items()}
        behind = self._behind(checkpoints, last_offset)
        here = {client.name for client in clients} | infos.keys()
        clients += [_gone(name) for name in behind.keys() - here]
        return clients, [Group.of(name, note.state).info() for name, note in infos.items()], behind

    def _behind(self, checkpoints: Mapping[str, Kept], last: int) -> dict[str, int]:
        lineage = Lineage(self._stream.lineage)
        behind: dict[str, int] = {}
        for key, kept in checkpoints.items():
            note = read_note(CheckpointNote, key, kept)
            offset = 0 if note.position is None else lineage.find(note.position).offset
            name = _text(key.split(".")[1])
            behind[name] = max(behind.get(name, 0), last - offset, 0)
        return behind

    async def _ages_s(self, kept: Iterable[Kept]) -> dict[int, float]:
        """Return by revision how many seconds ago something was changed, by the server's clock."""
        revisions = [each.revision for each in kept]
        if not revisions:
            return {}
        stream = stream_of_keys(self._stream)
        found = await asyncio.gather(*(self._message(stream, seq=revision) for revision in revisions))
        now = await self._now(stream)
        ages_s = (0.0 if each is None else _age_s(each, now) for each in found)  # None: changed just now
        return dict(zip(revisions, ages_s, strict=True))

    # ---- asking ----

    async def _now(self, stream: str) -> datetime:
        """Return the time at the server that leads a stream."""
        answer = await self._connection.client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=_ASK_S)
        info = decode(_decode_info, answer.data, "an answer of NATS")
        with suppress(KeyError, TypeError, ValueError):
            return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", info["ts"]))
        return datetime.now(UTC)

    async def _message(self, stream: str, **which: Any) -> RawStreamMsg | None:
        async with self._turns:
            try:
                return await self._connection.js.get_msg(stream, **which)
            except nats.js.errors.NotFoundError:
                return None


def _age_s(message: RawStreamMsg, now: datetime) -> float:
    return 0.0 if message.time is None else max((now - message.time).total_seconds(), 0.0)


def _host(data: bytes) -> str:
    try:
        message = unpacked(data)
        start = decode_event(message.topic, message.payload)
    except WireError:
        return ""
    return start.host if isinstance(start, RunStart) else ""


def _single(note: NameNote, age_s: float) -> ClientInfo:
    return ClientInfo(
        client_id=note.client_id,
        role="consumer",
        name=note.name,
        pid=note.pid,
        host=note.host,
        state="silent" if age_s > SILENT_AFTER_S else note.state,
        received=note.received,
        failed=note.failed,
        age_s=age_s,
    )


def _member(note: MemberNote, age_s: float) -> ClientInfo:
    hello, beat = note.hello, note.beat
    return ClientInfo(
        client_id=hello.client_id,
        role="consumer",
        name=hello.name,
        pid=hello.pid,
        host=hello.host,
        state="silent" if age_s > SILENT_AFTER_S else beat.state,
        received=beat.received,
        failed=beat.failed,
        age_s=age_s,
        group=hello.group,
        shares=beat.shares,
    )


def _gone(name: str) -> ClientInfo:
    """Return a consumer of which there is nothing but a checkpoint."""
    return ClientInfo(client_id="", role="consumer", name=name, pid=0, host="", state="stopped")


def _text(token: str) -> str:
    """Return what a token stands for, as far as it says all of it."""
    data = re.sub(r"=([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), token).encode("latin-1")
    return data.decode("utf-8", "replace")
