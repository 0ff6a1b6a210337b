"""Finding consumers, hooks and processors by name: the ``registry.yaml`` of every installed plugin.

A plugin is a package with an entry point in the group ``phase_bus.plugins`` whose value is
``package:registry.yaml``. Its file is read without importing the package, and a class is imported only
when it is used, so a plugin that is broken, slow to import or unwanted costs the others nothing.

Our own plugin comes first, the others follow in the alphabetical order of their packages. Of two things
with one name the first counts; the other is left out and reported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict, replace

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.classes import Check, import_class, look_here_too, one_line
from phase_bus.errors import ConsumerNotFoundError, suggest

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["consumer", "hook", "processor"]

GROUP = "phase_bus.plugins"
AIPERF_GROUP = "aiperf.plugins"  # where a plugin of the developer guide says that it is there
DEFAULT_FILE = "registry.yaml"
OURS = f"phase_bus_consumers:{DEFAULT_FILE}"
PRIORITY = 50

# The section of the file that a kind of component stands in.
SECTIONS: dict[str, Kind] = {"consumers": "consumer", "phase_hooks": "hook", "post_processors": "processor"}
_METHODS = ("on_phase_start", "on_phase_sending_complete", "on_phase_complete", "on_phase_timeout")
WORDS = {"hook": "phase hook", "processor": "post-processor", "consumer": "consumer"}


class PluginInfo(Struct, frozen=True):
    """Who offers something; one that is not ``enabled`` is left out."""

    name: str
    version: str = ""
    description: str = ""
    author: str = ""
    enabled: bool = True


class Row(Struct, frozen=True):
    """One consumer, hook or processor.

    Attributes:
        target: its class, as ``module:Class``; ``class`` in the file.
        priority: its place among those of its kind, lowest first.
        auto_load: whether it is loaded without being named.
        config_params: the names of its options.
    """

    target: str = field(name="class")
    description: str = ""
    priority: int = PRIORITY
    tags: tuple[str, ...] = ()
    auto_load: bool = True
    config_params: tuple[str, ...] = ()


class PluginFile(Struct, frozen=True):
    """A whole file. Unknown keys are ignored: a newer phase-bus may know them."""

    plugin: PluginInfo
    consumers: dict[str, Row] | None = None
    phase_hooks: dict[str, Row] | None = None
    post_processors: dict[str, Row] | None = None

    def entries(self) -> Iterator[Entry]:
        """Yield all that the file offers."""
        for section, kind in SECTIONS.items():
            for name, row in (getattr(self, section) or {}).items():
                yield Entry(name=name, kind=kind, plugin=self.plugin.name, **asdict(row))


class Entry(Row, frozen=True, kw_only=True):
    """A consumer, hook or processor: its row in a plugin's file, with its name and kind, and the plugin."""

    name: str
    kind: Kind = "consumer"
    plugin: str = ""

    @property
    def use(self) -> str:
        """How users name it: ``NAME``, ``hook:NAME`` or ``processor:NAME``."""
        return self.name if self.kind == "consumer" else f"{self.kind}:{self.name}"


class Registry(Struct, frozen=True):
    """What can be used by name: consumers, hooks and processors, each in the order of priority."""

    consumers: dict[str, Entry] = {}
    hooks: dict[str, Entry] = {}
    processors: dict[str, Entry] = {}

    @classmethod
    def load(cls) -> Registry:
        """Read the registry of every plugin; one that cannot be read is reported and left out."""
        found: dict[tuple[str, str], Entry] = {}
        plugins: dict[str, str] = {}
        for source in installed_sources():
            file = _read(source)
            if file is None or not file.plugin.enabled:
                continue
            name = file.plugin.name
            if plugins.setdefault(name, source) != source:
                what = f"plugin {name!r} ({source})"
                _warn_taken(what, plugins[name], "give it another 'name' in its file")
            else:
                _add(file, found)
        ordered = sorted(found.values(), key=attrgetter("priority", "name"))
        return cls(*({e.name: e for e in ordered if e.kind == kind} for kind in SECTIONS.values()))

    def of(self, kind: Kind) -> dict[str, Entry]:
        """Return what there is of a kind, by name."""
        found: dict[str, Entry] = getattr(self, f"{kind}s")
        return found

    def entries(self) -> list[Entry]:
        """Return everything: consumers, hooks, processors, each in the order of priority."""
        return [entry for kind in SECTIONS.values() for entry in self.of(kind).values()]

    def class_of(self, kind: Kind, name: str) -> Any:
        """Return the class of a name or ``module:Class``; modules may be in the working directory too.

        Raises:
            ConsumerNotFoundError: if nothing has that name, or its class cannot be imported, or is of
                another kind.
        """
        shown = name if kind == "consumer" else f"{kind}:{name}"
        if ":" in name:
            look_here_too()
            return load_class(kind, shown, name)
        entry = self.of(kind).get(name)
        if entry is not None:
            return load_class(kind, shown, entry.target)
        for other in self.entries():
            if other.name == name:
                raise ConsumerNotFoundError(
                    shown, f"that is a {WORDS[other.kind]}; write it as {other.use!r}"
                )
        raise ConsumerNotFoundError(
            shown,
            f"no plugin has a {WORDS[kind]} of that name, and it is not a module:Class"
            + suggest(name, self.of(kind)),
        )


def load_class(kind: Kind, name: str, target: str) -> Any:
    """Import a class of a kind; see :meth:`Registry.class_of`."""
    wanted, what = _KINDS[kind]
    return import_class(name, target, wanted=wanted, what=what)


def _is_consumer(cls: type) -> bool:
    return issubclass(cls, Consumer) and cls is not Consumer


def _is_hook(cls: type) -> bool:
    return not issubclass(cls, Consumer) and any(callable(getattr(cls, m, None)) for m in _METHODS)


def _is_processor(cls: type) -> bool:
    return callable(getattr(cls, "process", None))


_KINDS: dict[str, tuple[Check, str]] = {
    "consumer": (_is_consumer, "a subclass of phase_bus.Consumer"),
    "hook": (_is_hook, f"a phase hook: it has none of {', '.join(_METHODS)}"),
    "processor": (_is_processor, "a post-processor: it has no method 'process'"),
}


def _read(source: str) -> PluginFile | None:
    try:
        return msgspec.yaml.decode(path_of(source).read_bytes(), type=PluginFile)
    except Exception as error:  # finding a package may run its parents' code
        logger.warning(
            "plugin %s is left out, its registry cannot be read: %s; "
            "'phase-bus consumers --validate' may say more",
            source,
            one_line(error),
        )
        return None


def _add(file: PluginFile, found: dict[tuple[str, str], Entry]) -> None:
    for entry in file.entries():
        taken = found.setdefault((entry.kind, entry.name), entry)
        if taken is not entry:
            what = f"{WORDS[entry.kind]} {entry.name!r} of plugin {entry.plugin!r}"
            remedy = f"use it as {replace(entry, name=entry.target).use}"
            _warn_taken(what, f"plugin {taken.plugin!r}", remedy)


def _warn_taken(what: str, first: str, remedy: str) -> None:
    logger.warning("%s is left out: %s has that name too, and comes first; %s", what, first, remedy)


# ---- files ----


def installed_sources() -> list[str]:
    """Return where the files of installed plugins are, as ``package:file``: ours first, then by name.

    The value of an entry point is ``package:file``, or ``package`` alone for its ``registry.yaml``. In
    AIPerf's own group only a ``registry.yaml`` counts: AIPerf's plugins have another kind of file there.
    """
    found = {_source(point.value) for point in entry_points(group=GROUP)}
    theirs = {_source(point.value) for point in entry_points(group=AIPERF_GROUP)}
    found |= {source for source in theirs if Path(source.partition(":")[2]).name == DEFAULT_FILE}
    # Ours even if it is only on the path, not installed.
    return [OURS, *sorted(found - {OURS})]


def path_of(source: str) -> Path:
    """Return the path of a plugin's file, without importing its package.

    Its package may be missing, and finding it may raise anything: the parents of a package are imported.
    """
    package, _, file = source.partition(":")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"there is no package {package!r}")
    return Path(os.fspath(next(iter(spec.submodule_search_locations)))) / file


def _source(value: str) -> str:
    package, _, file = value.replace(" ", "").partition(":")
    return f"{package}:{file or DEFAULT_FILE}"
