"""What stands in a plugin's ``registry.yaml``, and where the files of installed plugins are."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct, field

Kind: TypeAlias = Literal["consumer", "hook", "processor"]

GROUP = "phase_bus.plugins"
AIPERF_GROUP = "aiperf.plugins"  # where a plugin of the developer guide says that it is there
DEFAULT_FILE = "registry.yaml"
OURS = f"phase_bus_consumers:{DEFAULT_FILE}"
PRIORITY = 50

# The section of the file that a kind of component stands in.
SECTIONS: dict[str, Kind] = {"consumers": "consumer", "phase_hooks": "hook", "post_processors": "processor"}


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

    Raises:
        ModuleNotFoundError: if there is no such package; finding it may raise anything else too, since the
            parents of a package are imported.
    """
    package, _, file = source.partition(":")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"there is no package {package!r}")
    return Path(os.fspath(next(iter(spec.submodule_search_locations)))) / file


def _source(value: str) -> str:
    package, _, file = value.replace(" ", "").partition(":")
    return f"{package}:{file or DEFAULT_FILE}"
