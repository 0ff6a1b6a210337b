"""The hooks or processors of one process: which classes, in which order, with which options."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from phase_bus.consumer.options import build_object
from phase_bus.core.classes import one_line
from phase_bus.errors import ConsumerDefinitionError, ConsumerNotFoundError, OptionError, PhaseBusError
from phase_bus.plugins.registry import PRIORITY, Kind, Registry

logger = logging.getLogger("phase_bus.consumer")


@dataclass
class Part:
    """A hook or processor of a process, which is made anew for each run.

    Attributes:
        owner: the consumer it belongs to, for messages.
        prefix: what users write before the options' names.
    """

    name: str
    cls: Any
    priority: int
    owner: str
    options: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""
    _prepared: Any = None

    def prepare(self) -> None:
        """Make the first one, so that what is wrong shows before anything runs; see :meth:`make`."""
        self._prepared = self.make()

    def make(self) -> Any:
        """Return the prepared one the first time, then a new one each time.

        Raises:
            PhaseBusError: if an option is wrong, or the constructor fails.
        """
        if self._prepared is not None:
            prepared, self._prepared = self._prepared, None
            return prepared
        try:
            return build_object(self.cls, self.owner, self.options, self.prefix)
        except PhaseBusError:
            raise
        except Exception as error:  # it is somebody else's code
            raise ConsumerDefinitionError(
                f"consumer {self.owner!r}: the constructor of {self.name!r} failed ({one_line(error)})"
            ) from error


def choose(
    registry: Registry, use: str, owner: str, values: Mapping[str, Any]
) -> tuple[Kind, tuple[Part, ...]]:
    """Return what a ``hook:...``, ``hooks``, ``processor:...`` or ``processors`` stands for, in order.

    Options of one hook are written as they are, those of several as ``NAME.option``.

    Raises:
        PhaseBusError: if there is no such thing, or an option belongs to none of them.
    """
    word, _, names = use.partition(":")
    kind: Kind = "hook" if word.startswith("hook") else "processor"
    parts = _named(registry, kind, names.split(","), owner) if names else _loaded(registry, kind, owner)
    _share_out(parts, owner, values)
    parts = [part for part in parts if _is_prepared(part, named=bool(names))]
    if not parts:
        raise ConsumerNotFoundError(
            use,
            f"no {kind} is loaded without being named; name one as {kind}:NAME "
            "('phase-bus consumers' lists them)",
        )
    return kind, tuple(sorted(parts, key=attrgetter("priority")))


def _named(registry: Registry, kind: Kind, names: Sequence[str], owner: str) -> list[Part]:
    parts: dict[str, Part] = {}
    for name in map(str.strip, names):
        cls = registry.class_of(kind, name)
        entry = registry.of(kind).get(name)
        short = name.rpartition(":")[2]
        if short in parts:
            raise ConsumerDefinitionError(
                f"consumer {owner!r}: two are called {short!r}; run one of them as a consumer of its own"
            )
        parts[short] = Part(short, cls, entry.priority if entry else PRIORITY, owner)
    return list(parts.values())


def _loaded(registry: Registry, kind: Kind, owner: str) -> list[Part]:
    """Return all that need not be named; one that cannot be imported is reported and left out."""
    parts = []
    for entry in registry.of(kind).values():
        if entry.auto_load:
            try:
                parts.append(Part(entry.name, registry.class_of(kind, entry.name), entry.priority, owner))
            except ConsumerNotFoundError as error:
                logger.warning("%s; it is left out", error)
    return parts


def _is_prepared(part: Part, *, named: bool) -> bool:
    """Prepare a part; report one that cannot be, if nobody named it or gave it options."""
    try:
        part.prepare()
    except PhaseBusError as error:
        if named or part.options:
            raise
        logger.warning("%s; %r is left out", error, part.name)
        return False
    return True


def _share_out(parts: Sequence[Part], owner: str, values: Mapping[str, Any]) -> None:
    """Give each part its options."""
    by_name = {part.name: part for part in parts}
    for part in parts:
        part.prefix = "" if len(parts) == 1 else f"{part.name}."
    for key, value in values.items():
        name, dot, option = key.rpartition(".")
        if not dot and len(parts) == 1:
            name = parts[0].name
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise OptionError(owner, key, f"write it as NAME.{option}=..., with one of the names {known}")
        by_name[name].options[option] = value


async def awaited(result: Any) -> Any:
    """Return what a method returned, awaited if need be: methods may be plain functions too."""
    return await result if inspect.isawaitable(result) else result
