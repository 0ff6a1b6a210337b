"""How runs end that their publishers do not end: the bus says that they are lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from phase_bus.bus.ledger import Ledger, lost
from phase_bus.bus.own_events import OwnEvents
from phase_bus.core.wire import Header

logger = logging.getLogger("phase_bus.bus")


class RunEnds:
    """Ends runs in the place of publishers that are gone.

    Args:
        ledger: the runs.
        own_events: numbers the ends.
        accept: takes in an event: its topic, header and payload.
        commit: puts into the stream what was taken in, and says if it is there.

    Attributes:
        lost: the runs whose end is still to be published, and why. One that is taken out goes on.
    """

    def __init__(
        self,
        ledger: Ledger,
        own_events: OwnEvents,
        accept: Callable[[bytes, Header, bytes], None],
        commit: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._own_events = own_events
        self._accept = accept
        self._commit = commit
        self.lost: dict[str, str] = {}

    def end(self, reason: str, source: bytes | None = None) -> None:
        """End the runs that are going on.

        Args:
            reason: why, in words.
            source: the publisher whose runs are meant, None for all.
        """
        self._commit()  # what was taken in may begin a run, or end it
        for run in self._ledger.open_runs(source):
            logger.warning("phase-bus bus: run %s is lost: %s", run.run_id, reason)
            self.lost[run.run_id] = reason
        self.publish()

    def publish(self) -> None:
        """Publish the end of runs that are lost; what the journal cannot take now comes later."""
        for run_id, reason in list(self.lost.items()):
            run = self._ledger.runs[run_id]
            event = lost(run, reason)
            self._accept(*self._own_events.number(event))
            if not self._commit():
                return
            self.lost.pop(run_id, None)
            self._ledger.end(run, event.status, event.ts_ns)
            self._ledger.note(run)
