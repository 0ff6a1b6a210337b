"""Options that several commands share."""

from __future__ import annotations

import os
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import docstring_parser
import msgspec
from cyclopts import Parameter
from msgspec import Struct

from phase_bus.core.address import ADDRESS_VARIABLE, Address, AnyAddress, StreamAddress, default_address
from phase_bus.core.client import BusClient
from phase_bus.core.numbers import check_finite
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.journal.rows import Limits
from phase_bus.journal.running import running_buses

if TYPE_CHECKING:
    from phase_bus.consumer.share import Origin
    from phase_bus.consumer.transport import OpenTransport
    from phase_bus.publisher.publisher import Publisher

_ADDRESS = (
    "Where the bus is: ipc://DIRECTORY, group+ipc://DIRECTORY (shared with its group) or tcp://HOST:PORT. "
    "Default: $PHASE_BUS_ADDRESS, else your own bus"
)
AddressOption: TypeAlias = Annotated[str | None, Parameter(name=["--address", "-a"], help=f"{_ADDRESS}.")]
FoundAddressOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name=["--address", "-a"], help=f"{_ADDRESS}; if that does not run, the only one of yours that does."
    ),
]
SourceAddressOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name=["--address", "-a"],
        help=f"{_ADDRESS}; if that does not run, the only one of yours that does. Or a stream in NATS that "
        "buses forward to: nats://HOST:PORT, more hosts after commas, /STREAM if it has a name of its own.",
    ),
]
AddressesOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name=["--address", "-a"],
        help="Where the bus can be reached: ipc://DIRECTORY (your user's alone) or group+ipc://DIRECTORY "
        "(shared with its group), tcp://HOST:PORT (port 0: a free one), or both, by giving the option "
        "twice.",
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
ThresholdOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--threshold",
        help="A limit for the run, such as 'time_to_first_token p99 < 500 ms'. May be repeated.",
    ),
]
ForwardOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--forward",
        help="Forward everything to a stream in NATS JetStream, where consumers elsewhere read it: "
        "nats://HOST:PORT, with more hosts after commas, and /STREAM if it has a name of its own.",
    ),
]
JunitOption: TypeAlias = Annotated[
    Path | None, Parameter(name="--junit", help="Write the verdicts to this file as JUnit's XML, for CI.")
]
MarkdownOption: TypeAlias = Annotated[
    Path | None,
    Parameter(name="--markdown", help="Write them to this file as a table for a pull request."),
]
OutputOption: TypeAlias = Annotated[Path | None, Parameter(name=["--output", "-o"])]
FromOption: TypeAlias = Annotated[str, Parameter(name="--from")]
RunOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--run",
        help="Only this run: its id or at least its first 4 letters, a label, or 'latest'. Default: all.",
    ),
]
# For processes that another phase-bus process starts.
StopOnEof: TypeAlias = Annotated[bool, Parameter(name="--stop-on-eof", show=False)]
NoNews: TypeAlias = Annotated[bool, Parameter(name="--no-news", show=False)]


def finite(_type: Any, value: Any) -> None:
    """Refuse NaN and infinity, as the command line does for every option without a validator."""
    check_finite(value)


def _not_negative(_type: Any, value: float | None) -> None:
    check_finite(value)
    if value is not None and not value >= 0:
        raise ValueError("Must not be negative.")


NOT_NEGATIVE = Parameter(validator=_not_negative)


def as_options(struct: type[Struct], *hidden: str) -> Any:
    """Return a dataclass that makes options of a Struct's fields, described as in its docstring."""
    told = docstring_parser.parse(struct.__doc__ or "").params
    helps = {each.arg_name: (each.description or "").replace("``", "'") for each in told}
    made = []
    for each in msgspec.structs.fields(struct):
        text = helps.get(each.name, "")
        text = text[:1].upper() + text[1:]
        check = None if isinstance(each.default, str) else _not_negative
        parameter = Parameter(help=text, show=each.name not in hidden, validator=check)
        made.append((each.name, Annotated[each.type, parameter], field(default=each.default)))
    namespace = {"__module__": __name__}  # else it passes for a type of Python's own
    return Parameter(name="*")(make_dataclass(struct.__name__, made, frozen=True, namespace=namespace))


if TYPE_CHECKING:
    LimitOptions = Limits
else:
    LimitOptions = as_options(Limits)
DEFAULT_LIMITS = LimitOptions()


def parse_address(text: str | None) -> Address:
    """Return the address given, or the default one."""
    return Address.parse(text or default_address())


def find_bus(address: str | None) -> Address:
    """Return the address given, the default one, or that of the only bus of this user that runs here.

    Raises:
        ConfigError: if none is given, and several run, but not at the default address.
    """
    default = parse_address(address)
    if address or os.environ.get(ADDRESS_VARIABLE):
        return default
    buses = [bus.address for bus in running_buses()]
    if str(default) in buses or not buses:
        return default
    if len(buses) > 1:
        raise ConfigError(f"{len(buses)} buses run here; choose one with --address: {', '.join(buses)}")
    return parse_address(buses[0])


def find_source(address: str | None) -> AnyAddress:
    """Return the address given, also that of a stream in NATS; else as :func:`find_bus` does."""
    given = address or os.environ.get(ADDRESS_VARIABLE, "")
    return StreamAddress.parse(given) if StreamAddress.is_meant(given) else find_bus(address)


def check_nats() -> None:
    """Raise a ConfigError unless what addresses of NATS need is installed."""
    try:
        import nats  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"addresses of NATS need the package {error.name!r}; install it with: "
            "pip install 'phase-bus[nats]'"
        ) from None


def transport_of(address: AnyAddress) -> OpenTransport:
    """Return what carries events from an address to consumers."""
    if isinstance(address, StreamAddress):
        check_nats()
        from phase_bus.jetstream.transport import JetStreamTransport

        return JetStreamTransport
    from phase_bus.consumer.zeromq import ZeroMqTransport

    return ZeroMqTransport


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
    """Raise a PhaseBusError unless a closed publisher has delivered everything, and nothing was refused."""
    if publisher.undelivered:
        raise PhaseBusError(
            f"{sum(publisher.undelivered.values())} events were not delivered to {publisher.address}; "
            "is the bus still running?"
        )
    if publisher.rejected:
        raise PhaseBusError(
            f"the bus at {publisher.address} refused {publisher.rejected} events, which are lost; its log, "
            "and the lines above, say why"
        )
