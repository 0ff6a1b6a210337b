"""What goes into a journal and comes out of it."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from phase_bus.core.control import EVENTS, UnreadRun
from phase_bus.core.past import DeadLetter as DeadLetter
from phase_bus.core.past import RunRow as RunRow
from phase_bus.core.position import Position

Durability: TypeAlias = Literal["write", "fsync"]


class Entry(NamedTuple):
    """An event in the journal: its three frames, and what the journal knows of them.

    Attributes:
        offset: its place, from 1.
        header: the header frame.
        source: 16 bytes that name its publisher.
        source_seq, records, event_number: as in its :class:`~phase_bus.core.wire.Header`.
        ts_ns: Unix time in ns when the bus took it in.
        events: how many events it is; of a bundle (:mod:`phase_bus.core.bundle`) the offset, sequence and
            number are those of the **last** one.
    """

    offset: int
    topic: bytes
    header: bytes
    payload: bytes
    run_id: str
    kind: str
    source: bytes
    source_seq: int
    records: int
    event_number: int
    ts_ns: int
    events: int = 1


class StreamRow(NamedTuple):
    """What the journal has from one source on one topic.

    Attributes:
        records: how many request records are in its events.
        last_offset: the last event's offset.
    """

    topic: bytes
    source: bytes
    events: int
    records: int
    last_offset: int


class Head(NamedTuple):
    """How far a journal is: the last event's offset and event number, 0 before the first."""

    offset: int
    event_number: int


def checkpoint_name(group: str, share: int) -> str:
    """Return the name under which the checkpoint of one share of a consumer group is kept."""
    return f"{group}/events" if share == EVENTS else f"{group}/{share:02d}"


def parse_checkpoint_name(name: str) -> tuple[str, int | None]:
    """Return the group and share of a checkpoint's name, or a consumer's own name and None."""
    group, slash, share = name.rpartition("/")
    if slash and share == "events":
        return group, EVENTS
    if slash and share.isascii() and share.isdigit():
        return group, int(share)
    return name, None


class Checkpoint(NamedTuple):
    """The position up to which a consumer has finished, and its state there if it has one."""

    position: Position
    state: bytes | None

    @property
    def offset(self) -> int:
        """The position's offset."""
        return self.position.offset


class JournalInfo(Struct, frozen=True, kw_only=True):
    """A journal at a glance.

    Attributes:
        size_bytes: what it takes on the disk, the write-ahead log included.
        records: how many request records are in its events.
        oldest_ts_ns: when its first event was taken in, in Unix ns; None if there is none.
        checkpoints: the position of each consumer's checkpoint.
        streams: how often a bus was started on it.
    """

    path: str
    size_bytes: int
    events: int
    records: int
    runs: int
    head: Head
    oldest_ts_ns: int | None
    checkpoints: dict[str, Position]
    streams: int


class PrunedRow(Struct, frozen=True, kw_only=True):
    """A run that was pruned, and what was lost by it.

    Attributes:
        unread: what consumers had not read of it.
        dead_letters: how many of its events were dead letters.
    """

    run_id: str
    unread: list[UnreadRun]
    dead_letters: int


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a journal keeps. The oldest runs that ended go first; a running one never goes.

    Attributes:
        max_bytes: the size, without free pages, beyond which the oldest finished runs are pruned.
        max_age_s: the age beyond which finished runs are pruned, in seconds since the bus received
            their end.
        max_runs: the number of runs kept, including running ones.
        max_unread_bytes: by how much ``max_bytes`` may be exceeded, and the other limits with it, for runs
            that a named consumer has not read yet; beyond that they are pruned anyway, and reported.
        max_absence_s: the seconds after which runs are no longer kept for a consumer that is not on the
            bus.
    """

    max_bytes: int = 4 << 30
    max_age_s: float = 30 * 86400.0
    max_runs: int = 200
    max_unread_bytes: int = 4 << 30
    max_absence_s: float = 7 * 86400.0
