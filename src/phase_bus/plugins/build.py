"""From what a user names to a consumer that is ready to run: a consumer, or hooks or processors as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.options import build_consumer
from phase_bus.plugins.registry import Registry


def build(registry: Registry, use: str, name: str, values: Mapping[str, Any]) -> Consumer:
    """Make what ``--with`` or ``consume`` name, ready to run.

    Args:
        registry: where names are looked up.
        use: ``NAME`` or ``module:Class`` of a consumer; ``hook:...`` or ``processor:...`` with one or
            several of these, separated by commas; or ``hooks`` or ``processors`` for all that are loaded
            without being named.
        name: what to call it on the bus.
        values: its options, as text or as values.

    Raises:
        PhaseBusError: there is no such thing, or its options are not right.
    """
    if is_adapted(use):
        from phase_bus.plugins.adapters import adapt  # numpy and all: only for those who use it

        return adapt(registry, use, name, values)
    return build_consumer(registry.resolve(use), name, values)


def group_of(registry: Registry, use: str) -> str:
    """Return the group that processes of what ``use`` names form by themselves, empty for none.

    Raises:
        ConsumerNotFoundError: there is no such consumer.
    """
    return "" if is_adapted(use) else registry.resolve(use).group


def is_adapted(use: str) -> bool:
    """Return whether this names hooks or processors, rather than a consumer."""
    return use in ("hooks", "processors") or use.startswith(("hook:", "processor:"))
