"""One share of a consumer group's work, as a member of the group does it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from phase_bus.consumer.consumer import Consumer, Handler, handlers_of, subscriptions_of
from phase_bus.consumer.dispatcher import Dispatcher
from phase_bus.consumer.follower import Follower, PartitionFollower, Verdict
from phase_bus.consumer.live import EVENT_TOPICS
from phase_bus.consumer.origin import begin_at
from phase_bus.core.control import EVENTS, Commit
from phase_bus.core.wire import Header, partition_prefix, topic_prefix
from phase_bus.errors import ConfigError
from phase_bus.events import Records
from phase_bus.journal.rows import checkpoint_name

_RUN_COMPLETE = topic_prefix("run_complete")
_IDLE_S = 5.0


class GroupShare:
    """A partition of the records, or all other events, with the consumer's instance for it.

    Args:
        consumer: the instance; it is told which partition it is for.
        group: the group's name.
        number: the partition, or :data:`~phase_bus.core.control.EVENTS`.
        token: what the share was given to this member with.
        client_id: the member's.

    Attributes:
        name: what its position is kept under.
        leads: whether it is the share of events, whose owner leads the group.
        partition: None if it leads.
        topics: what it subscribes to.
        dispatcher: gives the instance its events.
        follower: where it stands.
        lost: it belongs to somebody else by now.
        commit: what the bus is to keep of it and has not confirmed.
        position: where the last commit left it.
        changed: whether there is something to commit beside new events.
    """

    def __init__(self, consumer: Consumer, group: str, number: int, token: int, client_id: str) -> None:
        self.consumer = consumer
        self.number = number
        self.token = token
        self.name = checkpoint_name(group, number)
        self.leads = number == EVENTS
        self.partition = None if self.leads else number
        self.lost = False
        self.commit: Commit | None = None
        self.position = 0
        self.changed = False
        self._committed_events = 0
        self._committed_s = 0.0
        handlers = check_shareable(consumer)
        self.topics: tuple[bytes, ...]
        self.follower: Follower | PartitionFollower
        if self.leads:
            # Its receipts are the group's, so they count records, which others receive.
            wanted = tuple(topic.encode() for topic in subscriptions_of(handlers))
            self.topics = EVENT_TOPICS
            self.follower = Follower(records=False)
        else:
            consumer.name, consumer.partition = self.name, number
            handlers = {Records.kind: handlers.get(Records.kind) or handlers["*"]}
            wanted = self.topics = (partition_prefix(number),)
            self.follower = PartitionFollower()
        self._handled_topics = (*wanted, _RUN_COMPLETE)
        self.dispatcher = Dispatcher(consumer, handlers, wanted, client_id)

    async def start(self, kept: tuple[int, bytes | None] | None) -> None:
        """Start the instance, and begin where the share was left.

        Args:
            kept: the last commit's position, and what was saved there; None for none.

        Raises:
            WireError: what was saved there cannot be read.
        """
        await self.consumer.start()
        try:
            stored = await self.consumer.position()
            self.dispatcher.done_offset = stored or 0
            self.position, saved = begin_at(kept, stored)
            self.follower.stand_at(self.position)
            if saved is not None:
                self.dispatcher.restore(saved)
        except BaseException:
            await self.consumer.stop()
            raise

    def heartbeat(self, header: Header, last_offsets: Mapping[int, int]) -> None:
        """Take in where the stream stands.

        Args:
            header: the heartbeat's.
            last_offsets: the offset of the last records in each partition.
        """
        self.follower.heartbeat(header._replace(previous=last_offsets.get(self.number, 0)))

    def is_next(self, topic: bytes, header: Header, *, replayed: bool) -> bool:
        """Judge an event, and return whether it is to be handled now; one that came twice is counted."""
        verdict = self.follower.replayed(header) if replayed else self.follower.live(header)
        if not topic.startswith(self._handled_topics):
            return False
        if verdict is Verdict.REPETITION:
            self.dispatcher.repetition(topic)
        return verdict is Verdict.HANDLE

    # ---- commits ----

    def is_due(self, ends_at: int) -> bool:
        """Return whether there is something to commit: events, or that a run's end was passed.

        That others' events went by is committed now and then, so that a loss does not keep the leader
        waiting for what never comes.
        """
        if self.dispatcher.received != self._committed_events or self.changed:
            return True
        idle = self.follower.offset > self.position and time.monotonic() >= self._committed_s + _IDLE_S
        return idle or self.has_passed(ends_at)

    def has_passed(self, offset: int) -> bool:
        """Return whether it has come to an offset since its last commit."""
        return self.position < offset <= self.follower.offset

    def prepare_commit(self) -> None:
        """Make the commit of what is written out."""
        self._committed_events = self.dispatcher.received
        self._committed_s = time.monotonic()
        self.changed = False
        self.position = self.follower.offset
        self.commit = Commit(
            share=self.number,
            token=self.token,
            position=self.position,
            saved=self.dispatcher.saved(),
            dead_letters=tuple(self.dispatcher.dead_letters),
        )

    def confirm(self, position: int) -> bool:
        """Note that the bus has kept the commit at a position; return whether it is the latest one."""
        if self.commit is None or self.commit.position != position:
            return False
        self.commit = None
        return True

    def forget(self, run_id: str) -> None:
        """Let go of a run of which the group has handled everything."""
        if not self.leads and self.dispatcher.forget(run_id):
            self.consumer.forget(run_id)
            self.changed = True


def check_shareable(consumer: Consumer) -> dict[str, Handler]:
    """Return a consumer's handlers, if there is something in them to share.

    Raises:
        ConfigError: it takes no records.
    """
    handlers = handlers_of(consumer)
    if Records.kind not in handlers and "*" not in handlers:
        raise ConfigError(
            f"consumer {consumer.name!r} takes no records, so there is nothing that a group of it could "
            "share; start it without a group"
        )
    return handlers
