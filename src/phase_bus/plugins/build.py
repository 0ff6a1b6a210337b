"""From what a user names to a consumer that is ready to run: a consumer, or hooks or processors as one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.options import build_consumer, common_options, set_common
from phase_bus.errors import ConfigError
from phase_bus.plugins.registry import Registry

_OPTION_START = re.compile(r",(?=[A-Za-z_][\w.]*=)")


def build(registry: Registry, use: str, name: str, values: Mapping[str, Any]) -> Consumer:
    """Make what ``--with`` or ``consume`` name, ready to run, with its name on the bus and its options.

    ``use`` is ``NAME`` or ``module:Class`` of a consumer; ``hook:...`` or ``processor:...`` with one or
    several of these, separated by commas; or ``hooks`` or ``processors`` for all that are loaded without
    being named.

    Raises:
        PhaseBusError: if there is no such thing, or an option is wrong.
    """
    if not is_adapted(use):
        return build_consumer(registry.class_of("consumer", use), name, values)
    # Only here, since they take long to load.
    from phase_bus.plugins.adapters.hooks import HookConsumer
    from phase_bus.plugins.adapters.parts import choose
    from phase_bus.plugins.adapters.processors import ProcessorConsumer

    common = common_options(Consumer)
    kind, parts = choose(registry, use, name, {k: v for k, v in values.items() if k not in common})
    consumer = HookConsumer(parts) if kind == "hook" else ProcessorConsumer(parts)
    set_common(consumer, name, values)
    return named(consumer, name)


def parse_use(text: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME:key=value,key=value``, NAME may be ``module:Class``, into name and options.

    Raises:
        ConfigError: if there are options without a name before them.
    """
    head, equals, tail = text.partition("=")
    if not equals:
        return text, {}
    use, colon, first_key = head.rpartition(":")
    if not colon:
        raise ConfigError(f"{text!r} names no consumer; write NAME:{text}")
    pairs = (pair.partition("=") for pair in _OPTION_START.split(f"{first_key}={tail}"))
    return use, {key: value for key, _, value in pairs}


def group_of(registry: Registry, use: str) -> str:
    """Return the group that processes of what ``use`` names form by themselves, empty for none."""
    return "" if is_adapted(use) else str(registry.class_of("consumer", use).group)


def is_adapted(use: str) -> bool:
    """Return whether this names hooks or processors, rather than a consumer."""
    return use in ("hooks", "processors") or use.startswith(("hook:", "processor:"))
