"""What a bus tells of its past, when it is asked from elsewhere."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from phase_bus.core.position import Segment
from phase_bus.events import Int


class RunRow(Struct, frozen=True, kw_only=True):
    """A run in the journal.

    Attributes:
        status: ``running``, how it ended, or ``unknown`` if only what consumers said of it is here.
        started_ns, ended_ns: Unix time in ns by its own start and end; no end while it is running.
        events: how many events of its publishers are here, with its end.
        records: how many request records are in them.
        size_bytes: what all frames of it take, those from consumers included.
        publisher: what a person calls its publisher.
    """

    run_id: str
    status: str
    started_ns: Int
    ended_ns: Int | None
    events: Int
    records: Int
    size_bytes: Int
    publisher: str


class DeadLetter(Struct, frozen=True, kw_only=True):
    """An event that a consumer's handler failed on: its :class:`~phase_bus.core.control.DeadLetterNote`.

    Attributes:
        id: the dead letter's number, never used again.
        consumer: whose handler failed: the consumer's name, or the checkpoint's of a group's share.
        ts_ns: Unix time in ns when it was dead-lettered.
    """

    id: Int
    consumer: str
    stream: str
    offset: Int
    run_id: str
    kind: str
    error: str
    traceback: str
    ts_ns: Int
    attempts: Int


class FetchPast(Struct, frozen=True, kw_only=True, tag_field="op", tag="fetch_past"):
    """Ask the replay socket for the runs in the journal, or for the dead letters.

    Attributes:
        after: where to go on: :attr:`FetchedPast.next` of the answer before, 0 for the first part.
        stream: as for :class:`~phase_bus.core.control.Fetch`.
    """

    what: Literal["runs", "dead_letters"]
    after: Int = 0
    stream: str = ""


class FetchedPast(Struct, frozen=True, kw_only=True, tag_field="op", tag="fetched_past"):
    """The answer: all of it, or one part.

    A run that comes or goes between two parts may be in none, or in both.

    Attributes:
        offset: the last offset in the journal when it was read.
        lineage: the streams that the journal holds, as in the welcome.
        runs: the oldest first.
        dead_letters: those of consumers that whoever asks speaks for, the oldest first.
        left_out: how many more of them the journal does not keep, at least, by consumer.
        withheld: how many of this part are of others' consumers.
        next: where the next part begins, 0 if this is the last.
    """

    offset: Int = 0
    lineage: tuple[Segment, ...] = ()
    runs: tuple[RunRow, ...] = ()
    dead_letters: tuple[DeadLetter, ...] = ()
    left_out: dict[str, Int] = {}
    withheld: Int = 0
    next: Int = 0
