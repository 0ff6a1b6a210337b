"""What the leader of a consumer group knows of its partitions, and when they have come to a run's end."""

from __future__ import annotations

from phase_bus.account import RunAccount
from phase_bus.dispatcher import decode_saved
from phase_bus.events import RunComplete
from phase_bus.wire import NO_PARTITION, partition_of


class GroupLeader:
    """What the leader of a group knows of the partitions.

    Attributes:
        positions: how far each has come, by its last commit.
        unmerged: states that the leading instance has not taken over yet.
        held_back: the end of a run that waits for the partitions, and its offset.
        ends: of runs whose receipts are to be given.
        lost: runs that ended as lost.
        committing: the runs whose end is handled, as the last commit has them.
        handled: those of a commit that the bus has kept: members let go of no run before.
        next_look_s: when to look at the partitions again.
        merged: whether the leading instance has been handed anything yet.
    """

    def __init__(self) -> None:
        self.positions: dict[int, int] = {}
        self.unmerged: dict[int, bytes] = {}
        self.held_back: tuple[RunComplete, int] | None = None
        self.ends: dict[str, RunComplete] = {}
        self.lost: set[str] = set()
        self.committing: dict[str, bool] = {}
        self.handled: dict[str, bool] = {}
        self.next_look_s = 0.0
        self.merged = False
        self._accounts: dict[int, dict[str, RunAccount]] = {}

    def note(self, states: dict[int, tuple[int, bytes | None]]) -> None:
        """Take in what partitions have committed.

        Raises:
            WireError: it cannot be read.
        """
        for partition, (position, saved) in states.items():
            self.positions[partition] = position
            if saved is not None:
                kept = decode_saved(saved)
                self._accounts[partition] = kept.accounts
                if kept.state is not None:
                    self.unmerged[partition] = kept.state

    def accounts_of(self, run_id: str) -> list[RunAccount]:
        """Return what the partitions received of a run."""
        return [runs[run_id] for _, runs in sorted(self._accounts.items()) if run_id in runs]

    def has_all(self, end: RunComplete, offset: int) -> bool:
        """Return whether every partition has come to a run's end: by counting, or by passing its offset.

        And whether the instance has taken over all that they have come to.
        """
        if self.unmerged or not self.merged:
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
