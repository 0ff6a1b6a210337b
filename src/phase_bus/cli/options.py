"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter

from phase_bus.core.address import Address, default_address
from phase_bus.errors import ConfigError, PhaseBusError

if TYPE_CHECKING:
    from phase_bus.consumer.origin import Origin
    from phase_bus.publisher.publisher import Publisher

AddressOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name=["--address", "-a"],
        help="Where the bus is: ipc://DIRECTORY or tcp://HOST:PORT. "
        "Default: $PHASE_BUS_ADDRESS, else your own bus.",
    ),
]
AddressesOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name=["--address", "-a"],
        help="Where the bus can be reached: ipc://DIRECTORY, tcp://HOST:PORT (port 0: a free one), "
        "or both, by giving the option twice.",
    ),
]
JsonOption: TypeAlias = Annotated[bool, Parameter(name="--json", help="Print JSON, for scripts.")]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"], help="A YAML file that names the consumers, their options, and addresses."
    ),
]
WithOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--with",
        help="A consumer to start: NAME, module:Class, hook:NAME, processor:NAME, each with options as "
        "NAME:key=value,key=value. May be repeated.",
    ),
]
WorkersOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--workers",
        help="How many processes share the work of a consumer: NAME=N. May be repeated.",
    ),
]
QuietOption: TypeAlias = Annotated[
    bool,
    Parameter(
        name=["--quiet", "-q"],
        help="Show nothing but what the consumers print, and what goes wrong.",
    ),
]
FromOption: TypeAlias = Annotated[str, Parameter(name="--from")]
# For processes that another phase-bus process starts.
StopOnEof: TypeAlias = Annotated[bool, Parameter(name="--stop-on-eof", show=False)]


def parse_address(text: str | None) -> Address:
    """Return the address given, or the default one."""
    return Address.parse(text or default_address())


def key_values(pairs: list[str] | None, option: str = "--set") -> dict[str, str]:
    """Read ``key=value`` pairs that were given by an option.

    Raises:
        ConfigError: one has no ``=``.
    """
    values = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{option} {pair!r}: write {option} key=value")
        values[key] = value
    return values


def parse_origin(text: str, *, checkpoint: bool = True) -> Origin:
    """Return where to begin to read: ``start``, ``now``, ``checkpoint``, or an offset.

    Raises:
        ConfigError: it is none of these.
    """
    match text:
        case "start":
            return "start"
        case "now":
            return "now"
        case "checkpoint" if checkpoint:
            return "checkpoint"
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    words = "'start', 'now', 'checkpoint'" if checkpoint else "'start', 'now'"
    raise ConfigError(f"--from {text!r}: give {words} or the offset after which to begin")


def check_delivered(publisher: Publisher) -> None:
    """See that a closed publisher has delivered everything.

    Raises:
        PhaseBusError: it has not.
    """
    if publisher.undelivered:
        raise PhaseBusError(
            f"{sum(publisher.undelivered.values())} events were not delivered to {publisher.address}; "
            "is the bus still running?"
        )
