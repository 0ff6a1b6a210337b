"""Phase hooks and post-processors, which know nothing of a bus, as consumers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.plugins.adapters.hooks import HookConsumer
from phase_bus.plugins.adapters.parts import choose
from phase_bus.plugins.adapters.processors import ProcessorConsumer

if TYPE_CHECKING:
    from phase_bus.plugins.registry import Registry


def adapt(registry: Registry, use: str, name: str, values: Mapping[str, Any]) -> Consumer:
    """Make the consumer that calls hooks or processors.

    Args:
        registry: where their names are looked up.
        use: ``hook:...``, ``hooks``, ``processor:...`` or ``processors``.
        name: what to call the consumer.
        values: the options of what it calls.

    Raises:
        PhaseBusError: something is not there, or its options are not right.
    """
    kind, parts = choose(registry, use, name, values)
    return named(HookConsumer(parts) if kind == "hook" else ProcessorConsumer(parts), name)
