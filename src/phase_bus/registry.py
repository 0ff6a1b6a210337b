"""Finding consumers by name: the ``registry.yaml`` of every installed plugin, ours included.

A plugin is a package with an entry point in the group ``phase_bus.plugins`` whose value is
``package:registry.yaml``. Its file is read without importing the package, and a class is imported only
when it is used, so a plugin that is broken, slow to import or not wanted costs the others nothing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from phase_bus.consumer import Consumer
from phase_bus.errors import ConsumerNotFoundError, suggest

logger = logging.getLogger(__name__)

GROUP = "phase_bus.plugins"
_OURS = "phase_bus_consumers:registry.yaml"


class Entry(Struct, frozen=True, kw_only=True):
    """A consumer that a plugin offers.

    Attributes:
        name: what users call it.
        target: its class, as ``module:Class``.
        description: what it does, in one line.
        priority: its place in lists, lowest first.
        tags: words to find it by.
        plugin: the plugin that offers it.
    """

    name: str
    target: str
    description: str = ""
    priority: int = 50
    tags: tuple[str, ...] = ()
    plugin: str = ""


class Registry(Struct, frozen=True):
    """The consumers that can be used by name.

    Attributes:
        consumers: them by name, in the order of priority.
    """

    consumers: dict[str, Entry]

    @classmethod
    def load(cls) -> Registry:
        """Read the registry of every plugin; one that cannot be read is reported and left out."""
        consumers: dict[str, Entry] = {}
        for source in _sources():
            for entry in _read(source):
                taken = consumers.setdefault(entry.name, entry)
                if taken is not entry:
                    logger.warning(
                        "consumer %r of plugin %r is left out: plugin %r has that name too; use it as %s",
                        entry.name,
                        entry.plugin,
                        taken.plugin,
                        entry.target,
                    )
        return cls({e.name: e for e in sorted(consumers.values(), key=attrgetter("priority", "name"))})

    def resolve(self, name: str) -> type[Consumer]:
        """Return the class of a consumer, given by its name or as ``module:Class``.

        Modules are also looked for in the current working directory.

        Raises:
            ConsumerNotFoundError: nothing has that name, or the class does not import or is no consumer.
        """
        if ":" in name:
            here = str(Path.cwd())
            if here not in sys.path:
                sys.path.insert(0, here)
            return _import(name, name)
        entry = self.consumers.get(name)
        if entry is None:
            raise ConsumerNotFoundError(
                name,
                "no plugin has a consumer of that name, and it is no module:Class"
                + suggest(name, self.consumers),
            )
        return _import(name, entry.target)


class _Plugin(Struct, frozen=True):
    name: str
    enabled: bool = True


class _Row(Struct, frozen=True):
    target: str = field(name="class")
    description: str = ""
    priority: int = 50
    tags: tuple[str, ...] = ()


class _File(Struct, frozen=True):
    plugin: _Plugin
    consumers: dict[str, _Row] = {}


def _sources() -> list[str]:
    found = {point.value.replace(" ", "") for point in entry_points(group=GROUP)}
    # Ours first, so that no plugin takes its names; and even if it is only on the path, not installed.
    return [_OURS, *sorted(found - {_OURS})]


def _read(source: str) -> Iterator[Entry]:
    try:
        file = msgspec.yaml.decode(_path(source).read_bytes(), type=_File)
    except Exception as error:  # finding a package may run its parents' code
        logger.warning("plugin %s is left out, its registry cannot be read: %s", source, _line(error))
        return
    if file.plugin.enabled:
        for name, row in file.consumers.items():
            fields: dict[str, Any] = msgspec.structs.asdict(row)
            yield Entry(name=name, plugin=file.plugin.name, **fields)


def _path(source: str) -> Path:
    package, _, file = source.partition(":")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"there is no package {package!r}")
    return Path(os.fspath(next(iter(spec.submodule_search_locations)))) / file


def _import(name: str, target: str) -> type[Consumer]:
    module_name, _, class_name = target.partition(":")
    if not module_name or not class_name:
        raise ConsumerNotFoundError(name, "write it as module:Class, such as my_consumers:SlowPhase")
    try:
        module = import_module(module_name)
    except Exception as error:  # a module may fail with anything
        raise ConsumerNotFoundError(
            name, f"module {module_name!r} cannot be imported ({_line(error)})"
        ) from error
    try:
        cls = attrgetter(class_name)(module)
    except AttributeError:
        raise ConsumerNotFoundError(
            name, f"module {module_name!r} has no {class_name!r}{suggest(class_name, _classes(module))}"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, Consumer)):
        raise ConsumerNotFoundError(name, f"{target} is not a subclass of phase_bus.consumer.Consumer")
    return cls


def _classes(module: object) -> list[str]:
    members = vars(module).items()
    return [
        name
        for name, value in members
        if isinstance(value, type) and issubclass(value, Consumer) and value is not Consumer
    ]


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
