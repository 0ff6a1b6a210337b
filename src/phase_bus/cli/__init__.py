"""The command ``phase-bus``: one module a command, loaded only when it is used."""

from __future__ import annotations

import os
import sys

from cyclopts import App, CycloptsError, UnknownCommandError

from phase_bus import __version__
from phase_bus.errors import PhaseBusError, suggest

# Where each command is, and what it does: said here too, so that listing them loads none of them.
_COMMANDS = {
    "exec": ("exec:exec_command", "Run a benchmark command with a bus and consumers around it."),
    "up": ("up:up", "Run a bus and consumers in the foreground, for benchmarks started elsewhere."),
    "bus": ("bus:bus", "Run the bus alone."),
    "consume": ("consume:consume", "Run one consumer."),
    "consumers": ("consumers:consumers", "List the consumers that can be started by name."),
    "tail": ("tail:tail", "Print events as they come."),
    "attach": ("attach:attach", "Follow a run of AIPerf from outside, without the plugin."),
    "simulate": ("simulate:simulate", "Publish a synthetic run, for trying things without AIPerf."),
    "status": ("status:status", "Show who is on the bus, and how the runs are."),
    "doctor": ("doctor:doctor", "Say what is installed, and whether plugin and address work."),
}


def build_app(chosen: str = "") -> App:
    """Return the command line, with every command unloaded; the chosen one explains itself in full."""
    app = App(
        name="phase-bus",
        version=__version__,
        help="Follow AIPerf benchmark runs from independent processes.\n\n"
        "Start with: phase-bus exec --with logging --with aggregator -- aiperf profile ...",
        help_format="markdown",
        result_action="return_value",
    )
    for name, (where, what) in _COMMANDS.items():
        app.command(f"phase_bus.cli.{where}", name=name, help=None if name == chosen else what)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 when all is well, 2 for what the user can put right."""
    tokens = sys.argv[1:] if arguments is None else arguments
    try:
        code = build_app(*tokens[:1])(tokens, exit_on_error=False, print_error=False)
    except UnknownCommandError:
        code = _complain(f"no command {tokens[0]!r}{suggest(tokens[0], _COMMANDS)}")
    except CycloptsError as error:
        code = _complain(f"{_one_line(error)}; see 'phase-bus {_command(tokens)}--help'")
    except PhaseBusError as error:
        code = _complain(_one_line(error))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output is gone, as with 'phase-bus tail | head'.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> int:
    print(f"phase-bus: {message}", file=sys.stderr)
    return 2


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith("...") else text.rstrip(".")


def _command(tokens: list[str]) -> str:
    return f"{tokens[0]} " if tokens and tokens[0] in _COMMANDS else ""
