"""What is to be had of a consumer that runs, or ran, in a test."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.options import build_consumer
from phase_bus.consumer.share import Share
from phase_bus.core.control import DeadLetterNote
from phase_bus.events import EventBase, Receipt

C = TypeVar("C", bound=Consumer)
_E = TypeVar("_E", bound=EventBase)


class Outcome(Generic[C]):
    """What a consumer did.

    Args:
        consumer: the consumer.

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

    def _take_dead_letters(self, share: Share) -> list[DeadLetterNote]:
        """Take over a share's new dead letters, as the bus does; return them."""
        new = share.dispatcher.dead_letters
        self.dead_letters += new
        share.dispatcher.forget_dead_letters(tuple(letter.offset for letter in new))
        return new

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
