"""Runs of a moment ago: servers take nothing that is to come, or long past."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from phase_bus.events import EventBase

_E = TypeVar("_E", bound=EventBase)


def recent(events: Sequence[_E]) -> list[_E]:
    """Return the events of a run as if it had just ended."""
    later_ns = time.time_ns() - max(event.ts_ns for event in events)
    return [msgspec.structs.replace(event, ts_ns=event.ts_ns + later_ns) for event in events]
