"""The configuration of ``exec`` and ``up``: a YAML file, and ``--with`` on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import yaml
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from phase_bus.bus.options import BusOptions
from phase_bus.core.numbers import check_finite
from phase_bus.errors import ConfigError, suggest
from phase_bus.harness.ending import CONSUMER_S
from phase_bus.journal.rows import Limits
from phase_bus.plugins.registry import Registry

Place: TypeAlias = int | str | None
"""Where a process offers its health: ``[HOST:]PORT``; None for nowhere."""
_OPTION_START = re.compile(r",(?=[A-Za-z_][\w.]*=)")
_WHERE = re.compile(r" - at `\$?\.?(.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")


class ConsumerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A consumer to start.

    Attributes:
        use: its name in the registry, or ``module:Class``; ``hook:...``, ``hooks``, ``processor:...`` or
            ``processors`` for those in one process; ``consumers`` for all that are loaded without being
            named, each in its own.
        name: what to call it; the same as ``use`` by default.
        set: its options.
        workers: how many processes share its work, as a group of this name.
        health: where it offers its health; with several workers the first does so, and each other one at
            the next port.
    """

    use: str
    name: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    workers: Annotated[int, Meta(ge=1)] = 1
    health: Place = None

    @property
    def title(self) -> str:
        """What the consumer is called."""
        return self.name or self.use

    @classmethod
    def parse(cls, text: str) -> ConsumerConfig:
        """Read ``NAME`` or ``NAME:key=value,key=value``, where NAME may be ``module:Class``.

        Raises:
            ConfigError: if there are options without a name before them.
        """
        head, equals, tail = text.partition("=")
        if not equals:
            return cls(text)
        use, colon, first_key = head.rpartition(":")
        if not colon:
            raise ConfigError(f"--with {text!r}: no consumer; write NAME:{text}")
        pairs = (pair.partition("=") for pair in _OPTION_START.split(f"{first_key}={tail}"))
        return cls(use, set={key: value for key, _, value in pairs})


class BusConfig(BusOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bus to start.

    Attributes:
        health: where it offers its health.
    """

    health: Place = None


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bus with its consumers.

    Attributes:
        address: where the bus can be reached: ``ipc://...`` or ``group+ipc://...``, ``tcp://...``, or both.
        data: the directory of the journal; by default one of the bus's own.
        limits: how much the journal keeps.
        ready_timeout_s: how long the consumers may take to become ready.
        drain_timeout_s: how long they may take to handle a run's end.
        stop_timeout_s: how long each of them may take to end when it is asked to.
        key_file: the file with the bus's key, for a tcp address; by default the user's own, if there is
            one, else a key is made for the occasion.
        insecure: ask nobody for a key.
    """

    address: tuple[str, ...] = ()
    consumers: tuple[ConsumerConfig, ...] = ()
    bus: BusConfig = BusConfig()
    journal: bool = True
    data: str = ""
    limits: Limits = Limits()
    ready_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    stop_timeout_s: float = CONSUMER_S
    key_file: str | None = None
    insecure: bool = False


def load_config(
    path: Path | None, extra: Sequence[str], addresses: Sequence[str], workers: Sequence[str] = ()
) -> Config:
    """Return the configuration of a YAML file, if any, with what the command line adds.

    That is: further consumers, as :meth:`ConsumerConfig.parse` reads them, addresses that replace the
    file's, and how many processes a consumer has, as ``NAME=N``.

    Raises:
        ConfigError: if the file cannot be read, has an unknown key or a wrong value, two consumers have
            the same name, or ``workers`` has an unknown name or no number.
    """
    config = Config() if path is None else _read(path)
    consumers: dict[str, ConsumerConfig] = {}
    for consumer in _all_named([*config.consumers, *map(ConsumerConfig.parse, extra)]):
        if consumers.setdefault(consumer.title, consumer) is not consumer:
            raise ConfigError(
                f"two consumers are called {consumer.title!r}; give one of them a 'name' of its own "
                "in the YAML file (-c)"
            )
    for text in workers:
        name, _, number = text.rpartition("=")
        if name not in consumers:
            hint = suggest(name, consumers)
            raise ConfigError(f"--workers {text!r}: no consumer is called {name!r}; write NAME=N{hint}")
        if not number.isdecimal() or not int(number):
            raise ConfigError(
                f"--workers {text!r}: {number!r} is not a number of processes; write {name}=4"
            )
        consumers[name] = replace(consumers[name], workers=int(number))
    return replace(config, consumers=tuple(consumers.values()), address=tuple(addresses) or config.address)


def _all_named(consumers: Sequence[ConsumerConfig]) -> Iterator[ConsumerConfig]:
    """Yield consumers, ``consumers`` replaced by those that are loaded without being named."""
    for consumer in consumers:
        if consumer.use != "consumers":
            yield consumer
            continue
        if consumer.set or consumer.name:
            raise ConfigError(
                "'consumers' stands for several and has no name or options; name the one you mean"
            )
        loaded = [entry.name for entry in Registry.load().consumers.values() if entry.auto_load]
        if not loaded:
            raise ConfigError(
                "no consumer is loaded without being named; name one ('phase-bus consumers' lists them)"
            )
        yield from map(ConsumerConfig, loaded)


def _read(path: Path) -> Config:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give another file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if isinstance(content, dict):
        if isinstance(address := content.get("address"), str):
            content["address"] = [address]
        if isinstance(listed := content.get("consumers"), list):
            content["consumers"] = [{"use": each} if isinstance(each, str) else each for each in listed]
    try:
        check_finite(content)
        return msgspec.convert(content, Config)
    except ValueError as error:  # msgspec's are, too
        raise ConfigError(f"{path}: {_explain(str(error))}") from error


def _explain(message: str) -> str:
    """Return msgspec's message in the words of a YAML file."""
    where = _WHERE.search(message)
    place = f" in {where[1]}" if where and where[1] else ""
    message = _WHERE.sub("", message)
    unknown = _UNKNOWN.match(message)
    if unknown is None:
        return f"{message.replace('Object', 'the file').replace('`', chr(39))}{place}"
    struct = next((struct for key, struct in _BELOW.items() if place.startswith(f" in {key}")), Config)
    return f"unknown key {unknown[1]!r}{place}{suggest(unknown[1], struct.__struct_fields__)}"


_BELOW: dict[str, type[Struct]] = {"bus": BusConfig, "limits": Limits, "consumers": ConsumerConfig}
