"""What the bus itself says to consumers, numbered as a publisher numbers its events."""

from __future__ import annotations

import uuid
from typing import NamedTuple

from phase_bus.core.outbox import Outbox
from phase_bus.core.wire import Header, unpack_header
from phase_bus.events import EventBase


class OwnEvent(NamedTuple):
    """An event of the bus's own, encoded; not yet in the stream."""

    topic: bytes
    header: Header
    payload: bytes


class OwnEvents:
    """Encodes and numbers the bus's own events, under a source of its own."""

    def __init__(self) -> None:
        self._outbox = Outbox(uuid.uuid4().bytes, 0)

    def number(self, event: EventBase) -> OwnEvent:
        """Give an event the next numbers."""
        self._outbox.put(event)
        message = self._outbox.peek()
        assert message is not None
        self._outbox.acknowledge(message.seq)  # nothing has to be sent again to oneself
        topic, header, payload = message.frames
        return OwnEvent(topic, unpack_header(header), payload)
