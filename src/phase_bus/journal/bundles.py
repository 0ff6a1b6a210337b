"""Bundles in a journal: a row that holds several events, and these one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from phase_bus.core.bundle import split
from phase_bus.core.wire import BUNDLED_MOST, HEADER, SIZE_BYTES, Header, unpack_header
from phase_bus.errors import WireError
from phase_bus.journal.rows import Entry


def single_events(entry: Entry) -> Iterator[Entry]:
    """Yield the events of a row, each as if it had come alone.

    Raises:
        WireError: at once, if it is a bundle whose frames contradict each other or the row.
    """
    if entry.events == 1:
        return iter((entry,))
    header = unpack_header(entry.header, entry.topic)
    parts = split(header, entry.header, memoryview(entry.payload), entry.topic)
    back = entry.events - 1
    first = (entry.source, entry.source_seq - back, entry.offset - back, entry.event_number - back)
    told = (header.source, header.source_seq, header.offset, header.event_number)
    if header.events != entry.events or told != first:
        raise WireError("its header is that of other events", entry.topic)
    return _singles(entry, parts)


def _singles(entry: Entry, parts: Iterable[tuple[Header, memoryview]]) -> Iterator[Entry]:
    for header, payload in parts:
        yield entry._replace(
            offset=header.offset,
            header=header.pack(),
            payload=bytes(payload),
            source_seq=header.source_seq,
            event_number=header.event_number,
            events=1,
        )


def most_events(entry: Entry) -> int:
    """Return how many events a damaged row held at most: what says so may be what is damaged."""
    told = entry.events if isinstance(entry.events, int) else 1
    framed = (len(entry.header) - HEADER.size) // SIZE_BYTES if isinstance(entry.header, bytes) else 1
    return min(max(told, framed, 1), BUNDLED_MOST)
