"""The members of consumer groups, as processes that come, are told what to work on, and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from phase_bus.bus.groups import Group, Groups
from phase_bus.bus.ledger import Ledger
from phase_bus.core.control import Assigned, Beat, ClientInfo, Hello, Reply

_SETTLE_S = 0.2  # members that start together are to share the work at once


class Members:
    """Takes members into their groups, and tells each what it is to work on.

    Args:
        groups: who is in which group, and what each member has of its work.
        ledger: by which connection each member is reached.
        reply: sends a message to a connection.
        crowd_until_s: until then, by :func:`time.monotonic`, more members are expected back from before
            a restart of the bus: the work is not shared out among the first ones.
    """

    def __init__(
        self,
        groups: Groups,
        ledger: Ledger,
        reply: Callable[[bytes, Reply], None],
        crowd_until_s: float,
    ) -> None:
        self._groups = groups
        self._ledger = ledger
        self._reply = reply
        self._crowd_until_s = crowd_until_s

    def join(self, identity: bytes, hello: Hello, now_s: float) -> float:
        """Take a consumer into its group, or tell it why not; return when to share out the work."""
        due_s = max(now_s + _SETTLE_S, self._crowd_until_s)
        problem = self._groups.join(hello.group, hello.client_id, hello.settings, due_s)
        if problem:
            self._reply(identity, Assigned(problem=problem))
        return due_s

    def group_of(self, client_id: str) -> Group | None:
        """Return the group of a client, None if it is in none."""
        return self._groups.of(client_id)

    def take_beat(self, beat: Beat) -> None:
        """Take in what a member holds and has done, and tell it, or all if need be, what follows."""
        group = self._groups.of(beat.client_id)
        if group is not None:
            changed = group.take_beat(beat)
            self._assign(group.members if changed else [beat.client_id], group)

    def leave(self, client_id: str) -> None:
        """Let a client go, whose shares, if it was a member, go to the others at once."""
        self._groups.leave(client_id)
        self.share_out(time.monotonic())

    def share_out(self, now_s: float) -> None:
        """Rebalance the groups for which it is time, and tell their members."""
        for group in self._groups.rebalance_due(now_s):
            self._assign(group.members, group)

    def client_infos(self, now_s: float) -> tuple[ClientInfo, ...]:
        """Return what is known of all clients, members of groups with their shares."""
        infos = self._ledger.client_infos(now_s)
        groups = [(info, self._groups.of(info.client_id)) for info in infos]
        return tuple(
            info if group is None else msgspec.structs.replace(info, shares=group.shares_of(info.client_id))
            for info, group in groups
        )

    def _assign(self, members: Iterable[str], group: Group) -> None:
        """Tell members what they are to work on, unless they act upon it already."""
        for member in members:
            client = self._ledger.clients.get(member)
            if client is not None and not group.is_current(member):
                self._reply(client.identity, group.assignment(member))
