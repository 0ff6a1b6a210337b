"""The consumers that come with phase-bus: logging, metrics, aggregation, alerting, and the sinks.

Each is a short file that uses nothing but phase-bus's public API, and is found through ``registry.yaml``
like anyone else's. The classes below also run inside a load generator, without a bus; they are imported
when first asked for, so that a consumer process loads only what it runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phase_bus import __version__

if TYPE_CHECKING:
    from phase_bus_consumers.logging import ExampleLoggingHook as ExampleLoggingHook
    from phase_bus_consumers.metrics import ExampleMetricsCollectorHook as ExampleMetricsCollectorHook
    from phase_bus_consumers.processors import ExampleMetricsProcessor as ExampleMetricsProcessor
    from phase_bus_consumers.processors import ExampleResultsAggregator as ExampleResultsAggregator
    from phase_bus_consumers.processors import ProcessingResult as ProcessingResult

_MODULES = {
    "ExampleLoggingHook": "logging",
    "ExampleMetricsCollectorHook": "metrics",
    "ExampleMetricsProcessor": "processors",
    "ExampleResultsAggregator": "processors",
    "ProcessingResult": "processors",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
