"""One share of a consumer group's work, as a member of the group does it."""

from __future__ import annotations

import time

from phase_bus.consumer import Consumer, Handler, handlers_of, subscriptions_of
from phase_bus.consumer_process import EVENT_TOPICS
from phase_bus.control import EVENTS, Commit
from phase_bus.dispatcher import Dispatcher
from phase_bus.errors import ConfigError
from phase_bus.events import Records, RunComplete
from phase_bus.follower import Follower, PartitionFollower, Verdict
from phase_bus.wire import Header, partition_prefix, topic_prefix

_RUN_COMPLETE = topic_prefix("run_complete")
_IDLE_S = 5.0


class GroupShare:
    """A partition of the records, or all other events, with the consumer's instance for it.

    Args:
        consumer: the instance.
        share: the partition, or :data:`~phase_bus.control.EVENTS`.
        token: what the share was given to this member with.
        client_id: the member's.

    Attributes:
        lost: it belongs to somebody else by now.
        commit: what the bus is to keep of it and has not confirmed.
        position: where the last commit left it.
        changed: whether there is something to commit beside new events.
    """

    def __init__(self, consumer: Consumer, share: int, token: int, client_id: str) -> None:
        self.consumer = consumer
        self.share = share
        self.token = token
        self.lost = False
        self.commit: Commit | None = None
        self.position = 0
        self.changed = False
        self._committed_events = 0
        self._committed_s = 0.0
        handlers = check_shareable(consumer)
        self.leads = share == EVENTS
        self.topics: tuple[bytes, ...]
        if self.leads:
            # Its receipts are the group's, so they count records, which others receive.
            self._wanted = tuple(topic.encode() for topic in subscriptions_of(handlers))
            self.topics = EVENT_TOPICS
        else:
            handlers = {Records.kind: handlers.get(Records.kind) or handlers["*"]}
            self._wanted = self.topics = (partition_prefix(share),)
        self.dispatcher = Dispatcher(consumer, handlers, self._wanted, client_id)
        self._events = Follower(records=False)
        self._records = PartitionFollower()

    # ---- where it stands ----

    @property
    def offset(self) -> int:
        """All of the share up to here is handled."""
        return self._events.offset if self.leads else self._records.offset

    @property
    def replaying(self) -> bool:
        """Whether it reads from the journal."""
        return self._events.replaying if self.leads else self._records.replaying

    def replay(self) -> None:
        """Read from the journal: something may have been missed."""
        self._events.replaying = self._records.replaying = True

    def stand_at(self, position: int, saved: bytes | None) -> None:
        """Begin where the share was left.

        Raises:
            WireError: what was saved there cannot be read.
        """
        self.position = position
        if self.leads:
            self._events.stand_at(position, None if position else 0, replay=True)
        else:
            self._records.offset = position
        if saved is not None:
            self.dispatcher.restore(saved)

    def heartbeat(self, header: Header, last: int) -> None:
        """Take in where the stream stands, and the share's partition if it is one."""
        if self.leads:
            self._events.heartbeat(header)
        else:
            self._records.heartbeat(header.offset, last)

    def caught_up(self, offset: int, event_number: int) -> None:
        """Go live: the journal has nothing more for this share up to a position."""
        if self.leads:
            self._events.caught_up(offset, event_number)
        else:
            self._records.caught_up(offset)

    # ---- events ----

    def is_next(self, topic: bytes, header: Header, *, replayed: bool) -> bool:
        """Judge an event, and return whether it is to be handled now; one that came twice is counted."""
        if self.leads:
            verdict = self._events.replayed(header) if replayed else self._events.live(header)
        else:
            verdict = self._records.replayed(header) if replayed else self._records.live(header)
        if not topic.startswith((*self._wanted, _RUN_COMPLETE)):
            return False
        if verdict is Verdict.REPETITION:
            self.dispatcher.repetition(topic)
        return verdict is Verdict.HANDLE

    async def take(
        self, topic: bytes, header: Header, payload: bytes | memoryview, *, replayed: bool
    ) -> RunComplete | None:
        """Handle an event; return it if it ends a run.

        Raises:
            WireError: it cannot be read; it is counted as failed.
        """
        return await self.dispatcher.take(topic, header, payload, replayed=replayed)

    # ---- commits ----

    def is_due(self, ends_at: int) -> bool:
        """Return whether there is something to commit: events, or that a run's end was passed.

        That others' events went by is committed now and then, so that a loss does not keep the leader
        waiting for what never comes.
        """
        if self.dispatcher.received != self._committed_events or self.changed:
            return True
        idle = self.offset > self.position and time.monotonic() >= self._committed_s + _IDLE_S
        return idle or self.position < ends_at <= self.offset

    async def flush(self) -> bool:
        """Let the consumer write out; return whether it could, and may be committed."""
        return await self.dispatcher.flush()

    def prepare_commit(self) -> None:
        """Make the commit of what is written out."""
        self._committed_events = self.dispatcher.received
        self._committed_s = time.monotonic()
        self.changed = False
        self.position = self.offset
        self.commit = Commit(
            share=self.share,
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
