"""phase-bus: follow AIPerf benchmark runs from independent processes, over ZeroMQ.

All that a program of one's own needs is here; names are loaded when they are first used, because AIPerf
imports this package even when its plugin is off. Beside it stand :mod:`phase_bus.events` (every kind of
event), :mod:`phase_bus.aggregation` (mergeable statistics) and :mod:`phase_bus.testing` (the test kit).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phase_bus.consumer.consumer import Consumer
    from phase_bus.consumer.runner import run_consumer
    from phase_bus.core.address import ADDRESS_VARIABLE
    from phase_bus.core.files import check_writable, write_whole
    from phase_bus.core.records import Column, RecordBatch
    from phase_bus.errors import ConfigError, OptionError, PhaseBusError
    from phase_bus.events import (
        Drop,
        Event,
        EventBase,
        PhaseComplete,
        PhaseEvent,
        PhaseKind,
        PhasePlan,
        PhaseProgress,
        PhaseRef,
        PhasesConfigured,
        PhaseSendingComplete,
        PhaseStart,
        PhaseStats,
        PhaseTimeout,
        Receipt,
        RecordError,
        Records,
        RunComplete,
        RunStart,
        RunStatus,
        Summary,
    )
    from phase_bus.publisher.hooks import (
        BasePhaseLifecycleHook,
        EventHook,
        PhaseLifecycleHook,
        PhaseTracker,
        PublisherHook,
    )
    from phase_bus.publisher.publisher import Publisher

__version__ = "0.1.0"

__all__ = [
    "ADDRESS_VARIABLE",
    "BasePhaseLifecycleHook",
    "Column",
    "ConfigError",
    "Consumer",
    "Drop",
    "Event",
    "EventBase",
    "EventHook",
    "OptionError",
    "PhaseBusError",
    "PhaseComplete",
    "PhaseEvent",
    "PhaseKind",
    "PhaseLifecycleHook",
    "PhasePlan",
    "PhaseProgress",
    "PhaseRef",
    "PhaseSendingComplete",
    "PhaseStart",
    "PhaseStats",
    "PhaseTimeout",
    "PhaseTracker",
    "PhasesConfigured",
    "Publisher",
    "PublisherHook",
    "Receipt",
    "RecordBatch",
    "RecordError",
    "Records",
    "RunComplete",
    "RunStart",
    "RunStatus",
    "Summary",
    "check_writable",
    "run_consumer",
    "write_whole",
]

# Where the names are that are not in phase_bus.events.
_MODULES = {
    "ADDRESS_VARIABLE": "core.address",
    "BasePhaseLifecycleHook": "publisher.hooks",
    "Column": "core.records",
    "ConfigError": "errors",
    "Consumer": "consumer.consumer",
    "EventHook": "publisher.hooks",
    "OptionError": "errors",
    "PhaseBusError": "errors",
    "PhaseLifecycleHook": "publisher.hooks",
    "PhaseTracker": "publisher.hooks",
    "Publisher": "publisher.publisher",
    "PublisherHook": "publisher.hooks",
    "RecordBatch": "core.records",
    "check_writable": "core.files",
    "run_consumer": "consumer.runner",
    "write_whole": "core.files",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'events')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
