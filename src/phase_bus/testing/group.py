"""A consumer group on the in-memory bus: an instance for each partition of the records, and the leader."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Generic

from phase_bus.consumer.account import RunAccount
from phase_bus.consumer.dispatcher import Saved, decode_saved
from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.control import EVENTS, PARTITIONS
from phase_bus.core.wire import partition_of, topic_prefix
from phase_bus.events import EventBase, Receipt
from phase_bus.testing.outcome import C, Outcome
from phase_bus.testing.store import MessageStore, StoredMessage

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
        self._shares: dict[int, Share] = {}
        self._merged: dict[int, bytes | None] = {}
        leader = self._take_up(build(), EVENTS)
        partitions = {number: self._take_up(build(), number) for number in range(PARTITIONS)}
        self.outcome = GroupOutcome(leader, partitions)
        self._shares[EVENTS].parts = self._parts

    async def run(self) -> GroupOutcome[C]:
        """Start all instances, give each its events, let them flush and stop."""
        started: list[Share] = []
        try:
            for share in self._shares.values():
                await share.start()
                started.append(share)
                await share.begin(self._bus.checkpoints.get(share.name))
            for message in self._bus.messages:  # the group may add to them
                await self._hand_out(message)
            for share in self._shares.values():
                await self._flush(share)
        finally:
            for share in started:
                await share.stop()
        return self.outcome

    def _take_up(self, consumer: C, number: int) -> C:
        """Make a share with its instance."""
        consumer.context.publish, consumer.context.journal_id = self._publish, self._bus.journal_id
        view = View.in_group(consumer, self._name, number)
        self._shares[number] = Share(consumer, view, uuid.uuid4().hex, self._give_receipt)
        return consumer

    async def _hand_out(self, message: StoredMessage) -> None:
        """Give an event to its share, unless that handled it in an earlier run of the group."""
        topic, header, payload = message
        share = self._shares[partition_of(topic)]  # that of events has the number of no partition
        if header.offset <= share.follower.offset:
            return
        if share.leads and topic.startswith(_RUN_COMPLETE):
            await self._merge()
        end = await share.handle(topic, header, payload, replayed=False)
        if end is not None:
            await self._flush(share)
            for each in self._shares.values():
                each.forget(end.run_id)

    async def _merge(self) -> None:
        """Let every partition write out, and hand the leader the states that changed."""
        changed: dict[int, bytes] = {}
        for number, share in self._shares.items():
            if not share.leads and await self._flush(share):
                state = self._saved(share).state
                if state is not None and state != self._merged.get(number):
                    changed[number] = self._merged[number] = state
        if changed:
            await self.outcome.consumer.merge(changed)

    async def _flush(self, share: Share) -> bool:
        """Let an instance write out, and keep its checkpoint if it could; return whether it could."""
        self.outcome._take_dead_letters(share)
        flushed = await share.flush()
        self._bus.keep(share)
        return flushed

    def _saved(self, share: Share) -> Saved:
        return decode_saved(self._bus.checkpoints[share.name].state or b"")

    def _parts(self, run_id: str) -> list[RunAccount]:
        """Return what the partitions received of a run."""
        shares = [s for s in self._shares.values() if not s.leads and s.name in self._bus.checkpoints]
        accounts = [self._saved(share).accounts for share in shares]
        return [runs[run_id] for runs in accounts if run_id in runs]

    def _publish(self, event: EventBase) -> None:
        self.outcome.published.append(event)
        self._publisher.publish(event)

    async def _give_receipt(self, receipt: Receipt) -> None:
        self.outcome.receipts[receipt.run_id] = receipt
        self._publisher.publish(receipt)
