"""Options that several commands share."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter
from rich.console import Console

from phase_bus.core.address import Address, default_address
from phase_bus.errors import ConfigError, PhaseBusError

if TYPE_CHECKING:
    from phase_bus.consumer.origin import Origin
    from phase_bus.publisher.publisher import Publisher

_WIDE = 200

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
        negative=(),
        help="Where the bus can be reached: ipc://DIRECTORY, tcp://HOST:PORT (port 0: a free one), "
        "or both, by giving the option twice.",
    ),
]
JsonOption: TypeAlias = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print JSON, for scripts.")
]
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
        negative=(),
        help="A consumer to start: NAME, module:Class, hook:NAME, processor:NAME, each with options as "
        "NAME:key=value,key=value. May be repeated.",
    ),
]
WorkersOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--workers",
        negative=(),
        help="How many processes share the work of a consumer: NAME=N. May be repeated.",
    ),
]
QuietOption: TypeAlias = Annotated[
    bool,
    Parameter(
        name=["--quiet", "-q"],
        negative=(),
        help="Show nothing but what the consumers print, and what goes wrong.",
    ),
]
FromOption: TypeAlias = Annotated[str, Parameter(name="--from")]
# For processes that another phase-bus process starts.
StopOnEof: TypeAlias = Annotated[bool, Parameter(name="--stop-on-eof", negative=(), show=False)]


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


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for tables; into a file or pipe they get the width they need."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_WIDE)


def configure_logging() -> None:
    """Let what a process has to say go to standard error, a readable line each."""
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    ]
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        # The default one takes seconds over a large event, and prints all of it.
        exception_formatter=structlog.dev.plain_traceback,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
