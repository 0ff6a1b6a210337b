"""The hook that publishes, and what it makes of other people's trackers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from phase_bus.core.wire import decode_event, encode_event, topic_of
from phase_bus.events import EventBase, PhaseComplete, PhaseRef, PhaseStats, PhaseTimeout, RunStart
from phase_bus.publisher.hooks import BasePhaseLifecycleHook, PhaseLifecycleHook, PublisherHook, to_stats


class Tracker:
    """A tracker with the counts that a test gives it."""

    def __init__(self, stats: Any) -> None:
        self._stats = stats

    def create_stats(self) -> Any:
        """Return them, or raise them."""
        if isinstance(self._stats, Exception):
            raise self._stats
        return self._stats


def test_the_protocol() -> None:
    """Both hooks are hooks by the protocol."""
    assert isinstance(BasePhaseLifecycleHook(), PhaseLifecycleHook)


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (PhaseStats(sent=5), PhaseStats(sent=5)),
        (SimpleNamespace(sent=np.int64(5), completed=4.0), PhaseStats(sent=5, completed=4)),
        (SimpleNamespace(expected_duration_s=10), PhaseStats(expected_duration_s=10.0)),
        (
            SimpleNamespace(sent="five", errors=float("nan"), timeout_triggered=True),
            PhaseStats(timeout_triggered=True),
        ),
        (MagicMock(), PhaseStats()),
        (ValueError("no counts today"), PhaseStats()),
    ],
)  # fmt: skip
def test_to_stats(stats: Any, expected: PhaseStats) -> None:
    """Counts of every make become ours, of types that the wire can carry; what cannot is left out."""
    made = to_stats(Tracker(stats))
    assert made == expected
    event = PhaseComplete(run_id="r", phase=PhaseRef("p"), stats=made)
    assert decode_event(topic_of(event), encode_event(event)) == event


async def test_publisher_hook() -> None:
    """Each call is one event of the run, of the phase it was called with."""
    events: list[EventBase] = []
    hook = PublisherHook(SimpleNamespace(publish=events.append), "r")
    tracker = Tracker(PhaseStats(in_flight=3))
    for phase in (SimpleNamespace(value="warmup"), "profiling", PhaseRef("own", index=7)):
        await hook.on_phase_start(phase, tracker)
        await hook.on_phase_sending_complete(phase, tracker)
        await hook.on_phase_timeout(phase, tracker)
        await hook.on_phase_complete(phase, tracker)
    assert isinstance(events[0], RunStart)
    kinds = ["phase_start", "phase_sending_complete", "phase_timeout", "phase_complete"]
    assert [event.kind for event in events[1:]] == kinds * 3
    timeouts = [event for event in events if isinstance(event, PhaseTimeout)]
    assert [event.phase for event in timeouts] == [
        PhaseRef("warmup", "warmup", 0),
        PhaseRef("profiling", "profiling", 1),
        PhaseRef("own", index=7),
    ]
    assert timeouts[0].requests_cut == 3
