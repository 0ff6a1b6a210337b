"""The publisher's bounded buffer of encoded events that the bus does not have yet."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice

from msgspec import Struct

from phase_bus.core.bundle import ARRAY_BYTES, BUNDLED_BYTES, LARGEST_BUNDLED_BYTES, join
from phase_bus.core.wire import (
    BUNDLED_MOST,
    HEADER,
    NO_STREAM,
    SIZE_BYTES,
    WIRE_VERSION,
    encode_event,
    topic_of,
    topic_prefix,
)
from phase_bus.events import EventBase, Records

_RECORDS = topic_prefix(Records.kind)


class Message(Struct, frozen=True, gc=False):
    """An encoded event, its source and numbers, the size of its frames, and its request records."""

    source: bytes
    seq: int
    topic: bytes
    topic_seq: int
    payload: bytes
    size_bytes: int
    records: int = 0

    @property
    def frames(self) -> tuple[bytes, bytes, bytes]:
        """Topic, header and payload."""
        header = HEADER.pack(
            WIRE_VERSION, NO_STREAM, self.records, self.source, self.seq, self.topic_seq, 0, 0, 0
        )
        return self.topic, header, self.payload


def frames_of(messages: Sequence[Message]) -> tuple[bytes, bytes, bytes]:
    """Return the frames of one message, or of several that :meth:`Outbox.together` gave, as a bundle."""
    topic, header, payload = messages[0].frames
    if len(messages) > 1:
        header, payload = join(header, [message.payload for message in messages])
    return topic, header, payload


class Outbox:
    """Encodes events, numbers them, and keeps them until they are acknowledged.

    Request records are refused once the limit is reached; all other events are always taken, since a
    run has few of them and each matters. What is refused gets no sequence number: a hole in a topic's
    sequence always means a loss on the way.

    The source is 16 bytes that name the publisher.

    Attributes:
        largest_bytes: the size that a message should not exceed, 0 for any.
        unsent: what is to be sent, the next one first; to be looked at only.
    """

    def __init__(self, source: bytes, limit_bytes: int) -> None:
        self.source = source
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self.last_seq = 0
        self.unsent: deque[Message] = deque()
        self._unacked: deque[Message] = deque()
        self.largest_bytes = 0
        self.in_flight_bytes = 0  # the size of what was sent and is not acknowledged
        self._topic_seqs: Counter[bytes] = Counter()

    @property
    def full(self) -> str:
        """What to say of records that are refused."""
        return f"the buffer of {self.limit_bytes} bytes is full"

    def __len__(self) -> int:
        return len(self.unsent) + len(self._unacked)

    def __iter__(self) -> Iterator[Message]:
        """Yield, in order, all that is not acknowledged."""
        yield from self._unacked
        yield from self.unsent

    @property
    def next_seq(self) -> int:
        """The lowest sequence number that is not acknowledged yet."""
        return next((message.seq for message in self), self.last_seq + 1)

    @property
    def in_flight(self) -> int:
        """How many events were sent and are not acknowledged."""
        return len(self._unacked)

    @property
    def sent_seq(self) -> int:
        """The highest sequence number that was sent, or needs no sending any more."""
        return self.unsent[0].seq - 1 if self.unsent else self.last_seq

    def is_too_large(self, topic: bytes, payload: bytes) -> bool:
        """Return whether an event would be larger than a message should be."""
        return 0 < self.largest_bytes < len(topic) + HEADER.size + len(payload)

    def put(self, event: EventBase, payload: bytes | None = None) -> bytes | None:
        """Encode and keep an event; return its topic, or None if it is records and there is no room.

        Args:
            payload: the event if it is encoded already.

        Raises:
            TypeError, ValueError, OverflowError: if the event holds something that cannot be encoded.
        """
        payload = encode_event(event) if payload is None else payload
        records = event.count if type(event) is Records else 0
        if records and self.size_bytes + len(payload) > self.limit_bytes:
            return None
        topic = topic_of(event)
        self.add(topic, payload, records)
        return topic

    def add(self, topic: bytes, payload: bytes, records: int) -> None:
        """Number and keep an event that is encoded."""
        seq, topic_seq = self.last_seq + 1, self._topic_seqs[topic] + 1
        self.last_seq = seq
        self._topic_seqs[topic] = topic_seq
        size_bytes = len(topic) + HEADER.size + len(payload)
        self.unsent.append(Message(self.source, seq, topic, topic_seq, payload, size_bytes, records))
        self.size_bytes += size_bytes

    def restore(self, message: Message) -> None:
        """Keep a message that was numbered before; call it in the order of the numbers."""
        self.last_seq = message.seq
        self.unsent.append(message)
        self.size_bytes += message.size_bytes

    def peek(self) -> Message | None:
        """Return the next message to send."""
        return self.unsent[0] if self.unsent else None

    def together(self, largest_bytes: int = 0) -> list[Message]:
        """Return the next messages to send that may go as one; none if everything is sent.

        Args:
            largest_bytes: the size of what goes as one, at most; 0 for any. One alone may have more.
        """
        unsent = self.unsent
        if len(unsent) < 2 or (topic := unsent[0].topic).startswith(_RECORDS):
            return [unsent[0]] if unsent else []
        room = BUNDLED_BYTES
        if largest_bytes:
            room = min(room, largest_bytes - len(topic) - HEADER.size - ARRAY_BYTES)
        messages: list[Message] = []
        for message in islice(unsent, BUNDLED_MOST):
            size = len(message.payload)
            room -= size + SIZE_BYTES
            if message.topic != topic or size > LARGEST_BUNDLED_BYTES or room < 0:
                break
            messages.append(message)
        return messages or [unsent[0]]

    def sent(self, count: int = 1) -> None:
        """Note that the next messages to send are on their way."""
        unsent, unacked, size = self.unsent, self._unacked, 0
        for _ in range(count):
            message = unsent.popleft()
            unacked.append(message)
            size += message.size_bytes
        self.in_flight_bytes += size

    def acknowledge(self, seq: int) -> None:
        """Let go of everything up to and including a sequence number, sent or not."""
        unsent, unacked, size = self.unsent, self._unacked, 0
        while unacked and unacked[0].seq <= seq:
            size += unacked.popleft().size_bytes
        self.in_flight_bytes -= size
        while unsent and unsent[0].seq <= seq:  # the bus has it from before
            size += unsent.popleft().size_bytes
        self.size_bytes -= size

    def rewind(self) -> None:
        """Send again, in order, all that is not acknowledged."""
        self.unsent.extendleft(reversed(self._unacked))
        self._unacked.clear()
        self.in_flight_bytes = 0

    def remaining(self) -> Counter[str]:
        """Return how many events of each topic are not acknowledged."""
        return Counter(message.topic.decode() for message in self)
