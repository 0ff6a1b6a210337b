"""phase-bus: follow AIPerf benchmark runs from independent processes, over ZeroMQ.

All that a program of one's own needs is here; names are loaded when they are first used, because AIPerf
imports this package even when its plugin is off. Beside it stand :mod:`phase_bus.events` (every kind of
event), :mod:`phase_bus.aggregation` (mergeable statistics), :mod:`phase_bus.thresholds` (judging runs) and
:mod:`phase_bus.testing` (the test kit).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # with 'as', which makes each name ours for type checkers too
    from phase_bus.consumer.consumer import Consumer as Consumer
    from phase_bus.consumer.rows import Answer as Answer
    from phase_bus.consumer.rows import DeniedError as DeniedError
    from phase_bus.consumer.rows import Origin as Origin
    from phase_bus.consumer.rows import RefusedRowsError as RefusedRowsError
    from phase_bus.consumer.rows import Row as Row
    from phase_bus.consumer.rows import UnavailableError as UnavailableError
    from phase_bus.consumer.runner import run_consumer as run_consumer
    from phase_bus.consumer.sink import Limits as Limits
    from phase_bus.consumer.sink import Sink as Sink
    from phase_bus.core.address import ADDRESS_VARIABLE as ADDRESS_VARIABLE
    from phase_bus.core.client import BusClient as BusClient
    from phase_bus.core.files import check_writable as check_writable
    from phase_bus.core.files import write_whole as write_whole
    from phase_bus.core.output_file import OutputFile as OutputFile
    from phase_bus.core.position import Position as Position
    from phase_bus.core.printable import printable as printable
    from phase_bus.core.printable import printable_json as printable_json
    from phase_bus.core.records import Column as Column
    from phase_bus.core.records import RecordBatch as RecordBatch
    from phase_bus.core.records import join_records as join_records
    from phase_bus.core.secret import Secret as Secret
    from phase_bus.errors import ConfigError as ConfigError
    from phase_bus.errors import OptionError as OptionError
    from phase_bus.errors import PhaseBusError as PhaseBusError
    from phase_bus.errors import StateError as StateError
    from phase_bus.events import Drop as Drop
    from phase_bus.events import Event as Event
    from phase_bus.events import EventBase as EventBase
    from phase_bus.events import JournalLoss as JournalLoss
    from phase_bus.events import Loss as Loss
    from phase_bus.events import PhaseComplete as PhaseComplete
    from phase_bus.events import PhaseEvent as PhaseEvent
    from phase_bus.events import PhaseKind as PhaseKind
    from phase_bus.events import PhasePlan as PhasePlan
    from phase_bus.events import PhaseProgress as PhaseProgress
    from phase_bus.events import PhaseRef as PhaseRef
    from phase_bus.events import PhasesConfigured as PhasesConfigured
    from phase_bus.events import PhaseSendingComplete as PhaseSendingComplete
    from phase_bus.events import PhaseStart as PhaseStart
    from phase_bus.events import PhaseStats as PhaseStats
    from phase_bus.events import PhaseTimeout as PhaseTimeout
    from phase_bus.events import Receipt as Receipt
    from phase_bus.events import RecordError as RecordError
    from phase_bus.events import Records as Records
    from phase_bus.events import RunComplete as RunComplete
    from phase_bus.events import RunStart as RunStart
    from phase_bus.events import RunStatus as RunStatus
    from phase_bus.events import Summary as Summary
    from phase_bus.events import Verdict as Verdict
    from phase_bus.publisher.hooks import BasePhaseLifecycleHook as BasePhaseLifecycleHook
    from phase_bus.publisher.hooks import EventHook as EventHook
    from phase_bus.publisher.hooks import PhaseLifecycleHook as PhaseLifecycleHook
    from phase_bus.publisher.hooks import PhaseTracker as PhaseTracker
    from phase_bus.publisher.hooks import PublisherHook as PublisherHook
    from phase_bus.publisher.publisher import Publisher as Publisher

__version__ = "0.1.0"


def front_door(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package that loads a name when it is used.

    As :pep:`562` has it. It is here, since the import of this package is to load no module.

    Args:
        package: its ``__name__``.
        names: what it offers, separated by spaces, by the modules in it that have them.
    """
    modules = {name: module for module, offered in names.items() for name in offered.split()}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return load, listed, sorted(modules)


__getattr__, __dir__, __all__ = front_door(
    __name__,
    {  # by the modules that they are loaded from
        "consumer.consumer": "Consumer",
        "consumer.runner": "run_consumer",
        "consumer.rows": "Answer DeniedError Origin RefusedRowsError Row UnavailableError",
        "consumer.sink": "Limits Sink",
        "core.address": "ADDRESS_VARIABLE",
        "core.client": "BusClient",
        "core.files": "check_writable write_whole",
        "core.output_file": "OutputFile",
        "core.position": "Position",
        "core.printable": "printable printable_json",
        "core.records": "Column RecordBatch join_records",
        "core.secret": "Secret",
        "errors": "ConfigError OptionError PhaseBusError StateError",
        "events": (
            "Drop Event EventBase JournalLoss Loss "
            "PhaseComplete PhaseEvent PhaseKind PhasePlan PhaseProgress PhaseRef "
            "PhaseSendingComplete PhaseStart PhaseStats PhaseTimeout PhasesConfigured Receipt "
            "RecordError Records RunComplete RunStart RunStatus Summary Verdict"
        ),
        "publisher.hooks": "BasePhaseLifecycleHook EventHook PhaseLifecycleHook PhaseTracker PublisherHook",
        "publisher.publisher": "Publisher",
    },
)
