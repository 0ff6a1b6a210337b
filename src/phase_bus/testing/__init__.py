"""For tests of consumers, hooks and publishers: a bus in memory, a real one, and made-up runs.

The pytest plugin that comes with phase-bus offers the same as fixtures (:mod:`phase_bus.pytest_plugin`).
"""

from phase_bus.testing.factories import (
    PROFILING,
    RUN_ID,
    T0_NS,
    WARMUP,
    make_event,
    make_records,
    make_run,
    make_stats,
)
from phase_bus.testing.group import GroupOutcome
from phase_bus.testing.live import LiveBus, LiveRun
from phase_bus.testing.memory import MemoryBus, MemoryRun, run_consumer, run_consumer_sync
from phase_bus.testing.outcome import Outcome
from phase_bus.testing.store import MemoryPublisher
from phase_bus.testing.waiting import until, wait_until

__all__ = [
    "PROFILING",
    "RUN_ID",
    "T0_NS",
    "WARMUP",
    "GroupOutcome",
    "LiveBus",
    "LiveRun",
    "MemoryBus",
    "MemoryPublisher",
    "MemoryRun",
    "Outcome",
    "make_event",
    "make_records",
    "make_run",
    "make_stats",
    "run_consumer",
    "run_consumer_sync",
    "until",
    "wait_until",
]
