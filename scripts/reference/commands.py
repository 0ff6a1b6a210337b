"""The page of the commands."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclopts import App

from phase_bus.cli import build_app
from scripts.reference.markdown import MADE, cell, code, prose, table

_HEAD = f"""\
# Commands

{MADE}Each command says the same with `--help`. An error that you can fix yourself is one line, with
exit code 2.

"""
_EXAMPLES = re.compile(r"^For example:\n\n((?: {4}.*\n|\n)+)", re.MULTILINE)
_WORDS = {int: "integer", float: "number", Path: "path", str: "text"}


def commands_page() -> str:
    """Return the page."""
    found = list(commands())
    rows = ((f"[`{_title(path)}`](#{_title(path).replace(' ', '-')})", cell(what)) for path, what in found)
    return _HEAD + table(("command", "does"), rows) + "\n".join(_command(path) for path, _ in found)


def commands() -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every command that does something, as its words, and what it does in a line."""
    app = build_app()
    for name in _names(app):
        if below := _names(app[name]):
            yield from (((name, sub), app[name][sub].help) for sub in below)
        else:
            yield (name,), app[name].help


def options_of_command(path: tuple[str, ...]) -> tuple[App, list[Any]]:
    """Return a command, and its arguments and options, hidden ones too."""
    app = build_app(*path)
    parameter = app.default_parameter
    for name in path:
        app = app[name]
    return app, list(app.assemble_argument_collection(default_parameter=parameter, parse_docstring=True))


def examples_of(text: str) -> list[str]:
    """Return the commands among the examples of a command's help."""
    blocks = _EXAMPLES.findall(inspect.cleandoc(text) + "\n")
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def _names(app: App) -> list[str]:
    return [name for name in app if not name.startswith("-")]


def _title(path: tuple[str, ...]) -> str:
    return " ".join(("phase-bus", *path))


def _command(path: tuple[str, ...]) -> str:
    app, arguments = options_of_command(path)
    shown = [argument for argument in arguments if argument.show]
    told = inspect.cleandoc(app.help).partition("\n\nArgs:\n")[0] + "\n"  # the table has the rest
    examples = "".join(f"{line}\n" for line in examples_of(told))
    usage = " ".join((_title(path), "[OPTIONS]", *filter(None, map(_positional, shown))))
    page = f"## {_title(path)}\n\n```text\n{usage}\n```\n\n{prose(_EXAMPLES.sub('', told)).strip()}\n\n"
    page += f"```sh\n{examples}```\n\n" if examples else ""
    return (page + table(("option", "value", "default", "meaning"), map(_option, shown))).rstrip() + "\n"


def _positional(argument: Any) -> str:
    kind = argument.field_info.kind
    if kind is inspect.Parameter.KEYWORD_ONLY:
        return ""
    name = argument.name.lstrip("-").upper()
    many = f"{name}..." if kind is inspect.Parameter.VAR_POSITIONAL else name
    return many if argument.required else f"[{many}]"


def _option(argument: Any) -> tuple[str, ...]:
    names = _positional(argument) or ", ".join(argument.names)
    return (code(names), _value(argument), _default(argument), cell(argument.parameter.help or ""))


def _default(argument: Any) -> str:
    if argument.required:
        return "required"
    default = argument.field_info.default
    empty = default in (None, False, "", inspect.Parameter.empty)
    return "" if empty or not argument.show_default else code(str(default))


def _value(argument: Any) -> str:
    if choices := argument.get_choices():
        return ", ".join(f"`{choice}`" for choice in choices)
    if argument.hint is bool:
        return ""
    hint = typing.get_args(argument.hint)[0] if typing.get_origin(argument.hint) else argument.hint
    return _WORDS.get(hint, "text")
