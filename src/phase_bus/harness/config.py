"""The configuration of ``exec`` and ``up``: a YAML file, and ``--with`` on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import yaml
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from phase_bus.bus.options import BusOptions
from phase_bus.core.address import StreamAddress
from phase_bus.core.classes import import_extra, type_in_words
from phase_bus.core.numbers import check_finite
from phase_bus.errors import ConfigError, suggest
from phase_bus.harness.ending import CONSUMER_S
from phase_bus.journal.rows import Limits
from phase_bus.plugins.build import parse_use
from phase_bus.plugins.registry import Registry
from phase_bus.thresholds import Threshold, parse_thresholds

Place: TypeAlias = int | str | None
"""Where a process offers its health: ``[HOST:]PORT``; None for nowhere."""
JUDGE = "thresholds"
"""The consumer that judges by thresholds."""
FORWARDER = "forward"
"""The consumer that forwards everything to a stream in NATS."""
RESTARTS = 3
"""How often a consumer that dies is started again, unless its user says otherwise."""
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

    @property
    def judges(self) -> bool:
        """Whether it judges runs by thresholds."""
        return self.use == JUDGE

    @property
    def thresholds(self) -> tuple[str, ...]:
        """What it judges by, in the canonical spelling, as far as the file lists it."""
        listed = self.set.get("thresholds")
        if not self.judges or not isinstance(listed, list):
            return ()
        abort = self.set.get("abort_on_failure") is True
        texts = [each for each in listed if isinstance(each, str)]
        return tuple(each.text for each in parse_thresholds(texts, abort=abort))

    @classmethod
    def parse(cls, text: str) -> ConsumerConfig:
        """Read ``NAME`` or ``NAME:key=value,key=value``, where NAME may be ``module:Class``.

        Raises:
            ConfigError: if there are options without a name before them.
        """
        use, options = parse_use(text)
        return cls(use, set=options)


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
        restarts: how often each of them is started again if it dies.
        key_file: the file with the bus's key, for a tcp address; by default the user's own, if there is
            one, else a key is made for the occasion.
        insecure: ask nobody for a key.
        forward: the address of a stream in NATS that everything is forwarded to, if it is; the consumer
            ``forward`` among ``consumers`` does so.
        thresholds: what runs are held against, in the canonical spelling; the consumer ``thresholds`` among
            ``consumers`` judges them.
    """

    address: tuple[str, ...] = ()
    consumers: tuple[ConsumerConfig, ...] = ()
    thresholds: tuple[str, ...] = ()
    forward: str = ""
    bus: BusConfig = BusConfig()
    journal: bool = True
    data: str = ""
    limits: Limits = Limits()
    ready_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    stop_timeout_s: float = CONSUMER_S
    restarts: Annotated[int, Meta(ge=0)] = RESTARTS
    key_file: str | None = None
    insecure: bool = False


def load_config(
    path: Path | None,
    extra: Sequence[str],
    addresses: Sequence[str],
    workers: Sequence[str] = (),
    *,
    thresholds: Sequence[str] = (),
    abort: bool = False,
    forward: str = "",
) -> Config:
    """Return the configuration of a YAML file, if any, with what the command line adds.

    That is: further consumers, as :meth:`ConsumerConfig.parse` reads them, addresses that replace the
    file's, how many processes a consumer has, as ``NAME=N``, further thresholds, and where everything is
    forwarded to. With ``abort`` each threshold is to end a run that does not keep to it.

    Raises:
        ConfigError: if the file cannot be read, has an unknown key or a wrong value, two consumers have
            the same name, ``workers`` has an unknown name or no number, or a threshold is none.
    """
    config = Config() if path is None else _read(path)
    held = parse_thresholds((*config.thresholds, *thresholds), abort=abort)
    config = _judged(replace(config, thresholds=tuple(each.text for each in held)))
    config = _forwarding(replace(config, forward=forward or config.forward))
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
            raise ConfigError(f"--workers {text!r}: {_no_such(name, consumers)}")
        if not number.isdecimal() or not int(number):
            raise ConfigError(
                f"--workers {text!r}: {number!r} is not a number of processes; write {name}=4"
            )
        consumers[name] = replace(consumers[name], workers=int(number))
    return replace(config, consumers=tuple(consumers.values()), address=tuple(addresses) or config.address)


def _no_such(name: str, consumers: Mapping[str, ConsumerConfig]) -> str:
    """Return what is wrong with a consumer's name, and what to do."""
    if not name:
        return "write NAME=N"
    if name in Registry.load().consumers:
        return f"{name!r} is not among the consumers; add --with {name}"
    return f"no consumer is called {name!r}; write NAME=N{suggest(name, consumers)}"


def _judged(config: Config) -> Config:
    """Return a configuration with the consumer that judges its thresholds, if it has any."""
    if not config.thresholds:
        return config
    given = {"thresholds": list(config.thresholds)}
    consumers = list(config.consumers)
    for place, consumer in enumerate(consumers):
        if consumer.title == consumer.use == JUDGE and "thresholds" not in consumer.set:
            consumers[place] = replace(consumer, set={**consumer.set, **given})
            break
    else:
        consumers.append(ConsumerConfig(JUDGE, set=given))
    return replace(config, consumers=tuple(consumers))


def _forwarding(config: Config) -> Config:
    """Return a configuration with the consumer that forwards everything, if that is wanted."""
    if not config.forward:
        return config
    if not config.journal:
        raise ConfigError(
            "'forward' needs the bus's journal, to go on after a break; leave 'journal: false' out"
        )
    return replace(config, consumers=(*config.consumers, forwarder(config.forward)))


def forwarder(address: str) -> ConsumerConfig:
    """Return the consumer that forwards everything to a stream in NATS.

    Raises:
        AddressError: if that is no address of one.
        ConfigError: if what it needs is not installed.
    """
    to = StreamAddress.parse(address)
    import_extra("nats", "nats", "forwarding: ")
    return ConsumerConfig(FORWARDER, set={"to": str(to)})


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
    thresholds: tuple[Threshold, ...] = ()
    if isinstance(content, dict):
        try:
            thresholds = parse_thresholds(content.pop("thresholds", ()))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        if isinstance(address := content.get("address"), str):
            content["address"] = [address]
        if isinstance(listed := content.get("consumers"), list):
            content["consumers"] = list(map(_as_object, listed))
    try:
        check_finite(content)
        return replace(msgspec.convert(content, Config), thresholds=tuple(each.text for each in thresholds))
    except ValueError as error:  # msgspec's are, too
        raise ConfigError(f"{path}: {_explain(str(error))}") from error


def _as_object(listed: Any) -> Any:
    """Return a consumer of the file as an object, though it is written as for ``--with``."""
    if not isinstance(listed, str):
        return listed
    parsed = ConsumerConfig.parse(listed)
    return {"use": parsed.use, "set": parsed.set}


def _explain(message: str) -> str:
    """Return msgspec's message in the words of a YAML file."""
    where = _WHERE.search(message)
    place = f" in {where[1]}" if where and where[1] else ""
    message = _WHERE.sub("", message)
    unknown = _UNKNOWN.match(message)
    if unknown is None:
        told = type_in_words(message).replace("Object", "the file")
        of_value = told.startswith("must be") and place
        return f"{place.removeprefix(' in ')} {told}" if of_value else told + place
    struct = next((struct for key, struct in _BELOW.items() if place.startswith(f" in {key}")), Config)
    return f"unknown key {unknown[1]!r}{place}{suggest(unknown[1], struct.__struct_fields__)}"


_BELOW: dict[str, type[Struct]] = {"bus": BusConfig, "limits": Limits, "consumers": ConsumerConfig}
