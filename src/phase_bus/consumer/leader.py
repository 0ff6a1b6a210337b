"""What the leader of a consumer group does beside its share: merge states, hold back the ends of runs."""

from __future__ import annotations

import logging
import time

from phase_bus.consumer.account import RunAccount
from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.consumer.share import Share
from phase_bus.core.control import PARTITIONS
from phase_bus.core.wire import NO_PARTITION, decode_event, partition_of
from phase_bus.errors import PhaseBusError, StateError, WireError
from phase_bus.events import Loss, RunComplete
from phase_bus.journal.rows import Checkpoint

logger = logging.getLogger("phase_bus.consumer")

_LOOK_S = 1.0  # between two looks at what the partitions have come to
_LOOK_AT_END_S = 0.05  # likewise while the end of a run waits for them


class GroupLeader:
    """Leads a group: knows what the partitions have committed, and when they have come to a run's end.

    Attributes:
        share: that of events, with the instance that leads.
        positions: how far each partition has come, by its last commit.
        held_back: the end of a run that waits for the partitions, and its offset.
        handled: the runs whose end is handled, by a commit that the bus has kept: members let go of no
            run before.
    """

    def __init__(self, group: str, share: Share) -> None:
        self.share = share
        self.positions: dict[int, int] = {}
        self.held_back: tuple[RunComplete, int] | None = None
        self.handled = dict(share.dispatcher.handled)
        self.next_look_s = 0.0
        self._group = group
        share.parts, share.lost_by_others = self._accounts_of, self._untold
        self._committing = self.handled  # as the last commit has them, kept or not yet
        self._accounts: dict[int, dict[str, RunAccount]] = {}
        self._losses: dict[int, dict[str, Loss]] = {}
        self._unmerged: dict[int, bytes] = {}  # states that the instance has not taken over yet
        self._merged = False  # whether it has been handed anything yet

    # ---- the partitions ----

    @property
    def look_s(self) -> float:
        """How long to wait between two looks at the partitions."""
        return _LOOK_S if self.held_back is None else _LOOK_AT_END_S

    def look_soon(self) -> None:
        """Look at once if the end of a run waits: something was committed."""
        if self.held_back is not None:
            self.next_look_s = 0.0

    async def take_over(self, checkpoints: dict[int, Checkpoint]) -> None:
        """Hand the instance what partitions have committed; then the end of a run may wait no more.

        Raises:
            PhaseBusError: if a state cannot be read.
        """
        for partition, (position, saved) in checkpoints.items():
            self.positions[partition] = position.offset
            if saved is not None:
                try:
                    kept = decode_saved(saved)
                except WireError as error:
                    raise self._unreadable(f", partition {partition}", error) from error
                self._accounts[partition] = kept.accounts
                self._losses[partition] = kept.losses
                if kept.state is not None:
                    self._unmerged[partition] = kept.state
        await self._merge()
        if self.held_back is not None and self._has_all(*self.held_back):
            self.held_back = None

    async def _merge(self) -> None:
        unmerged, self._unmerged = dict(sorted(self._unmerged.items())), {}
        if not unmerged and self._merged:
            return
        self._merged = True  # so that the instance knows that it leads, whatever comes
        before = self.share.consumer.context.merged_offset
        self.share.consumer.context.merged_offset = self._committed_offset()
        try:
            await self.share.consumer.merge(unmerged)
        except StateError as error:
            raise self._unreadable("", error) from error
        except Exception:
            logger.exception("consumer group %r could not merge states; trying again", self._group)
            self.share.consumer.context.merged_offset = before
            self._unmerged = unmerged
            self.next_look_s = time.monotonic() + _LOOK_S

    def _committed_offset(self) -> int:
        """Return the offset that all partitions have come to; 0 until each of them has committed."""
        return min((self.positions.get(number, 0) for number in range(PARTITIONS)), default=0)

    def _unreadable(self, where: str, error: PhaseBusError) -> PhaseBusError:
        return PhaseBusError(
            f"consumer group {self._group!r}{where}: {error}; begin anew as another --group"
        )

    # ---- the ends of runs ----

    def holds_back(self, arrival: Arrival) -> bool:
        """Return whether the end of a run has to wait for the partitions."""
        offset = arrival.header.offset
        if offset <= self.share.follower.offset:
            return False
        try:
            end = decode_event(arrival.topic, arrival.payload)
            if not isinstance(end, RunComplete) or end.running or self._has_all(end, offset):
                return False
        except WireError:
            return False  # it becomes a dead letter, or nobody waits for what it names
        self.held_back = (end, offset)
        return True

    def _accounts_of(self, run_id: str) -> list[RunAccount]:
        """Return what the partitions received of a run."""
        return [runs[run_id] for _, runs in sorted(self._accounts.items()) if run_id in runs]

    def _untold(self) -> dict[str, Loss]:
        """Return what the partitions' shares have lost, and no receipt has told."""
        told = self.share.dispatcher.told_losses
        return {
            f"{partition}: {name}": loss
            for partition, losses in sorted(self._losses.items())
            for name, loss in losses.items()
            if f"{partition}: {name}" not in told
        }

    def committed(self) -> None:
        """Note that the runs whose end is handled by now are in the share's commit."""
        self._committing = dict(self.share.dispatcher.handled)

    def confirm(self) -> bool:
        """Note that the bus has kept that commit; return whether other runs are in it than before."""
        changed = self.handled != self._committing
        self.handled = self._committing
        return changed

    def _has_all(self, end: RunComplete, offset: int) -> bool:
        """Return whether every partition has come to a run's end: by counting, or by passing its offset.

        And whether the instance has taken over all that they have come to.
        """
        if self._unmerged or not self._merged:
            return False
        for name, published in end.published.items():
            topic = name.encode()
            partition = partition_of(topic)
            if partition == NO_PARTITION or self.positions.get(partition, -1) >= offset:
                continue
            account = self._accounts.get(partition, {}).get(end.run_id)
            if account is None or account.counts(topic).received < published:
                return False
        return True
