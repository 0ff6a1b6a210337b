"""``phase-bus consume``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

from cyclopts import Parameter

from phase_bus.cli.options import (
    AddressOption,
    FromOption,
    StopOnEof,
    configure_logging,
    key_values,
    parse_address,
    parse_origin,
)
from phase_bus.errors import ConfigError
from phase_bus.registry import Registry
from phase_bus.runner import ConsumerRunner


def consume(
    consumer: str,
    *,
    address: AddressOption = None,
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", negative=(), help="An option of the consumer: key=value. Repeatable."),
    ] = None,
    name: str | None = None,
    from_: FromOption = "checkpoint",
    stop_on_eof: StopOnEof = False,
) -> None:
    """Run one consumer, in this process, until Ctrl-C or SIGTERM.

    It waits for the bus if there is none yet. The first signal lets it finish what has arrived and write
    out; a second one ends it at once.

    For example:

        phase-bus consume logging --set verbose=true

        phase-bus consume my_module:MyConsumer --address tcp://127.0.0.1:5670

        phase-bus consume aggregator --from start

        phase-bus consume hook:my_module:MyHook --set log_file=phases.log

    Args:
        consumer: A name that 'phase-bus consumers' lists, or module:Class; 'hook:NAME' or
            'processor:NAME', also with module:Class for NAME and several by commas, runs classes that are
            written for a phase hook's or post-processor's protocol; 'hooks' or 'processors' runs all that
            are loaded without being named.
        name: What to call it on the bus, which remembers by this name how far it has come; by default
            the consumer's own name.
        from_: Where to begin: 'checkpoint', where it left off (or the start, if it never ran); 'start',
            the first event in the bus's journal; 'now', what comes from now on; or after an OFFSET.
    """
    configure_logging()
    where = parse_address(address)
    origin = parse_origin(from_)
    built = Registry.load().build(consumer, name or consumer, key_values(set_))

    async def run() -> None:
        runner = ConsumerRunner(built, where, origin=origin)
        runner.install_signals()
        if stop_on_eof:
            runner.stop_on_eof(sys.stdin.fileno())
        await runner.run()

    try:
        asyncio.run(run())
    except OSError as error:
        raise ConfigError(
            f"consumer {built.name!r}: {error}; check the files and addresses among its options"
        ) from error
