"""What the in-memory bus keeps, and how events get into it: encoded, numbered and in order."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping
from typing import Any, Self

from phase_bus.bus.runs import Runs
from phase_bus.bus.stream import Incoming
from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.control import RESULTS_SUFFIX, DeadLetterNote
from phase_bus.core.outbox import Outbox
from phase_bus.core.position import Lineage, Segment
from phase_bus.core.values import ListMode
from phase_bus.core.wire import NO_PARTITION, decode_event, parse_topic, partition_of, unpack_header
from phase_bus.events import EventBase, PhaseRef, Receipt, RunStatus
from phase_bus.journal.rows import Checkpoint, Head
from phase_bus.publisher.columns import cut
from phase_bus.publisher.composer import BatchOptions, Completion, Composer
from phase_bus.publisher.drops import Drops
from phase_bus.testing.outcome import Bus, C, Outcome, StoredMessage

logger = logging.getLogger("phase_bus.testing")

_NO_LIMIT = 1 << 62


class MessageStore(Bus):
    """Keeps messages in the order in which they came, as a bus's journal does.

    Args:
        lists: what becomes of metrics that are lists, as for :class:`~phase_bus.Publisher`.
        batch_records: how many records a batch has at most.

    Attributes:
        lineage: that of its one stream.
        messages: all that was published; the first has the offset 1.
        checkpoints: where each consumer stood at its last flush, by name.
        dead_letters: each consumer's dead letters, by name.
        names: those of the consumers that run: one consumer for each name.
    """

    def __init__(self, *, lists: ListMode = "summary", batch_records: int = 256) -> None:
        self.lineage = Lineage([Segment(uuid.uuid4().hex, 1)])
        self.messages: list[StoredMessage] = []
        self.checkpoints: dict[str, Checkpoint] = {}
        self.dead_letters: dict[str, list[DeadLetterNote]] = {}
        self.names: set[str] = set()
        self._lists: ListMode = lists
        self._batch_records = batch_records
        self._runs = Runs()
        self._outbox = Outbox(uuid.uuid4().bytes, _NO_LIMIT)  # of what the bus itself says

    def publisher(self, name: str = "publisher") -> MemoryPublisher:
        """Return a publisher on this bus, with everything that a real one is called for."""
        return MemoryPublisher(self, name, self._lists, self._batch_records)

    def _entries(self) -> list[StoredMessage]:
        return self.messages

    @property
    def head(self) -> Head:
        """Where the stream ends."""
        header = self.messages[-1].header if self.messages else None
        return Head(header.offset, header.event_number) if header else Head(0, 0)

    def take_dead_letters(self, share: Share) -> list[DeadLetterNote]:
        """Take over a share's new dead letters, as the bus does; return them."""
        new = share.dispatcher.dead_letters
        self.dead_letters.setdefault(share.name, []).extend(new)
        share.dispatcher.forget_dead_letters(tuple(letter.position for letter in new))
        return new

    def keep(self, share: Share) -> None:
        """Keep a share's checkpoint, as the bus does, and confirm it."""
        if (commit := share.tell()) is not None:
            self.checkpoints[share.name] = Checkpoint(commit.position, commit.saved)
            share.confirm(commit.position)

    def take(self, outbox: Outbox, *, own: bool = False) -> None:
        """Take in all that an outbox has, and give each message its place, as the bus does.

        What the bus itself says is its ``own``.
        """
        while (message := outbox.peek()) is not None:
            outbox.sent()
            outbox.acknowledge(message.seq)
            topic, frame, payload = message.frames
            header, partition = unpack_header(frame, topic), partition_of(topic)
            incoming = Incoming(
                topic, parse_topic(topic), header, payload, partition, payload, decode_event(topic, payload)
            )
            if not own:
                incoming = self._runs.admit(incoming)
            offset = len(self.messages) + 1
            number = self.head.event_number + (partition == NO_PARTITION)
            placed = incoming.header._replace(offset=offset, event_number=number)
            self.messages.append(StoredMessage(incoming.topic, placed, incoming.payload))
            self._runs.count(incoming, offset)

    def leave(self, source: bytes) -> None:
        """Let a publisher go: as on the bus, a run that was begun and is not ended is ``lost``."""
        self._runs.leave(source, whole=True)
        self._runs.give_up(math.inf)
        for run_id in list(self._runs.ending):
            run = self._runs.by_id[run_id]
            end = run.end()
            self._outbox.put(end)
            self.take(self._outbox, own=True)
            self._runs.end(run, end, self.head.offset)


class MemoryPublisher:
    """Publishes on an in-memory bus at once, with the batching, order and counts of the real publisher.

    What cannot be encoded raises here, where the real one logs and counts it: in a test it is a mistake.
    """

    def __init__(self, store: MessageStore, name: str, lists: ListMode, batch_records: int) -> None:
        self.name = name
        self._store = store
        self._outbox = Outbox(uuid.uuid4().bytes, _NO_LIMIT)
        drops = Drops(name, "", lambda _, text: logger.warning("publisher %r: %s", name, text))
        options = BatchOptions(lists, batch_records, batch_s=float("inf"))
        self._composer = Composer(self._outbox, drops, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """How many records wait for their batch to be closed."""
        return self._composer.open_records

    def publish(self, event: EventBase) -> None:
        """Publish an event.

        Raises:
            TypeError, ValueError, OverflowError: it holds something that cannot travel.
        """
        self._composer.add(event)
        self._store.take(self._outbox)

    def record(
        self,
        run_id: str,
        phase: PhaseRef,
        metrics: Mapping[str, Any],
        fields: Mapping[str, Any],
        error: tuple[str, str, int | None] | None = None,
    ) -> None:
        """Publish a request's record: with the batch, once that is full or anything else is published.

        Raises:
            TypeError, ValueError: it is no record.
        """
        self._composer.add_record((run_id, phase, metrics, fields, error))
        self._store.take(self._outbox)

    def records(
        self,
        run_id: str,
        phase: PhaseRef,
        columns: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        errors: Mapping[int, tuple[str, str, int | None]] | None = None,
    ) -> None:
        """Publish many requests' records, given by columns; few of them are batched with others.

        Raises:
            TypeError, ValueError: they are no columns of one length.
        """
        for batch in cut(run_id, phase, columns, fields, errors):
            self._composer.add_columns(batch)
        self._store.take(self._outbox)

    def complete_run(self, run_id: str, status: RunStatus, reason: str = "") -> None:
        """Publish the run's last event, with the count of all that was published of it."""
        self._composer.complete(Completion(run_id, status, reason))
        self._store.take(self._outbox)

    def flush(self, timeout_s: float = 0.0) -> bool:  # noqa: ARG002 - as the real one has it
        """Close the open batches of records; return True."""
        self._composer.close_batches()
        self._store.take(self._outbox)
        return True

    def close(self, timeout_s: float = 0.0) -> None:
        """Close the open batches of records; a run that was not completed ends as ``lost``."""
        self.flush(timeout_s)
        self._store.leave(self._outbox.source)


class MemoryOutcome(Outcome[C]):
    """What a consumer or a group did on an in-memory bus, which its shares are hosted on here."""

    def __init__(self, bus: MessageStore, consumer: C, name: str) -> None:
        super().__init__(consumer)
        self._bus = bus
        self._publisher = bus.publisher(f"{name}{RESULTS_SUFFIX}")

    def _share(self, consumer: C, view: View, attempts: int | None = None) -> Share:
        consumer.context.publish = self._publish
        share = Share(consumer, view, uuid.uuid4().hex, self._give_receipt, attempts=attempts)
        share.dispatcher.first_wait_s = 0.0  # nothing passes in memory
        return share

    async def _flush(self, share: Share) -> bool:
        """Let an instance write out, and keep its checkpoint if it could; return whether it could."""
        self.dead_letters += self._bus.take_dead_letters(share)
        flushed = await share.flush()
        self.dead_letters += self._bus.take_dead_letters(share)  # of what was found out by writing it
        self._bus.keep(share)
        return flushed

    def _publish(self, event: EventBase) -> None:
        self.published.append(event)
        self._publisher.publish(event)

    async def _give_receipt(self, receipt: Receipt) -> bool:
        self.receipts[receipt.run_id] = receipt
        self._publisher.publish(receipt)
        return True
