"""A consumer group on the in-memory bus: an instance for each partition of the records, and the leader."""

from __future__ import annotations

from collections.abc import Callable

from phase_bus.consumer.account import RunAccount
from phase_bus.consumer.dispatcher import Saved, decode_saved
from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.control import EVENTS, PARTITIONS
from phase_bus.core.wire import partition_of, topic_prefix
from phase_bus.testing.outcome import C, StoredMessage
from phase_bus.testing.store import MemoryOutcome, MessageStore

_RUN_COMPLETE = topic_prefix("run_complete")


class GroupOutcome(MemoryOutcome[C]):
    """What a group did; ``consumer`` is the leader.

    Which processes the instances are in makes no difference to them: here they are all in one.

    Attributes:
        partitions: the other instances, by the partition whose records each gets.
    """

    def __init__(self, bus: MessageStore, build: Callable[[], C], name: str) -> None:
        super().__init__(bus, build(), name)
        self.partitions = {number: build() for number in range(PARTITIONS)}
        self._shares = {
            number: self._share(consumer, View.in_group(consumer, name, number))
            for number, consumer in ((EVENTS, self.consumer), *self.partitions.items())
        }
        self._shares[EVENTS].parts = self._parts
        self._merged: dict[int, bytes | None] = {}

    async def _run(self) -> None:
        """Start all instances, give each its events from its checkpoint on, let them flush and stop."""
        started: list[Share] = []
        try:
            for share in self._shares.values():
                await share.start()
                started.append(share)
                await share.begin(self._bus.checkpoints.get(share.name), self._bus.lineage)
            for message in self._bus.messages:  # the group may add to them
                await self._hand_out(message)
            for share in self._shares.values():
                await self._flush(share)
        finally:
            for share in started:
                await share.stop()

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
            await self.consumer.merge(changed)

    def _saved(self, share: Share) -> Saved:
        return decode_saved(self._bus.checkpoints[share.name].state or b"")

    def _parts(self, run_id: str) -> list[RunAccount]:
        """Return what the partitions received of a run."""
        shares = [s for s in self._shares.values() if not s.leads and s.name in self._bus.checkpoints]
        accounts = [self._saved(share).accounts for share in shares]
        return [runs[run_id] for runs in accounts if run_id in runs]
