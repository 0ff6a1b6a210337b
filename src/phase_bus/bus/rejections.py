"""What the bus refused: how often, why, and where the last came from."""

from __future__ import annotations

import threading
import time

from phase_bus.core.control import RejectionInfo

MALFORMED = "malformed"


class Rejections:
    """Counts by reason, from any thread. The reasons are words of this program, so that there are few.

    What a message is refused for is the :attr:`~phase_bus.errors.WireError.counted_as` of its error.
    """

    def __init__(self) -> None:
        self._by_reason: dict[str, RejectionInfo] = {}
        self._lock = threading.Lock()

    def count(self, reason: str, where: str = "", number: int = 1) -> None:
        """Count something that was refused, and where it came from as far as that is known."""
        with self._lock:
            before = self._by_reason.get(reason)
            self._by_reason[reason] = RejectionInfo(
                reason=reason,
                count=number + (before.count if before else 0),
                last_from=where or (before.last_from if before else ""),
                last_ns=time.time_ns(),
            )

    def of(self, reason: str) -> int:
        """Return how often something was refused for a reason."""
        info = self._by_reason.get(reason)
        return info.count if info else 0

    def infos(self) -> tuple[RejectionInfo, ...]:
        """Return what others may know."""
        with self._lock:
            return tuple(self._by_reason.values())
