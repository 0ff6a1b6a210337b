"""Where a consumer stands in the stream, and what the next message means to it.

The whole of gap detection and of changing between live and replay, without any socket in it.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from phase_bus.core.wire import Header


class Verdict(Enum):
    """What to do with a message."""

    HANDLE = "handle"
    REPETITION = "repetition"
    HOLE = "hole"


class Follower:
    """Follows the stream from an offset on, live where it can, from the journal where it must.

    A reader that wants ``records`` must see every offset; one that does not must see every event number.

    Attributes:
        offset: all up to here is handled, or of no interest.
        event_number: the event number there, None where it is not known.
        replaying: whether it reads from the journal; live messages are left where they are meanwhile.
        journaled: whether what is missing can be read from a journal; if not, it goes on after a hole.
        missed: events that were published, and are nowhere to be had any more.
        known_offset: how far the stream is known to go.
    """

    direct: ClassVar[bool] = False
    ordered: ClassVar[bool] = False  # whether live and past are one

    def __init__(self, *, records: bool = True) -> None:
        self.records = records
        self.journaled = True
        self.offset = 0
        self.event_number: int | None = 0
        self.replaying = True
        self.missed = 0
        self.known_offset = 0

    @property
    def behind(self) -> int:
        """How far it is behind the stream's known end, in offsets; 0 while it follows live."""
        return max(self.known_offset - self.offset, 0) if self.replaying else 0

    def stand_at(self, offset: int, event_number: int | None = None, *, replay: bool = True) -> None:
        """Begin after an offset; ``replay`` if later events may have been published already."""
        self.offset = offset
        self.event_number = event_number if offset else 0
        self.known_offset = offset
        self.replaying = replay

    def live(self, header: Header) -> Verdict:
        """Judge a message of the live queue. A hole changes to replaying; nothing else does."""
        if header.offset <= self.offset:
            return Verdict.REPETITION
        if self._distance(header) != 1:
            if self.journaled:
                self.known_offset = max(self.known_offset, header.offset)
                self.replaying = True
                return Verdict.HOLE
            self.missed += max(self._distance(header) - 1, 0)
            self.replaying = False
        self.advance(header)
        return Verdict.HANDLE

    def replayed(self, header: Header) -> Verdict:
        """Judge a message from the journal. A hole there is for good, and counted."""
        if header.offset <= self.offset:
            return Verdict.REPETITION
        if self.offset:
            self.missed += max(self._distance(header) - 1, 0)
        self.advance(header)
        return Verdict.HANDLE

    def heartbeat(self, header: Header) -> None:
        """Take in a heartbeat, which says where the stream stands: after it nothing older can come."""
        self.known_offset = max(self.known_offset, header.offset)
        if self._distance(header) > 0:
            self.replaying = True
        if self.replaying and not self.journaled:
            if header.offset > self.offset:  # what is missing before it is lost
                self.missed += self._distance(header)
                self.advance(header)
            self.replaying = False

    def caught_up(self, offset: int, event_number: int) -> None:
        """Go live: the journal has nothing more for this reader up to an offset."""
        self.offset = max(self.offset, offset)
        self.event_number = max(self.event_number or 0, event_number)
        self.replaying = False

    def _distance(self, header: Header) -> int:
        """Return how many events after the last one it is, as far as this reader can tell."""
        if self.records:
            return header.offset - self.offset
        if self.event_number is None:
            return 1  # nobody knows: in the journal, nothing lies between
        return header.event_number - self.event_number

    def advance(self, header: Header) -> None:
        """Move on to an event."""
        self.offset = header.offset
        self.event_number = header.event_number


class DirectFollower(Follower):
    """Follows a publisher in direct mode: nothing has an offset, and each message is the next one."""

    direct = True

    def __init__(self) -> None:
        super().__init__()
        self.replaying = self.journaled = False

    def live(self, header: Header) -> Verdict:  # noqa: ARG002 - as all followers have it
        """Return that a message is to be handled."""
        return Verdict.HANDLE

    def heartbeat(self, header: Header) -> None:
        """Take in nothing: a heartbeat of a publisher says nothing of the stream."""


class PartitionFollower(Follower):
    """Follows one partition of the records, of all runs.

    Such a reader sees neither every offset nor every event number. Each message names the offset of the
    one before it in the partition, and a heartbeat the last one: by these it sees what is missing.
    """

    def heartbeat(self, header: Header) -> None:
        """Take in where the stream and, as ``previous``, the partition stand: nothing older can come."""
        self.known_offset = max(self.known_offset, header.offset)
        if header.previous > self.offset:
            self.replaying = True
        elif not self.replaying:
            self.offset = max(self.offset, header.offset)

    def _distance(self, header: Header) -> int:
        return 1 if header.previous <= self.offset else 2  # how many are between, nobody knows


class OrderedFollower(Follower):
    """Follows a transport that gives a reader all that it wants, in order, and tells itself what is lost.

    Offsets and event numbers have holes there, which mean nothing: each message is the next one.
    """

    ordered = True

    def _distance(self, header: Header) -> int:  # noqa: ARG002 - as all followers have it
        return 1
