"""When a run of AIPerf is over, and how it ended."""

from __future__ import annotations

import threading

from phase_bus.aiperf.mapping import Outcome

QUIET_S = 0.1


class RunEnd:
    """Decides when nothing more of a run will come, so that its end is published once, and last.

    The order of things in AIPerf 0.13, measured (seconds from ``finalize()``):

    ====================== ======================= =========== =========== ============ =========
    case                   all_records_received    results     stop()      last record  SIGKILL
    ====================== ======================= =========== =========== ============ =========
    natural end            -0.09 to -0.03          +0.00-0.07  +0.01-0.08  before       +0.5
    one SIGINT             never                   +0.05-0.08  +0.12-0.15  up to +0.14  +0.5
    two SIGINT, SIGTERM    never                   never       never       before       at once
    ====================== ======================= =========== =========== ============ =========

    So ``finalize()`` is not the end: after an interrupt, records come later. A run is over as soon as its
    results are known (they also say how it ended) and either AIPerf has said that all records are in,
    or none came for ``QUIET_S``. If neither is so at ``stop()``, it ends the run a moment later with
    what is known. A process that is killed publishes no end: the bus then declares the run lost.

    Thread-safe. Times are those of :func:`time.monotonic`, given by the caller.
    """

    def __init__(self) -> None:
        self.over = False
        self.late = 0
        self._outcome: Outcome | None = None
        self._all_in = False
        self._quiet_since_s = 0.0
        self._lock = threading.Lock()

    def all_records_in(self) -> None:
        """Note that AIPerf has all records."""
        self._all_in = True

    def results(self, outcome: Outcome, now_s: float) -> None:
        """Note that AIPerf's results are known, and how the run ended by them."""
        with self._lock:
            if self._outcome is None:
                self._outcome = outcome
                self._quiet_since_s = max(self._quiet_since_s, now_s)

    def record(self, now_s: float) -> bool:
        """Note a record after ``finalize()``; return False if it is too late to be counted."""
        with self._lock:
            if self.over:
                self.late += 1
                return False
            self._quiet_since_s = now_s
        return True

    def take(self, now_s: float, otherwise: Outcome | None = None) -> Outcome | None:
        """Return how the run ended, once, when it is over; else None.

        With ``otherwise`` it is over now, and ended so if AIPerf's results are not known.
        """
        with self._lock:
            if self.over:
                return None
            settled = self._all_in or now_s - self._quiet_since_s >= QUIET_S
            if otherwise is None and (self._outcome is None or not settled):
                return None
            self.over = True
            return self._outcome or otherwise
