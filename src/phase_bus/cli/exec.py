"""``phase-bus exec`` and ``phase-bus up``: a bus and consumers, around a command or until a signal."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from cyclopts import Parameter
from rich.text import Text

from phase_bus.aiperf.environment import has_dashboard, lack_of_plugin
from phase_bus.cli.options import AddressesOption, ConfigOption, WithOption
from phase_bus.cli.output import EXIT_NOT_WHOLE, configure_logging, make_console, say
from phase_bus.core.address import default_address
from phase_bus.core.keys import KEY_FILE_VARIABLE
from phase_bus.harness.ending import CONSUMER_S, EndedEarlyError, Ending
from phase_bus.harness.foreground import check_command, run_in_foreground
from phase_bus.journal.exec_journals import MAX_AGE_S, MAX_BYTES, ExecJournal
from phase_bus.reporting.receipts import held_against, ledger_in_brief, ledger_table, print_losses

if TYPE_CHECKING:
    from rich.console import Console

    from phase_bus.harness.config import Config
    from phase_bus.harness.rig import Rig


@Parameter(name="*")
@dataclass(frozen=True)
class Setup:
    """A bus and consumers, as options of a command."""

    config: ConfigOption = None
    with_: WithOption = None
    workers: Annotated[
        list[str] | None,
        Parameter(help="How many processes share the work of a consumer: NAME=N. May be repeated."),
    ] = None
    address: AddressesOption = None
    insecure: Annotated[
        bool,
        Parameter(help="Ask nobody for a key, also at a tcp address that other machines can connect to."),
    ] = False
    quiet: Annotated[
        bool, Parameter(alias="-q", help="Show nothing but what the consumers print, and what goes wrong.")
    ] = False

    def load(self) -> Config:
        """Return what they, and the file, say."""
        from phase_bus.harness.config import load_config

        configure_logging()
        loaded = load_config(self.config, self.with_ or [], self.address or [], self.workers or [])
        return msgspec.structs.replace(loaded, insecure=self.insecure or loaded.insecure)


_DEFAULTS = Setup()
_NAMED = 10  # of the journals that were removed
_SHOWN_RUNS = 10  # whose results and ledgers are shown


def exec_command(
    *command: str,
    setup: Setup = _DEFAULTS,
    allow_no_run: bool = False,
    hold_output: Literal["auto", "always", "never"] = "auto",
) -> int:
    """Run a benchmark command with a bus and consumers around it.

    Starts the bus and the consumers, waits until each is ready, runs COMMAND with the bus's address in
    its environment ($PHASE_BUS_ADDRESS), shows how the run goes, waits until every consumer has handled
    the end of the run, prints the result, stops everything, and exits with COMMAND's exit code; or with
    3, if COMMAND succeeded and published no run, or a consumer did not handle everything that was
    published for it.

    COMMAND may hold several runs one after another. What phase-bus itself shows goes to
    standard error; standard input, output and the terminal are COMMAND's.

    For example:

        phase-bus exec --with logging --with aggregator -- aiperf profile -m my-model --url ...
        phase-bus exec --with aggregator --workers aggregator=4 -- aiperf profile ...
        phase-bus exec -c bus.yaml -- ./nightly-benchmarks.sh
        phase-bus exec --with alerting:threshold_s=30 -- phase-bus simulate

    Args:
        command: The command and its arguments, after '--'.
        allow_no_run: Exit with COMMAND's exit code also if it published no run.
        hold_output: Whether to show what is to be said only after COMMAND has ended: 'always', 'never', or
            'auto', while AIPerf's dashboard has the terminal, whose screen and all that is on it vanishes
            at its end.
    """
    hold = hold_output == "always" or (hold_output == "auto" and _covers_screen(command))
    check_command(command)
    loaded = setup.load()
    with ExitStack() as stack:
        if not loaded.data:
            journal = stack.enter_context(ExecJournal())
            if journal.removed:
                say(_tell_removed(journal.removed))
            loaded = msgspec.structs.replace(loaded, data=str(journal.directory))
        ending = stack.enter_context(Ending(say, CONSUMER_S))
        run = _exec(command, loaded, ending, quiet=setup.quiet, allow_no_run=allow_no_run, hold=hold)
        try:
            return asyncio.run(run)
        except EndedEarlyError:
            return 128 + ending.signum


def up(*, setup: Setup = _DEFAULTS) -> int:
    """Run a bus and consumers in the foreground, for benchmarks started elsewhere.

    Several runs may come and go. Ctrl-C or SIGTERM lets the consumers finish and ends everything; a second
    one ends it at once. The exit code is 3 if a process died, or had to be cut off.

    For example:

        phase-bus up -c bus.yaml
        phase-bus up --with logging --address tcp://127.0.0.1:5670
    """
    loaded = setup.load()
    if not loaded.address:
        loaded = msgspec.structs.replace(loaded, address=(default_address(),))
    with Ending(say, CONSUMER_S) as ending:
        try:
            return asyncio.run(_up(loaded, ending, quiet=setup.quiet))
        except EndedEarlyError:
            return 0


def _tell_removed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"removed the oldest of exec's journals, which together may take {MAX_BYTES >> 30} GiB, and be "
        f"{MAX_AGE_S / 86400:g} days old: {', '.join(names[:_NAMED])}{more}; "
        "'data:' in a --config file keeps one elsewhere"
    )


async def _exec(
    command: tuple[str, ...],
    config: Config,
    ending: Ending,
    *,
    quiet: bool,
    allow_no_run: bool,
    hold: bool,
) -> int:
    from phase_bus.harness.children import describe_exit
    from phase_bus.harness.rig import Rig

    console = make_console(stderr=True)
    async with _ended_by(ending, Rig(config, console, quiet=quiet)) as rig:
        _note_ready(rig)
        if lack := lack_of_plugin(command):
            rig.progress.note((lack, "yellow"))
        if hold:
            rig.note("the command's display has the screen: what there is to say comes after its end")
        with rig.progress.lines.held() if hold else nullcontext():
            returncode = await run_in_foreground(command, rig.environment, ending.passing_on)
        await rig.settle(f"the command {describe_exit(returncode)} without ending the run")
        if not quiet:
            from phase_bus.aggregation.text import render_text

            for result in list(rig.progress.results.values())[-_SHOWN_RUNS:]:
                console.print()
                console.print(Text(render_text(result, brief=True)), soft_wrap=True)
            _print_ledger(rig, console)
    rig.progress.lines.repeat_alerts()
    nothing = not rig.runs and rig.whole
    if nothing and not (quiet and (allow_no_run or returncode)):
        remedy = (
            "" if allow_no_run or returncode else "; if that is as it should be, give exec --allow-no-run"
        )
        rig.progress.note(f"the command published no run; 'phase-bus doctor' may say why{remedy}")
    if returncode == 0 and not (rig.whole and (rig.runs or allow_no_run)):
        return EXIT_NOT_WHOLE
    return 128 - returncode if returncode < 0 else returncode  # as a shell reports a signal


def _covers_screen(command: tuple[str, ...]) -> bool:
    """Whether a command takes the whole screen that is also ours."""
    return os.isatty(1) and os.isatty(2) and has_dashboard(command)


async def _up(config: Config, ending: Ending, *, quiet: bool) -> int:
    from phase_bus.harness.rig import Rig

    async with _ended_by(ending, Rig(config, make_console(stderr=True), quiet=quiet)) as rig:
        _note_ready(rig, "; Ctrl-C ends it")
        if rig.has_own_key:
            rig.note(
                f"who connects by tcp needs {KEY_FILE_VARIABLE}={rig.key_file}, which goes with this "
                "bus; 'phase-bus keys new' makes a key that stays"
            )
        await rig.interrupted.wait()
        rig.note("stopping")
    return 0 if rig.whole else EXIT_NOT_WHOLE


def _ended_by(ending: Ending, rig: Rig) -> Rig:
    """Return the rig, which signals interrupt from now on."""
    loop = asyncio.get_running_loop()
    interrupt = rig.interrupted.set
    ending.begin("phase-bus", lambda: loop.call_soon_threadsafe(interrupt), rig.stop_s, force=rig.kill)
    return rig


def _note_ready(rig: Rig, hint: str = "") -> None:
    names = ", ".join(consumer.title for consumer in rig.config.consumers) or "none"
    rig.note(f"bus ready at {rig.address}; consumers ready: {names}{hint}")
    if rig.is_insecure:
        rig.note("insecure: whoever can connect may do everything")


def _print_ledger(rig: Rig, console: Console) -> None:
    """Print for each run what became of its events at each consumer."""
    shown = list(rig.progress.ended)[-_SHOWN_RUNS:]
    earlier = len(rig.progress.ended) - len(shown) + rig.progress.left_out
    if earlier:
        rig.note(
            f"these are the last {len(shown)} runs; 'phase-bus runs' lists the {earlier} before them, and "
            "'phase-bus report' and 'phase-bus receipts' show each"
        )
    for run_id in shown:
        said = [receipt for (run, _), receipt in rig.progress.receipts.items() if run == run_id]
        said = held_against(said, rig.progress.ended[run_id])
        console.print()
        console.print(f"Ledger of run {run_id}, in events:", soft_wrap=True)
        console.print(ledger_table(ledger_in_brief(said)))
        print_losses(said, console)
        for name in sorted({c.title for c in rig.config.consumers} - {r.consumer for r in said}):
            console.print(f"{name} gave no receipt", style="red")
