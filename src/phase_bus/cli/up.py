"""``phase-bus up``."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from phase_bus.cli.options import (
    AddressesOption,
    WithOption,
    WorkersOption,
    configure_logging,
    make_console,
)
from phase_bus.core.address import default_address

if TYPE_CHECKING:
    from phase_bus.harness.config import Config


def up(
    *,
    config: Annotated[Path | None, Parameter(name=["--config", "-c"])] = None,
    with_: WithOption = None,
    workers: WorkersOption = None,
    address: AddressesOption = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> None:
    """Run a bus and consumers in the foreground, for benchmarks started elsewhere.

    Several runs may come and go. Ctrl-C or SIGTERM lets the consumers finish and ends everything.

    For example:

        phase-bus up -c bus.yaml

        phase-bus up --with logging --address tcp://127.0.0.1:5670

    Args:
        config: A YAML file that names the consumers, their options, and addresses.
        quiet: Show nothing but what the consumers print, and what goes wrong.
    """
    from phase_bus.harness.config import load_config

    configure_logging()
    loaded = load_config(config, with_ or [], address or [], workers)
    if not loaded.address:
        loaded = load_config(config, with_ or [], [default_address()], workers)
    asyncio.run(_run(loaded, quiet))


async def _run(config: Config, quiet: bool) -> None:
    from phase_bus.harness.rig import Rig

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop.set)
    async with Rig(config, make_console(stderr=True), quiet=quiet) as rig:
        names = ", ".join(consumer.title for consumer in config.consumers) or "none"
        if not quiet:
            rig.progress.note(f"bus ready at {rig.address}; consumers ready: {names}; Ctrl-C ends it")
        await stop.wait()
        if not quiet:
            rig.progress.note("stopping")
