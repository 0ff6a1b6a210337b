"""Places in a stream, which stay true when a bus is restarted, its journal cut, or another one taken.

Each start of a bus begins a new *stream*, named by 32 hex digits. Its events continue those of the streams
before it in the same journal: its :class:`Lineage`. What a power cut took from the end of a stream is in no
later one, and another journal has another lineage. So an offset is kept with its stream, and judged by the
lineage of the bus that one is connected to, before it is used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from phase_bus.events import Int, Offset

KEPT_STREAMS = 1000  # of a journal: the first one, and the latest ones

Found: TypeAlias = Literal["here", "cut", "elsewhere"]


class Position(Struct, frozen=True):
    """A place in a stream: all events up to an offset.

    Attributes:
        stream: 32 hex digits.
        offset: that of the last event, 0 before the first.
    """

    stream: str
    offset: Offset


class Segment(Struct, frozen=True):
    """A stream's part of a journal, which ends where the next stream's begins."""

    stream: str
    first_offset: Int


class Place(NamedTuple):
    """Where a position of before is in a lineage.

    Attributes:
        found: ``here``; ``cut`` if the journal has lost events up to it; ``elsewhere`` if its stream is not
            in the lineage.
        offset: the place from which to go on: the position's, the last one before the cut, or 0.
    """

    found: Found
    offset: int


class Lineage:
    """The streams of one journal, the oldest first. The last one is that of the bus that has it now.

    Empty without a journal.
    """

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self.segments = tuple(segments)
        self._firsts = [segment.first_offset for segment in self.segments]
        self._place_of = {segment.stream: place for place, segment in enumerate(self.segments)}

    @property
    def journal_id(self) -> str:
        """The first stream, which tells one journal from another; empty without a journal."""
        return self.segments[0].stream if self.segments else ""

    @property
    def streams(self) -> tuple[str, ...]:
        """All streams, the oldest first."""
        return tuple(segment.stream for segment in self.segments)

    def position(self, offset: int) -> Position:
        """Return an offset with the stream that it lies in, whichever bus it was read from."""
        if not self.segments:
            return Position("", offset)
        place = bisect_right(self._firsts, offset) - 1
        return Position(self.segments[max(place, 0)].stream, offset)

    def find(self, position: Position, head: int | None = None) -> Place:
        """Judge a position.

        Args:
            head: the last offset, if it is certain that the last stream goes no further.
        """
        place = self._place_of.get(position.stream)
        if place is None:
            return Place("elsewhere", 0)
        last = min(self._firsts[place + 1 :], default=None)
        end = head if last is None else last - 1
        if end is None or position.offset <= end:
            return Place("here", position.offset)
        return Place("cut", end)
