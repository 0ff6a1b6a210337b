"""Options that several commands share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from phase_bus.core.address import Address, default_address
from phase_bus.core.client import BusClient
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.journal.rows import Limits

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
FromOption: TypeAlias = Annotated[str, Parameter(name="--from")]
RunOption: TypeAlias = Annotated[
    str | None, Parameter(name="--run", help="Only this run, or the 'latest'. Default: all.")
]
# For processes that another phase-bus process starts.
StopOnEof: TypeAlias = Annotated[bool, Parameter(name="--stop-on-eof", show=False)]


def _not_negative(_type: Any, value: float | None) -> None:
    if value is not None and not value >= 0:
        raise ValueError("Must not be negative.")


NOT_NEGATIVE = Parameter(validator=_not_negative)
_LIMITS = Limits()


@Parameter(name="*")
@dataclass(frozen=True)
class LimitOptions:
    """How much a journal keeps, as options of a command."""

    max_bytes: Annotated[
        int, NOT_NEGATIVE, Parameter(help="The size beyond which the oldest finished runs are pruned.")
    ] = _LIMITS.max_bytes
    max_age_s: Annotated[
        float, NOT_NEGATIVE, Parameter(help="The age beyond which finished runs are pruned, in seconds.")
    ] = _LIMITS.max_age_s
    max_runs: Annotated[int, NOT_NEGATIVE, Parameter(help="The number of runs kept.")] = _LIMITS.max_runs

    def limits(self) -> Limits:
        """Return them as the journal takes them."""
        return Limits(**asdict(self))


DEFAULT_LIMITS = LimitOptions()


def parse_address(text: str | None) -> Address:
    """Return the address given, or the default one."""
    return Address.parse(text or default_address())


def key_values(pairs: list[str] | None, option: str = "--set") -> dict[str, str]:
    """Read ``key=value`` pairs that were given by an option."""
    for pair in pairs or ():
        if "=" not in pair:
            raise ConfigError(f"{option} {pair!r}: write {option} key=value")
    return dict(pair.split("=", 1) for pair in pairs or ())


def parse_origin(text: str, *, checkpoint: bool = True) -> Origin:
    """Return where to begin to read: ``start``, ``now``, ``checkpoint``, or an offset."""
    words: tuple[Literal["start", "now", "checkpoint"], ...] = ("start", "now", "checkpoint")
    words = words if checkpoint else words[:2]
    for word in words:
        if text == word:
            return word
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise ConfigError(
        f"--from {text!r}: give {', '.join(map(repr, words))} or the offset after which to begin"
    )


def check_bus(address: Address) -> None:
    """Raise a PhaseBusError unless a bus answers."""
    with BusClient(address) as client:
        client.status()


def check_delivered(publisher: Publisher) -> None:
    """Raise a PhaseBusError unless a closed publisher has delivered everything."""
    if publisher.undelivered:
        raise PhaseBusError(
            f"{sum(publisher.undelivered.values())} events were not delivered to {publisher.address}; "
            "is the bus still running?"
        )
