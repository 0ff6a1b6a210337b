"""``phase-bus exec``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console

from phase_bus.cli.options import (
    AddressesOption,
    WithOption,
    WorkersOption,
    configure_logging,
    make_console,
)
from phase_bus.errors import ConfigError
from phase_bus.harness.foreground import check_command, run_in_foreground
from phase_bus.journal.paths import exec_journal_directory
from phase_bus.reporting.receipts import ledger_in_brief, ledger_table

if TYPE_CHECKING:
    from phase_bus.harness.config import Config
    from phase_bus.harness.rig import Rig

NOT_EVERYTHING_HANDLED = 3


def exec_command(
    *command: str,
    config: Annotated[Path | None, Parameter(name=["--config", "-c"])] = None,
    with_: WithOption = None,
    workers: WorkersOption = None,
    address: AddressesOption = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Run a benchmark command with a bus and consumers around it.

    Starts the bus and the consumers, waits until each is ready, runs COMMAND with the bus's address in
    its environment ($PHASE_BUS_ADDRESS), shows how the run goes, waits until every consumer has handled
    the end of the run, prints the result, stops everything, and exits with COMMAND's exit code; or with
    3, if COMMAND succeeded and a consumer did not handle everything that was published for it.

    COMMAND may hold several runs one after another, or none. What phase-bus itself shows goes to
    standard error; standard input, output and the terminal are COMMAND's.

    For example:

        phase-bus exec --with logging --with aggregator -- aiperf profile -m my-model --url ...

        phase-bus exec --with aggregator --workers aggregator=4 -- aiperf profile ...

        phase-bus exec -c bus.yaml -- ./nightly-benchmarks.sh

        phase-bus exec --with alerting:threshold_s=30 -- phase-bus simulate

    Args:
        command: The command and its arguments, after '--'.
        config: A YAML file that names the consumers, their options, and addresses.
        quiet: Show nothing but what the consumers print, and what goes wrong.
    """
    from phase_bus.harness.config import load_config

    if not command:
        raise ConfigError("no command to run; write it after '--', as in: -- aiperf profile ...")
    check_command(command)
    configure_logging()
    loaded = load_config(config, with_ or [], address or [], workers)
    if not loaded.data:
        loaded = msgspec.structs.replace(loaded, data=str(exec_journal_directory()))
    return asyncio.run(_run(command, loaded, quiet))


async def _run(command: tuple[str, ...], config: Config, quiet: bool) -> int:
    from phase_bus.harness.rig import Rig
    from phase_bus.harness.supervisor import describe_exit, environment, shell_code

    console = make_console(stderr=True)
    async with Rig(config, console, quiet=quiet) as rig:
        names = ", ".join(consumer.title for consumer in config.consumers) or "none"
        if not quiet:
            rig.progress.note(f"bus ready at {rig.address}; consumers ready: {names}")
        returncode = await run_in_foreground(command, environment(rig.address))
        await rig.settle(f"the command {describe_exit(returncode)} without ending the run")
        if not quiet:
            _print_results(rig, console)
            _print_ledger(rig, console)
            if not rig.progress.ended:
                rig.progress.note("the command published no run; 'phase-bus doctor' may say why")
    if returncode == 0 and not rig.whole:
        return NOT_EVERYTHING_HANDLED
    return shell_code(returncode)


def _print_results(rig: Rig, console: Console) -> None:
    from phase_bus.aggregation.text import render_text

    for result in rig.progress.results.values():
        console.print()
        console.print(render_text(result, brief=True), soft_wrap=True, markup=False)


def _print_ledger(rig: Rig, console: Console) -> None:
    """Print for each run what became of its events at each consumer."""
    for run_id in rig.progress.ended:
        said = [receipt for (run, _), receipt in rig.progress.receipts.items() if run == run_id]
        console.print(f"\nLedger of run {run_id}, in events:", markup=False)
        console.print(ledger_table(ledger_in_brief(said)))
        for name in sorted({c.title for c in rig.config.consumers} - {r.consumer for r in said}):
            console.print(f"{name} gave no receipt", style="red")
