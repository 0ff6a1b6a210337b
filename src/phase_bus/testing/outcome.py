"""What a test sees of a bus, and of a consumer that runs or ran on it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, Self, TypeVar, overload

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.options import build_consumer
from phase_bus.core.control import DeadLetterNote
from phase_bus.core.wire import Header, decode_event
from phase_bus.events import Event, EventBase, Receipt
from phase_bus.journal.rows import Entry

C = TypeVar("C", bound=Consumer)
_E = TypeVar("_E", bound=EventBase)


class Outcome(Generic[C]):
    """What a consumer did.

    Attributes:
        consumer: the consumer, to look at what it did by itself.
        published: the events that it published, in order.
        receipts: the receipt for each run that ended, by run id: what it received, handled, wrote out.
        dead_letters: the events that its handlers failed on at every attempt, with the exceptions.
    """

    def __init__(self, consumer: C) -> None:
        self.consumer = consumer
        self.published: list[EventBase] = []
        self.receipts: dict[str, Receipt] = {}
        self.dead_letters: list[DeadLetterNote] = []

    @property
    def receipt(self) -> Receipt:
        """The receipt of the run that ended last.

        Raises:
            LookupError: no run has ended.
        """
        if not self.receipts:
            raise LookupError(f"consumer {self.consumer.name!r} has handled no run_complete so far")
        return list(self.receipts.values())[-1]

    @overload
    def of(self, kind: type[_E]) -> list[_E]: ...

    @overload
    def of(self) -> list[EventBase]: ...

    def of(self, kind: type[_E] | None = None) -> list[_E] | list[EventBase]:
        """Return what it published, or the events of one kind among that: ``run.of(Summary)``."""
        return [event for event in self.published if kind is None or isinstance(event, kind)]


class RunningOutcome(Outcome[C], ABC):
    """What a consumer did so far that runs inside ``async with``."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(self, *_error: object) -> None: ...

    @abstractmethod
    async def catch_up(self) -> None:
        """Have the consumer handle all that was published so far."""


class StoredMessage(NamedTuple):
    """An event as it is on the bus: its three frames, the header unpacked."""

    topic: bytes
    header: Header
    payload: bytes


class Bus(ABC):
    """What the bus in memory and the real one have in common."""

    @abstractmethod
    def _entries(self) -> Iterable[Entry | StoredMessage]:
        """Return all that is on the bus, in order."""

    @abstractmethod
    def consumer(self, consumer: C | type[C], **options: Any) -> RunningOutcome[C]:
        """Return a consumer that runs inside ``async with``."""

    @overload
    def events(self) -> list[Event]: ...

    @overload
    def events(self, kind: type[_E]) -> list[_E]: ...

    def events(self, kind: type[_E] | None = None) -> list[Event] | list[_E]:
        """Return all events so far, decoded, or those of one kind: ``bus.events(Summary)``."""
        decoded = [decode_event(entry.topic, entry.payload) for entry in self._entries()]
        return [
            event for event in decoded if event is not None and (kind is None or isinstance(event, kind))
        ]

    async def run_consumer(self, consumer: C | type[C], **options: Any) -> Outcome[C]:
        """Start a consumer, give it all events, let it flush and stop; return what it did.

        Arguments are those of :meth:`consumer`.
        """
        async with self.consumer(consumer, **options) as run:
            await run.catch_up()
        return run

    def run_consumer_sync(self, consumer: C | type[C], **options: Any) -> Outcome[C]:
        """Do the same in a test that is not async."""
        return asyncio.run(self.run_consumer(consumer, **options))


def prepare(consumer: C | type[C], name: str, options: dict[str, Any]) -> C:
    """Return a consumer with a name; a class is built with options, as the command line does.

    Raises:
        OptionError: an option that it does not have, that is missing, or whose value does not fit.
        ConsumerDefinitionError: the class itself is not right.
        TypeError: options were given, and the consumer is built already.
    """
    if isinstance(consumer, type):
        built = build_consumer(consumer, name or consumer.__name__, options)
        assert isinstance(built, consumer)
        return built
    if options:
        raise TypeError(f"{consumer!r} is built already: give its class and the options {list(options)}")
    return named(consumer, name or consumer.name or type(consumer).__name__)
