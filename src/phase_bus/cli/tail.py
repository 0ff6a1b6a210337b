"""``phase-bus tail``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

from cyclopts import Parameter

from phase_bus.cli.options import (
    FromOption,
    JsonOption,
    SourceAddressOption,
    find_source,
    parse_origin,
    transport_of,
)
from phase_bus.cli.output import configure_logging, end_with_reader, say
from phase_bus.harness.ending import CLIENT_S, Ending


def tail(
    *,
    address: SourceAddressOption = None,
    topic: Annotated[
        list[str] | None, Parameter(help="Only topics that begin so: 'phase_', 'records.', 'summary.' ...")
    ] = None,
    from_: FromOption = "now",
    json: JsonOption = False,
    count: int = 0,
) -> None:
    """Print events as they come, until Ctrl-C, or until nobody reads the output any more.

    If there is no bus yet, it waits for one, unlike 'watch' and 'status', which then exit with 2.

    A topic is 'KIND.RUN_ID$'; request records are on 'records.PARTITION.RUN_ID$'.

    For example:

        phase-bus tail
        phase-bus tail --topic phase_ --topic run_ --json
        phase-bus tail --from start --topic run_
        phase-bus tail --address nats://nats.example:4222

    Args:
        from_: Where to begin: 'now', with what comes from now on; 'start', the first event in the bus's
            journal; or after an OFFSET.
        count: End after so many events; 0 for never.
    """
    from phase_bus.cli.printer import Printer
    from phase_bus.consumer.consumer import named
    from phase_bus.consumer.runner import ConsumerRunner

    configure_logging()
    end_with_reader()
    printer = named(Printer(json, count), "tail")
    where = find_source(address)
    origin = parse_origin(from_, checkpoint=False)

    async def run(ending: Ending) -> None:
        runner = ConsumerRunner(
            printer,
            where,
            receipts=False,
            topics=tuple(topic) if topic else None,
            origin=origin,
            on_ready=lambda: say(f"listening at {where}"),
            transport=transport_of(where),
        )
        printer.done = runner.stop
        loop = asyncio.get_running_loop()
        ending.begin("tail", lambda: loop.call_soon_threadsafe(runner.stop))
        await runner.run()

    with Ending(say, CLIENT_S, output=sys.stdout.fileno()) as ending:
        asyncio.run(run(ending))
