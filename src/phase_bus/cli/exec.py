"""``phase-bus exec`` and ``phase-bus up``: a bus and consumers, around a command or until a signal."""

from __future__ import annotations

import asyncio
import os
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from cyclopts import Parameter, validators

from phase_bus.aiperf.environment import has_dashboard, lack_of_plugin, leaves_terminal_alone
from phase_bus.cli.compare import EXIT_REGRESSED
from phase_bus.cli.options import (
    AddressesOption,
    ConfigOption,
    ForwardOption,
    JunitOption,
    MarkdownOption,
    ThresholdOption,
    WithOption,
)
from phase_bus.cli.output import (
    EXIT_NOT_WHOLE,
    EXIT_THRESHOLD,
    configure_logging,
    make_console,
    say,
)
from phase_bus.cli.repeat import Repetition, show_comparison
from phase_bus.cli.results import show_each, show_results
from phase_bus.core.address import default_address
from phase_bus.core.keys import KEY_FILE_VARIABLE
from phase_bus.harness.ending import CONSUMER_S, EndedEarlyError, Ending
from phase_bus.journal.exec_journals import MAX_AGE_S, MAX_BYTES, ExecJournal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phase_bus.cli.verdicts import ExecVerdicts
    from phase_bus.harness.config import Config
    from phase_bus.harness.repeat import Turn
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
    threshold: ThresholdOption = None
    forward: ForwardOption = None
    address: AddressesOption = None
    restart: Annotated[
        int | None,
        Parameter(
            validator=validators.Number(gte=0),
            help="How often each consumer that dies is started again, to go on from where it was. Default: "
            "3, or what the file says. One that then runs for ten minutes has all its restarts back.",
        ),
    ] = None
    insecure: Annotated[
        bool,
        Parameter(help="Ask nobody for a key, even at a tcp address that other machines can connect to."),
    ] = False
    quiet: Annotated[
        bool, Parameter(alias="-q", help="Show nothing but what the consumers print, and what goes wrong.")
    ] = False
    live: Annotated[
        Literal["auto", "always", "never"],
        Parameter(
            help="Whether to show how runs go in a block at the foot of the terminal: 'auto' does so where "
            "no command of its own draws there; plain lines otherwise, and always in a pipe or in CI."
        ),
    ] = "auto"

    def load(self, *, abort: bool = False) -> Config:
        """Return what they, and the file, say; with ``abort`` each threshold is to end the run."""
        from phase_bus.harness.config import load_config

        configure_logging()
        loaded = load_config(
            self.config,
            self.with_ or [],
            self.address or [],
            self.workers or [],
            thresholds=self.threshold or [],
            abort=abort,
            forward=self.forward or "",
        )
        restarts = loaded.restarts if self.restart is None else self.restart
        return msgspec.structs.replace(loaded, insecure=self.insecure or loaded.insecure, restarts=restarts)


_DEFAULTS = Setup()
_ONCE = Repetition()
_NAMED = 10  # of the journals that were removed


def exec_command(
    *command: str,
    setup: Setup = _DEFAULTS,
    allow_no_run: bool = False,
    hold_output: Literal["auto", "always", "never"] = "auto",
    repetition: Repetition = _ONCE,
    abort_on_failure: bool = False,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    json: Annotated[
        Path | None, Parameter(name="--json", help="Write them to this file as JSON, with each change.")
    ] = None,
) -> int:
    """Run a benchmark command with a bus and consumers around it.

    Starts the bus and the consumers, waits until each is ready, runs COMMAND with the bus's address in
    its environment ($PHASE_BUS_ADDRESS), shows the progress of the run, waits until every consumer has
    handled the end of the run, prints the result, stops everything, and exits with COMMAND's exit code. If
    COMMAND succeeded but published no run, or a consumer did not handle everything that was published, the
    exit code is 3.

    COMMAND may make several runs one after another. It can also be repeated, and alternate with another
    command; then the exit code is 1 if its runs are worse than those of the other. The output of phase-bus
    itself goes to standard error; standard input, output and the terminal belong to COMMAND.

    With thresholds, the exit code is 4 if COMMAND succeeded and a threshold failed, or is unknown in the
    end for lack of data, even if not everything was handled. A threshold with 'abort', or any threshold
    with --abort-on-failure, interrupts COMMAND as Ctrl-C would, as soon as it fails; the exit code is then
    4, whatever COMMAND's is.

    For example:

        phase-bus exec --with logging --with aggregator -- aiperf profile -f run.yaml
        phase-bus exec --with aggregator --workers aggregator=4 -- ./benchmark.sh
        phase-bus exec -c bus.yaml -- ./nightly-benchmarks.sh
        phase-bus exec --with alerting:threshold_s=30 -- phase-bus simulate
        phase-bus exec --threshold 'error_rate < 1 %' --junit ci.xml -- ./benchmark.sh
        phase-bus exec --repeat 5 --interleave './bench.sh old' -- ./bench.sh new

    Args:
        command: The command and its arguments, after '--'.
        allow_no_run: Exit with COMMAND's exit code also if it published no run.
        hold_output: Whether to hold back what phase-bus says until COMMAND has ended: 'always', 'never', or
            'auto', while AIPerf's dashboard has the terminal, since that clears the screen when it ends.
        abort_on_failure: Interrupt COMMAND as soon as a threshold fails.
    """
    from phase_bus.cli.verdicts import ExecVerdicts
    from phase_bus.reporting.verdict_files import VerdictFiles

    turns = repetition.turns(command)
    covered = any(_covers_screen(turn.command) for turn in turns)
    plain = all(leaves_terminal_alone(turn.command) for turn in turns)
    hold = hold_output == "always" or (hold_output == "auto" and covered)
    loaded = setup.load(abort=abort_on_failure)
    repetition.check_journal(loaded)
    verdicts = ExecVerdicts(loaded, VerdictFiles(junit=junit, markdown=markdown, json=json))
    with ExitStack() as stack:
        if not loaded.data:
            journal = stack.enter_context(ExecJournal())
            if journal.removed:
                say(_tell_removed(journal.removed))
            loaded = msgspec.structs.replace(loaded, data=str(journal.directory))
        ending = stack.enter_context(Ending(say, CONSUMER_S))
        run = _exec(
            turns,
            loaded,
            ending,
            verdicts,
            quiet=setup.quiet,
            allow_no_run=allow_no_run,
            hold=hold,
            live=setup.live == "always" or (setup.live == "auto" and plain),
            compared=repetition.interleave is not None,
        )
        try:
            return asyncio.run(run)
        except EndedEarlyError:
            return 128 + ending.signum


def up(*, setup: Setup = _DEFAULTS) -> int:
    """Run a bus and consumers in the foreground, for benchmarks started elsewhere.

    Benchmarks can publish one run after another; the result of each is shown once every consumer has
    handled it. Ctrl-C or SIGTERM lets the consumers finish and ends everything; a second one ends it at
    once. The exit code is 3 if a process died and was not back, or had to be cut off.

    For example:

        phase-bus up -c bus.yaml
        phase-bus up --with logging --address tcp://127.0.0.1:5670
    """
    loaded = setup.load()
    if not loaded.address:
        loaded = msgspec.structs.replace(loaded, address=(default_address(),))
    with Ending(say, CONSUMER_S) as ending:
        try:
            return asyncio.run(_up(loaded, ending, quiet=setup.quiet, live=setup.live != "never"))
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
    turns: Sequence[Turn],
    config: Config,
    ending: Ending,
    verdicts: ExecVerdicts,
    *,
    quiet: bool,
    allow_no_run: bool,
    hold: bool,
    live: bool,
    compared: bool,
) -> int:
    from phase_bus.harness.live import is_free
    from phase_bus.harness.repeat import run_turns
    from phase_bus.harness.rig import Rig

    console = make_console(stderr=True)
    live = live and not hold and is_free(console)
    rig = Rig(config, console, quiet=quiet, live=live, onlookers=verdicts.onlookers)
    async with _ended_by(ending, rig):
        _note_ready(rig)
        for lack in filter(None, map(lack_of_plugin, dict.fromkeys(turn.command for turn in turns))):
            rig.progress.note((lack, "yellow"))
        if hold:
            rig.note("the command's display has the screen: what there is to say comes after its end")
        aborting = partial(verdicts.aborting, rig)
        ran = await run_turns(turns, rig, ending.passing_on, aborting, hold=hold, allow_no_run=allow_no_run)
        if ran.stopped:
            rig.progress.note((ran.stopped, "red"))
        if not quiet and not compared:
            show_results(rig, console)
        await verdicts.conclude(rig, console, quiet=quiet)
    returncode = ran.returncode
    rig.progress.lines.repeat_alerts()
    if config.forward and not rig.whole:
        data = shlex.quote(config.data)
        rig.progress.note(
            "whatever was not forwarded is in the journal, and goes there with: "
            f"phase-bus bus --data {data} --forward {config.forward}"
        )
    nothing = not rig.runs and rig.whole
    if nothing and not (quiet and (allow_no_run or returncode)):
        remedy = "" if allow_no_run or returncode else "; if that is intended, pass --allow-no-run"
        rig.progress.note(f"the command published no run; 'phase-bus doctor' may say why{remedy}")
    if verdicts.aborted:
        return EXIT_THRESHOLD
    if returncode == 0 and ran.signum:
        return 128 + ran.signum
    if returncode == 0:
        whole = rig.whole and not ran.stopped
        regressed = compared and whole and show_comparison(Path(config.data), ran, console)
        if not (rig.runs or allow_no_run):
            return EXIT_NOT_WHOLE
        if not verdicts.passed:
            return EXIT_THRESHOLD
        if not (whole and verdicts.written):
            return EXIT_NOT_WHOLE
        if regressed:
            return EXIT_REGRESSED
    return 128 - returncode if returncode < 0 else returncode  # as a shell reports a signal


def _covers_screen(command: tuple[str, ...]) -> bool:
    """Whether a command takes the whole screen that is also ours."""
    return os.isatty(1) and os.isatty(2) and has_dashboard(command)


async def _up(config: Config, ending: Ending, *, quiet: bool, live: bool) -> int:
    from phase_bus.harness.live import is_free
    from phase_bus.harness.rig import Rig
    from phase_bus.thresholds import parse_threshold

    console = make_console(stderr=True)
    live = live and is_free(console)
    async with _ended_by(ending, Rig(config, console, quiet=quiet, live=live)) as rig:
        _note_ready(rig, "; Ctrl-C ends it")
        if any(parse_threshold(text).abort for text in config.thresholds):
            rig.note("a threshold with 'abort' ends nothing here, where there is no command")
        if rig.has_own_key:
            rig.note(
                f"who connects by tcp needs {KEY_FILE_VARIABLE}={rig.key_file}, which goes with this "
                "bus; 'phase-bus keys new' makes a key that stays"
            )
        showing = None if quiet else asyncio.create_task(show_each(rig, console))
        await rig.interrupted.wait()
        if showing is not None:
            showing.cancel()
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
