"""Consumers that take events as they travel, of kinds that this program does not know, too."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.wire import Header, decode_event, parse_topic
from phase_bus.errors import WireError
from phase_bus.events import Int, RunComplete


class RawEvent(Struct, gc=False):
    """An event as it travels: nothing of it is decoded before that is asked for.

    Attributes:
        header: as the bus gave it.
        payload: the event in msgpack, maybe a view on what was received.
    """

    topic: bytes
    header: Header
    payload: bytes | memoryview

    @property
    def kind(self) -> str:
        """Its kind, by its topic."""
        return parse_topic(self.topic).kind

    @property
    def run_id(self) -> str:
        """Its run, by its topic."""
        return parse_topic(self.topic).run_id

    @property
    def ts_ns(self) -> int:
        """When it happened, in Unix ns; 0 if it does not say so."""
        try:
            return _decode_stamp(self.payload).ts_ns
        except msgspec.MsgspecError:
            return 0

    @property
    def end(self) -> RunComplete | None:
        """The event itself, if it is the end of a run, and no publisher goes on with that."""
        if self.kind != RunComplete.kind:
            return None
        try:
            event = decode_event(self.topic, self.payload)
        except WireError:  # the bus has taken it in, so it travels on
            return None
        return event if isinstance(event, RunComplete) and not event.running else None


class RawConsumer(Consumer):
    """A consumer with one handler, ``on_event``, that takes all events, each as a :class:`RawEvent`."""


class _Stamp(Struct):
    ts_ns: Int = 0


_decode_stamp = msgspec.msgpack.Decoder(_Stamp).decode
