"""Which part of the stream a share is for: all of it, a group's events, or one partition of the records."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from phase_bus.consumer.consumer import Consumer, Handler, handlers_of, subscriptions_of
from phase_bus.consumer.follower import DirectFollower, Follower, OrderedFollower, PartitionFollower
from phase_bus.consumer.raw import RawConsumer
from phase_bus.core.control import EVENTS
from phase_bus.core.wire import partition_prefix, topic_prefix
from phase_bus.errors import ConfigError
from phase_bus.events import KINDS, Records
from phase_bus.journal.rows import checkpoint_name

# All kinds but records, wanted or not, so that no loss of an event can hide (docs/decisions/0007).
EVENT_TOPICS = tuple(topic_prefix(kind) for kind in KINDS if kind != Records.kind)
_RECORDS = topic_prefix(Records.kind)


class View(Struct, frozen=True, kw_only=True):
    """What a share sees of the stream.

    Attributes:
        wanted: the topic prefixes that the handlers ask for.
        topics: the topic prefixes that are subscribed to, so that no loss can hide.
        group: the group's name, empty for a consumer on its own.
        number: the partition, or :data:`~phase_bus.core.control.EVENTS` for everything else.
        epoch: that of the assignment in a group.
    """

    handlers: dict[str, Handler]
    wanted: tuple[bytes, ...]
    topics: tuple[bytes, ...]
    follower: Follower
    group: str = ""
    number: int = EVENTS
    epoch: int = 0

    @property
    def partition(self) -> int | None:
        """The partition whose records alone are read, if it is for one."""
        return None if self.number == EVENTS else self.number

    def ordered(self) -> View:
        """Return the same view where everything comes in order, and numbers show no holes."""
        return replace(self, follower=OrderedFollower(records=self.follower.records))

    @classmethod
    def whole(
        cls, consumer: Consumer, *, topics: tuple[str, ...] | None = None, direct: bool = False
    ) -> View:
        """Return the view of a consumer on its own: everything.

        Args:
            topics: take these prefixes instead of those that the handlers ask for.
            direct: the stream is that of a publisher in direct mode.
        """
        handlers = handlers_of(consumer)
        if topics is None:
            topics = ("",) if isinstance(consumer, RawConsumer) else subscriptions_of(handlers)
        wanted = tuple(topic.encode() for topic in topics)
        records = any(topic.startswith(_RECORDS) or _RECORDS.startswith(topic) for topic in wanted)
        if direct:
            subscribed = wanted
        elif records:
            subscribed = (b"",)  # everything: kinds that are newer than this program too
        else:
            subscribed = (*EVENT_TOPICS, *(topic for topic in wanted if not topic.startswith(EVENT_TOPICS)))
        return cls(
            handlers=handlers,
            wanted=wanted,
            topics=subscribed,
            follower=DirectFollower() if direct else Follower(records=records),
        )

    @classmethod
    def in_group(cls, consumer: Consumer, group: str, number: int, epoch: int = 0) -> View:
        """Return the view of a group's instance, which is told which partition it is for.

        Raises:
            ConfigError: if the consumer takes no records.
        """
        handlers = check_shareable(consumer)
        if number == EVENTS:
            # Its receipts are the group's, so they count records, which others receive.
            consumer.context.leads = True
            wanted = tuple(topic.encode() for topic in subscriptions_of(handlers))
            topics = EVENT_TOPICS
            follower: Follower = Follower(records=False)
        else:
            context, name = consumer.context, checkpoint_name(group, number)
            context.name, context.partition, context.log = name, number, context.log.bind(consumer=name)
            handlers = {Records.kind: handlers.get(Records.kind) or handlers["*"]}
            wanted = topics = (partition_prefix(number),)
            follower = PartitionFollower()
        return cls(
            handlers=handlers,
            wanted=wanted,
            topics=topics,
            follower=follower,
            group=group,
            number=number,
            epoch=epoch,
        )


def check_shareable(consumer: Consumer) -> dict[str, Handler]:
    """Return a consumer's handlers, if there is something in them to share.

    Raises:
        ConfigError: if it takes no records.
    """
    handlers = handlers_of(consumer)
    if Records.kind not in handlers and "*" not in handlers:
        raise ConfigError(
            f"consumer {consumer.name!r} takes no records, so there is nothing that a group of it could "
            "share; start it without a group"
        )
    return handlers
