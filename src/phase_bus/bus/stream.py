"""The one ordered stream of a bus: gives offsets, writes the journal, fans out."""

from __future__ import annotations

import time
from typing import NamedTuple

import zmq

from phase_bus.bus.intake import BUNDLED
from phase_bus.core.bundle import ARRAY_BYTES, BUNDLED_BYTES, LARGEST_BUNDLED_BYTES, join
from phase_bus.core.outbox import Outbox
from phase_bus.core.position import Lineage
from phase_bus.core.wire import (
    BUNDLED_MOST,
    NO_PARTITION,
    Header,
    Topic,
    send_frames,
    stream_tag,
    unpack_header,
)
from phase_bus.events import Event, EventBase
from phase_bus.journal.rows import Entry, Head
from phase_bus.journal.writer import Journal


class Incoming(NamedTuple):
    """An event, or a bundle of them, that was taken in and is not yet in the stream.

    The frame is what is sent as the payload: a large one as it was received, which copies nothing. There
    is no ``event`` if its kind is newer than this program; of a bundle it is the latest one. ``sizes`` is
    what the header frame of a bundle has after its header.
    """

    topic: bytes
    parsed: Topic
    header: Header
    payload: bytes
    partition: int
    frame: bytes | zmq.Frame
    event: Event | None
    sizes: bytes = b""


class Stream:
    """Puts events in order: each gets the next offset, is journaled, and only then published by XPUB.

    Args:
        stream: the stream's id.

    Attributes:
        lineage: the streams that the journal holds, this one the last of them; empty without a journal.
        tag: the id's beginning, which is in the header of each event.
        events, records, payload_bytes: what has come into it since the bus's start.
    """

    def __init__(self, socket: zmq.Socket[bytes], journal: Journal | None, stream: str) -> None:
        self.tag = stream_tag(stream)
        self.lineage = journal.lineage if journal is not None else Lineage()
        self._socket = socket
        self._journal = journal
        self.head = journal.head if journal is not None else Head(0, 0)
        # The last offset in each partition of the records: who has missed the last one learns of it.
        self.partitions = journal.last_offsets() if journal is not None else {}
        self.events = self.records = self.payload_bytes = 0
        self._pending: list[Incoming] = []

    def add(self, incoming: Incoming) -> int:
        """Take an event in; :meth:`commit` puts it into the stream. Return its place among those before."""
        self._pending.append(incoming)
        return len(self._pending) - 1

    def change(self, place: int, payload: bytes) -> None:
        """Give an event that was taken in, and is not in the stream yet, another payload."""
        self._pending[place] = self._pending[place]._replace(payload=payload, frame=payload)

    def commit(self) -> list[Incoming]:
        """Put all that was taken in into the stream, in one transaction, publish it, and return it.

        Raises:
            JournalError: if it cannot be written; nothing of it is in the stream then, nor ever will be.
        """
        if not self._pending:
            return []
        pending, self._pending = self._pending, []
        offset, number = self.head
        now_ns = time.time_ns()
        entries = []
        last: dict[int, int] = {}
        all_records = size = 0
        messages = _together(pending)
        for topic, parsed, header, payload, partition, _, _, sizes in messages:
            more = header.events - 1  # of a bundle: behind its first event
            offset += 1
            previous = 0
            if partition == NO_PARTITION:
                number += 1
            else:
                previous = last.get(partition, self.partitions.get(partition, 0))
                last[partition] = offset
            kind, run_id = parsed
            source, source_seq, _, records, *_ = header
            all_records += records
            size += len(payload) - (ARRAY_BYTES if more else 0)
            placed = header.pack_at(offset, number, previous, self.tag) + sizes
            offset += more
            number += more
            # By position: names cost half as much again.
            numbers = (source_seq + more, records, number, now_ns, more + 1)
            entries.append(Entry(offset, topic, placed, payload, run_id, kind, source, *numbers))
        if self._journal is not None:
            self._journal.append(entries)
        self.events += offset - self.head.offset
        self.head = Head(offset, number)
        self.partitions |= last
        self.records += all_records
        self.payload_bytes += size
        for entry, incoming in zip(entries, messages, strict=True):
            send_frames(self._socket, (entry.topic, entry.header, incoming.frame))
        return pending


def _together(pending: list[Incoming]) -> list[Incoming]:
    """Return what was taken in with single events that follow on each other as bundles.

    They are journaled, sent and handled as one then: what comes event by event while the bus is at
    something else costs everybody behind it as little as what its publisher sent as a bundle.
    """
    messages: list[Incoming] = []
    group: list[Incoming] = []
    size_bytes = 0
    for incoming in pending:
        size_bytes += len(incoming.payload)
        if not (
            group
            and size_bytes <= BUNDLED_BYTES
            and len(group) < BUNDLED_MOST
            and _follows(incoming, group[-1])
        ):
            if group:
                messages.append(_joined(group))
            group, size_bytes = [], len(incoming.payload)
        group.append(incoming)
    messages.append(_joined(group))
    return messages


def _follows(incoming: Incoming, last: Incoming) -> bool:
    """Return whether an event may go in one message with the one before it."""
    header, before = incoming.header, last.header
    return (
        header.source_seq == before.source_seq + 1
        and incoming.topic == last.topic
        and header.source == before.source
        and header.topic_seq == before.topic_seq + 1
        and header.events == before.events == 1
        and max(len(incoming.payload), len(last.payload)) <= LARGEST_BUNDLED_BYTES
        and incoming.parsed.kind in BUNDLED
    )


def _joined(group: list[Incoming]) -> Incoming:
    """Return events that go in one message."""
    first = group[0]
    if len(group) == 1:
        return first
    sizes, payload = join(b"", [incoming.payload for incoming in group])
    header = first.header._replace(events=len(group))
    return first._replace(header=header, payload=payload, frame=payload, sizes=sizes)


def number_own(outbox: Outbox, event: EventBase) -> tuple[bytes, Header, bytes]:
    """Return the topic, header with the next numbers, and payload of an event of the bus's own."""
    outbox.put(event)
    (message,) = outbox
    outbox.acknowledge(message.seq)  # nothing has to be sent again to oneself
    topic, header, payload = message.frames
    return topic, unpack_header(header), payload
