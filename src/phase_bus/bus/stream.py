"""The one ordered stream of a bus: gives offsets, writes the journal, fans out."""

from __future__ import annotations

import time
import uuid
from typing import NamedTuple

import zmq

from phase_bus.core.outbox import Outbox
from phase_bus.core.wire import NO_PARTITION, Header, Topic, send_frames, unpack_header
from phase_bus.events import EventBase
from phase_bus.journal.rows import Entry, Head
from phase_bus.journal.writer import Journal


class Incoming(NamedTuple):
    """An event that was taken in and is not yet in the stream.

    Attributes:
        parsed: the topic, taken apart.
        payload: the payload, or a view of it.
        frame: what is to be sent as the payload: a large one as it was received, which copies nothing.
    """

    topic: bytes
    parsed: Topic
    header: Header
    payload: bytes
    partition: int
    frame: bytes | zmq.Frame


class Stream:
    """Puts events in order: each gets the next offset, is journaled, and only then published by XPUB."""

    def __init__(self, socket: zmq.Socket[bytes], journal: Journal | None) -> None:
        self._socket = socket
        self._journal = journal
        self.head = journal.head if journal is not None else Head(0, 0)
        # The last offset in each partition of the records: who has missed the last one learns of it.
        self.partitions = journal.last_offsets() if journal is not None else {}
        self._pending: list[Incoming] = []

    def add(self, incoming: Incoming) -> None:
        """Take an event in; :meth:`commit` puts it into the stream."""
        self._pending.append(incoming)

    def commit(self) -> list[Incoming]:
        """Put all that was taken in into the stream, in one transaction, and publish it.

        Returns:
            What is in the stream now and was not before.

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
        for topic, parsed, header, payload, partition, _ in pending:
            offset += 1
            previous = 0
            if partition == NO_PARTITION:
                number += 1
            else:
                previous = last.get(partition, self.partitions.get(partition, 0))
                last[partition] = offset
            kind, run_id = parsed
            source, source_seq, _, records, *_ = header
            placed = header.pack_at(offset, number, previous)
            # By position: names cost half as much again.
            numbers = (source_seq, records, number, now_ns)
            entries.append(Entry(offset, topic, placed, payload, run_id, kind, source, *numbers))
        if self._journal is not None:
            self._journal.append(entries)
        self.head = Head(offset, number)
        self.partitions |= last
        for entry, incoming in zip(entries, pending, strict=True):
            send_frames(self._socket, (entry.topic, entry.header, incoming.frame))
        return pending


class OwnEvents:
    """Encodes and numbers the bus's own events as a publisher does its, under a source of their own."""

    def __init__(self) -> None:
        self._outbox = Outbox(uuid.uuid4().bytes, 0)

    def number(self, event: EventBase) -> tuple[bytes, Header, bytes]:
        """Return an event's topic, header with the next numbers, and payload."""
        self._outbox.put(event)
        message = self._outbox.peek()
        assert message is not None
        self._outbox.acknowledge(message.seq)  # nothing has to be sent again to oneself
        topic, header, payload = message.frames
        return topic, unpack_header(header), payload
