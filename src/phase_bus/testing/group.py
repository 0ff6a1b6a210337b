"""A consumer group on the in-memory bus: an instance for each partition of the records, and the leader."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Generic

from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.consumer.share import GroupShare
from phase_bus.core.control import EVENTS, PARTITIONS
from phase_bus.core.wire import partition_of, topic_prefix
from phase_bus.events import EventBase, RunComplete
from phase_bus.testing.outcome import C, Outcome
from phase_bus.testing.store import Checkpoint, MessageStore, StoredMessage

_RUN_COMPLETE = topic_prefix("run_complete")


class GroupOutcome(Outcome[C]):
    """What a group did; ``consumer`` is the leader.

    Attributes:
        partitions: the other instances, by the partition whose records each gets.
    """

    def __init__(self, leader: C, partitions: dict[int, C]) -> None:
        super().__init__(leader)
        self.partitions = partitions


class MemoryGroup(Generic[C]):
    """Runs a group over all that is on a bus, from where one of its name stood, to the end.

    Which processes the instances are in makes no difference to them: here they are all in one.

    Args:
        bus: the bus.
        build: makes an instance.
        name: the group's name.
    """

    def __init__(self, bus: MessageStore, build: Callable[[], C], name: str) -> None:
        self._bus = bus
        self._name = name
        self._publisher = bus.publisher(f"{name} (results)")
        self._shares: dict[int, GroupShare] = {}
        self._merged: dict[int, bytes | None] = {}
        leader = self._take_up(build(), EVENTS)
        partitions = {number: self._take_up(build(), number) for number in range(PARTITIONS)}
        self.outcome = GroupOutcome(leader, partitions)

    async def run(self) -> GroupOutcome[C]:
        """Start all instances, give each its events, let them flush and stop."""
        started: list[GroupShare] = []
        try:
            for share in self._shares.values():
                await share.start(self._bus.checkpoints.get(share.name))
                started.append(share)
            for message in self._bus.messages:  # the group may add to them
                await self._give(message)
            for share in self._shares.values():
                await self._flush(share)
        finally:
            for share in started:
                await share.consumer.stop()
        return self.outcome

    def _take_up(self, consumer: C, number: int) -> C:
        """Make a share with its instance."""
        share = GroupShare(consumer, self._name, number, 0, uuid.uuid4().hex)
        self._shares[number] = share
        consumer.journal_id = self._bus.journal_id
        consumer._publish = self._publish
        return consumer

    async def _give(self, message: StoredMessage) -> None:
        """Give an event to its share's instance, unless it came to an earlier one."""
        topic, header, payload = message
        share = self._shares[partition_of(topic)]  # that of events has the number of no partition
        if header.offset <= share.follower.offset:
            return
        if share.leads and topic.startswith(_RUN_COMPLETE):
            await self._merge()
        if not share.is_next(topic, header, replayed=True):
            return
        end = await share.dispatcher.take(topic, header, payload, replayed=False)
        if end is not None:
            await self._finish(share, end)

    async def _merge(self) -> None:
        """Let every partition write out, and hand the leader the states that changed."""
        changed: dict[int, bytes] = {}
        for number, share in self._shares.items():
            if not share.leads and await self._flush(share):
                state = decode_saved(self._bus.checkpoints[share.name].saved).state
                if state is not None and state != self._merged.get(number):
                    changed[number] = self._merged[number] = state
        if changed:
            await self.outcome.consumer.merge(changed)

    async def _finish(self, share: GroupShare, end: RunComplete) -> None:
        """Give the group's receipt of a run, and let the partitions forget it."""
        await self._flush(share)
        names = (each.name for each in self._shares.values() if not each.leads)
        kept = [self._bus.checkpoints[name] for name in names if name in self._bus.checkpoints]
        accounts = [decode_saved(each.saved).accounts for each in kept]
        parts = [runs[end.run_id] for runs in accounts if end.run_id in runs]
        receipt = share.dispatcher.receipt(end, parts)
        self.outcome.receipts[end.run_id] = receipt
        self._publisher.publish(receipt)
        share.dispatcher.finished(end.run_id, whole=receipt.complete)
        for each in self._shares.values():
            each.forget(end.run_id)

    async def _flush(self, share: GroupShare) -> bool:
        """Let an instance write out, and keep its position if it could; return whether it could."""
        letters = share.dispatcher.dead_letters
        self.outcome.dead_letters += letters
        share.dispatcher.forget_dead_letters(tuple(letter.offset for letter in letters))
        if not await share.dispatcher.flush():
            return False
        self._bus.checkpoints[share.name] = Checkpoint(share.follower.offset, share.dispatcher.saved())
        return True

    def _publish(self, event: EventBase) -> None:
        self.outcome.published.append(event)
        self._publisher.publish(event)
