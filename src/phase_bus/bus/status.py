"""The bus's status, in parts of a size that nobody minds: computed once a turn, however many ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, zip_longest

import msgspec

from phase_bus.core.control import ClientInfo, GroupInfo, RunInfo, Status
from phase_bus.core.wire import encode_control

_PART_BYTES = 64 << 10
_encode = msgspec.msgpack.Encoder().encode

Info = ClientInfo | RunInfo | GroupInfo


class StatusParts:
    """Makes the parts, and keeps them until the next turn of the bus's loop.

    Args:
        head: returns what is in a part besides clients, runs and groups: more of it in the first one.
        rows: what is in parts, as functions that return it, in one order for each kind.
    """

    def __init__(
        self,
        head: Callable[[bool], Status],
        rows: Callable[[], Iterable[Iterable[Callable[[], Info]]]],
    ) -> None:
        self._head = head
        self._rows = rows
        self._all: list[Callable[[], Info]] = []
        self._made: dict[int, bytes] = {}

    def clear(self) -> None:
        """Begin a new turn."""
        if self._made:
            self._made.clear()
            self._all = []

    def part(self, after: int) -> bytes:
        """Return the encoded part that begins after so many clients, runs and groups."""
        made = self._made.get(after)
        if made is None:
            made = self._made[after] = self._make(after)
        return made

    def _make(self, after: int) -> bytes:
        if not self._made:
            # All kinds are in the first part: an old client knows no other.
            self._all = [row for row in chain.from_iterable(zip_longest(*self._rows())) if row is not None]
        found: dict[type[Info], list[Info]] = {ClientInfo: [], RunInfo: [], GroupInfo: []}
        status = self._head(after == 0)
        left_bytes = _PART_BYTES - len(_encode(status))
        end = after
        for end, row in enumerate(self._all[after:], after):
            info = row()
            left_bytes -= len(_encode(info))
            if left_bytes < 0 and end > after:
                break
            found[type(info)].append(info)
        else:
            end = 0
        return encode_control(
            msgspec.structs.replace(
                status,
                clients=tuple(found[ClientInfo]),
                runs=tuple(found[RunInfo]),
                groups=tuple(found[GroupInfo]),
                next=end,
            )
        )
