"""What answers a process around consumers in the place of a bus: out of what is kept beside the stream.

The words are those of :mod:`phase_bus.core.control`. Where a bus decides by what it remembers, a seat
decides by revisions: see :mod:`phase_bus.jetstream.keys`.
"""

from __future__ import annotations

from typing import Protocol

from phase_bus.core.control import Beat, Endpoint, Hello, Reply, Welcome
from phase_bus.jetstream.stream import Stream
from phase_bus.journal.rows import Checkpoint

HEARTBEAT_S = 1.0  # between two beats
SILENT_AFTER_S = 10.0  # after which a process that has not changed its key counts as gone


class Seat(Protocol):
    """Answers one process. Every method raises NatsUnreachableError if no answer comes in time."""

    async def hello(self, hello: Hello) -> Reply:
        """Let the process in, as far as it may; what it had before is forgotten."""

    async def beat(self, beat: Beat) -> list[Reply]:
        """Keep what a beat carries, and return what there is to be said."""

    async def goodbye(self, beat: Beat) -> None:
        """Keep what the last beat carries, and let others have what the process had."""


def welcome(stream: Stream, kept: Checkpoint | None = None) -> Welcome:
    """Return what lets a process in.

    Args:
        stream: as it is now.
        kept: the checkpoint of its consumer, if there is one.
    """
    return Welcome(
        bus_id=stream.id,
        events=Endpoint(),
        heartbeat_s=HEARTBEAT_S,
        silent_after_s=SILENT_AFTER_S,
        replay=Endpoint(),  # what is past can be read
        lineage=stream.lineage,
        offset=stream.last_offset,
        checkpoint=None if kept is None else kept.position,
        state=None if kept is None else kept.state,
    )
