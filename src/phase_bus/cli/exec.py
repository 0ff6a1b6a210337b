"""``phase-bus exec``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from phase_bus.cli.options import AddressesOption, WithOption, configure_logging
from phase_bus.config import Config, load_config
from phase_bus.errors import ConfigError
from phase_bus.foreground import check_command, run_in_foreground
from phase_bus.rig import Rig
from phase_bus.supervisor import describe_exit, environment, shell_code


def exec_command(
    *command: str,
    config: Annotated[Path | None, Parameter(name=["--config", "-c"])] = None,
    with_: WithOption = None,
    address: AddressesOption = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Run a benchmark command with a bus and consumers around it.

    Starts the bus and the consumers, waits until each is ready, runs COMMAND with the bus's address in
    its environment ($PHASE_BUS_ADDRESS), shows how the run goes, waits until every consumer has handled
    the end of the run, prints the result, stops everything, and exits with COMMAND's exit code.

    COMMAND may hold several runs one after another, or none. What phase-bus itself shows goes to
    standard error; standard input, output and the terminal are COMMAND's.

    For example:

        phase-bus exec --with logging --with aggregator -- aiperf profile -m my-model --url ...

        phase-bus exec -c bus.yaml -- ./nightly-benchmarks.sh

        phase-bus exec --with alerting:threshold_s=30 -- phase-bus simulate

    Args:
        command: The command and its arguments, after '--'.
        config: A YAML file that names the consumers, their options, and addresses.
        quiet: Show nothing but what the consumers print, and what goes wrong.
    """
    if not command:
        raise ConfigError("no command to run; write it after '--', as in: -- aiperf profile ...")
    check_command(command)
    configure_logging()
    return asyncio.run(_run(command, load_config(config, with_ or [], address or []), quiet))


async def _run(command: tuple[str, ...], config: Config, quiet: bool) -> int:
    console = Console(stderr=True, highlight=False)
    async with Rig(config, console, quiet=quiet) as rig:
        names = ", ".join(consumer.title for consumer in config.consumers) or "none"
        if not quiet:
            rig.progress.note(f"bus ready at {rig.address}; consumers ready: {names}")
        returncode = await run_in_foreground(command, environment(rig.address))
        await rig.settle(f"the command {describe_exit(returncode)} without ending the run")
        if not quiet:
            _print_results(rig, console)
            if not rig.progress.ended:
                rig.progress.note("the command published no run; 'phase-bus doctor' may say why")
    return shell_code(returncode)


def _print_results(rig: Rig, console: Console) -> None:
    from phase_bus.aggregation.summary import render_text

    for result in rig.progress.results.values():
        console.print()
        console.print(render_text(result, brief=True), soft_wrap=True, markup=False)
