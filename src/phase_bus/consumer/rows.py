"""What a sink hands to a server, and what the server says to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from phase_bus.errors import PhaseBusError
from phase_bus.events import EventBase

_UNKNOWN = "no reason given"


class UnavailableError(PhaseBusError):
    """The server did not take the rows now, and may later: it is away, busy, or limits the rate.

    Attributes:
        after_s: in how many seconds it asks to be tried again, if it does.
    """

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        self.after_s = after_s
        super().__init__(reason)


class DeniedError(UnavailableError):
    """The server does not let us: wrong credentials, or a place that is not there.

    A sink that meets it when it starts does not start. Later it is tried again, since whoever changed
    the server may change it back.
    """


class RefusedRowsError(PhaseBusError):
    """The server will never take what it was sent.

    Of several rows each is then sent by itself, halving by halving, until it is known which one is refused.
    """


class Origin(Struct, frozen=True):
    """The event that rows are made of, and where it is from.

    Attributes:
        stream: the stream that the offset is in; empty without a journal.
        offset: its place in the bus's journal; 0 without one.
        source: who published it: 32 hex digits.
        sequence: its number among all that the source published; 0 if that gave it none.
    """

    event: EventBase
    stream: str
    offset: int
    source: str
    sequence: int

    @property
    def key(self) -> str:
        """A text that names the event, and no other, whenever it is sent.

        It is made of its source and number, so that it stays the same if the event comes again at another
        place: from a publisher that had kept what the journal lost.
        """
        if self.sequence:
            return f"{self.source}-{self.sequence}"
        return f"{self.stream}-{self.offset}"


class Row(NamedTuple):
    """A row to be sent.

    Attributes:
        origin: the event that it is from.
        number: which of the event's rows, from 0 on.
        data: what :meth:`Sink.rows` made.
        size: its size in bytes.
        weight: how many rows it counts for.
    """

    origin: Origin
    number: int
    data: Any
    size: int
    weight: int = 1

    @property
    def key(self) -> str:
        """The row's idempotency key: the same whenever it is sent, and that of no other row."""
        return f"{self.origin.key}-{self.number}"


class Answer(Struct, frozen=True):
    """What a server said to a batch, where it did not simply take it.

    A row whose place is in neither is there.

    Attributes:
        refused: why it will never take some of the rows, by their place in the batch.
        again: the places of rows that are to be sent again.
        reason: why these are.
        after_s: in how many seconds, if the server says so.
    """

    refused: dict[int, str] = {}
    again: Sequence[int] = ()
    reason: str = _UNKNOWN
    after_s: float | None = None
