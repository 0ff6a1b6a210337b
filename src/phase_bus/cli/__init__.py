"""The command ``phase-bus``: one module a command, loaded only when it is used.

What goes wrong by the user's hand is a PhaseBusError from wherever it is noticed; :func:`main` prints it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownCommandError

from phase_bus import __version__
from phase_bus.errors import BusUnreachableError, PhaseBusError, suggest

# Where each command is, and what it does: said here too, so that listing them loads none of them.
_COMMANDS = {
    "exec": ("exec:exec_command", "Run a benchmark command with a bus and consumers around it."),
    "up": ("exec:up", "Run a bus and consumers in the foreground, for benchmarks started elsewhere."),
    "bus": ("bus:bus", "Run the bus alone."),
    "consume": ("consume:consume", "Run one consumer."),
    "dashboard": ("dashboard:dashboard", "Show runs on a page in a browser, while they are going on."),
    "consumers": ("consumers:consumers", "List the consumers that can be started by name."),
    "new": ("", "Write a package for a consumer of your own."),
    "watch": ("watch:watch", "Show how a run goes, live in the terminal."),
    "tail": ("tail:tail", "Print events as they come."),
    "attach": ("attach:attach", "Follow a run of AIPerf from outside, without the plugin."),
    "simulate": ("simulate:simulate", "Publish a synthetic run, for trying things without AIPerf."),
    "runs": ("runs:runs", "List past runs."),
    "report": ("report:report", "Show the result of a past run."),
    "check": ("check:check", "Judge a past run by thresholds."),
    "compare": ("compare:compare", "Say whether one build is slower than another, and how sure that is."),
    "receipts": ("runs:receipts", "Show what each consumer handled of a past run."),
    "baseline": ("", "Name runs to compare others with: set, show, list, remove."),
    "replay": ("replay:replay", "Publish past runs again, on another bus."),
    "keys": ("", "Make keys for tcp addresses, and choose whom a bus lets in."),
    "journal": ("", "Look at a bus's journal: info, verify, prune, export."),
    "dead-letters": ("", "Look at events that a consumer failed on, and retry them."),
    "status": ("status:status", "Show who is on the bus, and the state of the runs."),
    "verify": ("verify:verify", "Measure whether the bus slows a benchmark down."),
    "doctor": ("doctor:doctor", "Say what is installed, and whether the plugin and the address work."),
}
_SUBCOMMANDS = {
    "new": {
        "consumer": ("consumers:new", "Write a package with a consumer, its registry, tests and README.")
    },
    "keys": {
        "new": ("keys:new", "Make a key, and print its public part."),
        "show": ("keys:show", "Print the public part of a key."),
        "authorize": ("keys:authorize", "Let a client's key into your bus."),
        "revoke": ("keys:revoke", "Stop letting a client in."),
        "list": ("keys:list_", "List the clients that your bus lets in."),
    },
    "journal": {
        "info": ("journal:info", "Say what a journal holds, and how far each consumer has come."),
        "verify": ("journal:verify", "Read a whole journal and say what is damaged."),
        "prune": ("journal:prune", "Delete the oldest finished runs until the limits hold."),
        "export": ("journal:export", "Write events as JSON lines, or request records as Parquet."),
    },
    "baseline": {
        "set": ("baseline:set_", "Name runs to compare others with, and keep copies of them."),
        "show": ("baseline:show", "List the runs of a baseline."),
        "list": ("baseline:list_", "List the baselines."),
        "remove": ("baseline:remove", "Remove a baseline."),
    },
    "dead-letters": {
        "list": ("dead_letters:list_", "List the events that consumers failed on."),
        "show": ("dead_letters:show", "Show an event with the exception."),
        "retry": ("dead_letters:retry", "Give events to the consumer again."),
    },
}
_AROUND = ("exec", "verify")  # the commands that run another one


def build_app(*chosen: str) -> App:
    """Return the command line, with every command unloaded; the chosen one explains itself in full."""
    app = App(
        name="phase-bus",
        version=__version__,
        help="Follow AIPerf benchmark runs from independent processes.\n\n"
        "Start with: phase-bus exec --with aggregator -- aiperf profile ...",
        # Markdown takes as long to load as everything else; the list of commands does without it.
        help_format="markdown" if chosen[:1] and chosen[0] in _COMMANDS else "plaintext",
        default_parameter=Parameter(negative=(), validator=_finite),
        result_action="return_value",
    )
    for name, (where, what) in _COMMANDS.items():
        if name in _SUBCOMMANDS:
            sub = App(name=name, help=what)
            for sub_name, (sub_where, sub_what) in _SUBCOMMANDS[name].items():
                _add(sub, sub_name, sub_where, None if chosen[:2] == (name, sub_name) else sub_what)
            app.command(sub)
        else:
            _add(app, name, where, None if chosen[:1] == (name,) else what)
    return app


def _finite(_type: Any, value: Any) -> None:
    """Refuse NaN and infinity, which no option means."""
    from phase_bus.core.numbers import check_finite

    check_finite(value)


def _add(app: App, name: str, where: str, what: str | None) -> None:
    usage = f"Usage: phase-bus {name} [OPTIONS] -- COMMAND" if name in _AROUND else None
    app.command(f"phase_bus.cli.{where}", name=name, help=what, usage=usage)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 when all is well, 2 for what the user can put right."""
    tokens = sys.argv[1:] if arguments is None else arguments
    _open_standard_files()
    with _ended_by_sigterm():
        code = _run(tokens)
    sys.exit(code if isinstance(code, int) else 0)


def _run(tokens: list[str]) -> Any:
    """Run a command and return its exit code, or anything else for 0."""
    try:
        return build_app(*tokens[:2])(tokens, exit_on_error=False, print_error=False)
    except UnknownCommandError:
        return _complain(_unknown(tokens))
    except CycloptsError as error:
        return _complain(f"{_missing(error) or _one_line(error)}; see 'phase-bus {_command(tokens)}--help'")
    except BusUnreachableError as error:
        from phase_bus.journal.running import name_running

        return _complain(_one_line(error) + name_running(but=error.address))
    except PhaseBusError as error:
        return _complain(_one_line(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone, as with 'phase-bus runs | head'.
        from phase_bus.cli.output import discard_output

        discard_output()
        return 0


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let a SIGTERM end this process as Ctrl-C does, with everything put in order; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(signum: int, _frame: object) -> NoReturn:
    signal.signal(signum, signal.SIG_DFL)
    raise SystemExit(128 + signum)


def _open_standard_files() -> None:
    """Open what of standard input, output and error is closed, so that no other file takes its place.

    And let what cannot be encoded in the terminal's encoding be shown escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It takes the lowest number that is free, which is its own.
            file = Path(os.devnull).open(mode)  # noqa: SIM115
            os.set_inheritable(file.fileno(), True)
            setattr(sys, name, file)
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, TextIOWrapper):
            file.reconfigure(errors="backslashreplace")


def _complain(message: str) -> int:
    from phase_bus.cli.output import say  # rich, which listing the commands does without

    say(message)
    return 2


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith("...") else text.rstrip(".")


def _missing(error: CycloptsError) -> str:
    """Return what is wrong if something that is required was not given at all."""
    argument = error.argument
    if not isinstance(error, MissingArgumentError) or argument is None or error.keyword or argument.tokens:
        return ""
    name = argument.name.removeprefix("--").upper() if argument.field_info.is_positional else argument.name
    return f"{name} is required"


def _unknown(tokens: list[str]) -> str:
    known: dict[str, Any] = _SUBCOMMANDS.get(tokens[0], {})
    if not known:
        return f"no command {tokens[0]!r}{suggest(tokens[0], _COMMANDS)}"
    return f"no command '{tokens[0]} {tokens[1]}'{suggest(tokens[1], known)}"


def _command(tokens: list[str]) -> str:
    if not tokens or tokens[0] not in _COMMANDS:
        return ""
    subcommands = _SUBCOMMANDS.get(tokens[0], {})
    return " ".join((tokens[0], *(t for t in tokens[1:2] if t in subcommands), ""))
