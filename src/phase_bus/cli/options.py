"""Options that several commands share."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, TypeAlias

import structlog
from cyclopts import Parameter

from phase_bus.address import Address, default_address
from phase_bus.errors import ConfigError

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
WithOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--with",
        negative=(),
        help="A consumer to start: NAME, module:Class, or either with options: "
        "NAME:key=value,key=value. May be repeated.",
    ),
]
# For processes that another phase-bus process starts.
StopOnEof: TypeAlias = Annotated[bool, Parameter(name="--stop-on-eof", negative=(), show=False)]


def parse_address(text: str | None) -> Address:
    """Return the address given, or the default one."""
    return Address.parse(text or default_address())


def key_values(pairs: list[str] | None) -> dict[str, str]:
    """Read ``key=value`` pairs.

    Raises:
        ConfigError: one has no ``=``.
    """
    values = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r}: write --set key=value")
        values[key] = value
    return values


def configure_logging() -> None:
    """Let what a process has to say go to standard error, a readable line each."""
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
