"""What arrives at a consumer in one message: an event, or a bundle that may be handled in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

from phase_bus.consumer.raw import RawEvent
from phase_bus.core import bundle
from phase_bus.core.wire import Header, decode_event, unpack_header
from phase_bus.errors import WireError
from phase_bus.events import Event

Decoded: TypeAlias = Event | RawEvent | WireError | None
"""An event for a handler, why it cannot be decoded, or None for one of a kind that is not known."""


class Arrival:
    """What arrived in one message, as far as it is not done with.

    Args:
        header: of the message.
        sizes: those of a bundle's events, empty if it is none.

    Attributes:
        header: that of the next event.
        left: how many events are left.
    """

    __slots__ = ("_decoded", "_payload", "_sizes", "_whole", "header", "left", "topic")

    def __init__(
        self, topic: bytes, header: Header, payload: bytes | memoryview, sizes: Sequence[int] = ()
    ) -> None:
        self.topic = topic
        self.header = self._whole = header
        self.left = header.events
        self._payload = payload
        self._sizes = sizes
        self._decoded: Sequence[Decoded] | None = None

    @classmethod
    def of(cls, topic: bytes, header_frame: bytes, payload: memoryview) -> Arrival:
        """Return what arrived in three frames.

        Raises:
            WireError: if they are malformed.
        """
        header = unpack_header(header_frame, topic)
        if header.events == 1:
            return cls(topic, header, payload)
        return cls(topic, header, payload, bundle.sizes_of(header, header_frame, payload, topic))

    @property
    def payload(self) -> bytes | memoryview:
        """The payload of the next event."""
        return next(self._parts())[1]

    def done(self, count: int) -> None:
        """Be done with the next events."""
        self.left -= count
        if self.left:
            self.header = bundle.following(self.header, count)

    def drop(self) -> None:
        """Be done with all of it."""
        self.left = 0

    def events(self, *, raw: bool) -> Iterable[Decoded]:
        """Return the events that are left, each decoded unless it is to be ``raw``."""
        if self._decoded is None:
            self._decoded = (
                [RawEvent(self.topic, *part) for part in self._parts()] if raw else self._decode()
            )
        return self._decoded[-self.left :]

    def _parts(self) -> Iterator[tuple[Header, bytes | memoryview]]:
        """Return header and payload of each event that is left."""
        if not self._sizes:
            return iter(((self.header, self._payload),))
        parts = bundle.parts(self._whole, self._sizes, memoryview(self._payload))
        return islice(parts, len(self._sizes) - self.left, None)

    def _decode(self) -> Sequence[Decoded]:
        if not self._sizes:
            return (_decoded(self.topic, self._payload),)
        try:
            return bundle.decode_events(self.topic, self._payload)
        except WireError:  # it is to be known of which of them that is true
            each = bundle.payloads(self._sizes, memoryview(self._payload))
            return [_decoded(self.topic, payload) for payload in each]


def _decoded(topic: bytes, payload: bytes | memoryview) -> Event | WireError | None:
    try:
        return decode_event(topic, payload)
    except WireError as error:
        return error
