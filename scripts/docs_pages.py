"""The pages of the documentation that are made of the code: commands, and consumers, with their options.

A hook of MkDocs (`hooks:` in mkdocs.yml); nothing is written but what MkDocs builds.
"""

from __future__ import annotations

import html
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import docstring_parser
from cyclopts import App
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from phase_bus.cli import build_app
from phase_bus.consumer.options import options_of
from phase_bus.plugins.registry import WORDS, Entry, Registry

_COMMANDS_HEAD = """\
# Commands

Made from the code. Each command explains itself in the same words with `--help`. What a user can put right
is told in one line, with exit code 2.

| command | does |
|---|---|
"""
_CONSUMERS_HEAD = """\
# Consumers that come with it

Made from the code. `phase-bus consumers` lists these, and what other plugins bring, on your machine.
Options are given as `--with NAME:option=value,option=value` (`exec`, `up`), as `--set option=value`
(`consume`), or as [YAML](configuration.md).

"""
_EXAMPLES = re.compile(r"^For example:\n\n((?: {4}.*\n|\n)+)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those that are files."""
    for name, text in (("commands", commands_page()), ("consumers", consumers_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def commands_page() -> str:
    """Return the page of all commands."""
    found = list(commands())
    rows = "".join(
        f"| [`phase-bus {' '.join(path)}`](#{_anchor(path)}) | {what} |\n" for path, what in found
    )
    return _COMMANDS_HEAD + rows + "".join(_command(path) for path, _ in found)


def commands() -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every command that does something, as its words, and what it does in a line."""
    app = build_app()
    for name in _names(app):
        below = _names(app[name])
        if below:
            yield from (((name, sub), app[name][sub].help) for sub in below)
        else:
            yield (name,), app[name].help


def consumers_page() -> str:
    """Return the page of the consumers, hooks and processors of our own plugin."""
    registry = Registry.load()
    ours = [entry for entry in registry.entries() if entry.target.startswith("phase_bus")]
    return _CONSUMERS_HEAD + "".join(_entry(registry, entry) for entry in ours)


def _names(app: App) -> list[str]:
    return [name for name in app if not name.startswith("-")]


def _anchor(path: Iterable[str]) -> str:
    return "-".join(("phase-bus", *path))


def _command(path: tuple[str, ...]) -> str:
    app = build_app(*path)
    parameter = app.default_parameter
    for name in path:
        app = app[name]
    found = app.assemble_argument_collection(default_parameter=parameter, parse_docstring=True)
    arguments = [argument for argument in found if argument.show]
    told = inspect.cleandoc(app.help).partition("\n\nArgs:\n")[0]  # the table has the rest
    text = _EXAMPLES.sub(_as_block, _escaped(told) + "\n")
    usage = " ".join(("phase-bus", *path, "[OPTIONS]", *filter(None, map(_positional, arguments))))
    page = f"\n## phase-bus {' '.join(path)} {{ #{_anchor(path)} }}\n\n```text\n{usage}\n```\n\n{text}\n"
    if arguments:
        page += "| option | value | means | default |\n|---|---|---|---|\n"
        page += "".join(map(_option, arguments))
    return page


def _as_block(found: re.Match[str]) -> str:
    lines = [html.unescape(line.strip()) for line in found[1].splitlines() if line.strip()]
    return "```sh\n" + re.sub(r"\n(?=(?!phase-bus))", " ", "\n".join(lines)) + "\n```\n\n"


def _positional(argument: Any) -> str:
    kind = argument.field_info.kind
    if kind is inspect.Parameter.KEYWORD_ONLY:
        return ""
    name = argument.name.lstrip("-").upper()
    many = f"{name}..." if kind is inspect.Parameter.VAR_POSITIONAL else name
    return many if argument.required else f"[{many}]"


def _option(argument: Any) -> str:
    names = _positional(argument) or ", ".join(argument.names)
    default = argument.field_info.default
    shown = argument.show_default and default is not False
    means = _cell(argument.parameter.help or "")
    return f"| `{names}` | {_value(argument)} | {means} | {f'`{default}`' if shown else ''} |\n"


def _value(argument: Any) -> str:
    if choices := argument.get_choices():
        return ", ".join(f"`{choice}`" for choice in choices)
    if argument.hint is bool:
        return ""
    hint = typing.get_args(argument.hint)[0] if typing.get_origin(argument.hint) else argument.hint
    return {int: "integer", float: "number", Path: "path", str: "text"}[hint]


def _entry(registry: Registry, entry: Entry) -> str:
    cls = registry.class_of(entry.kind, entry.name)
    told = docstring_parser.parse(inspect.getdoc(cls) or "")
    means = {param.arg_name: param.description or "" for param in told.params}
    page = f"## {entry.use} {{ #{entry.use.replace(':', '-')} }}\n\n"
    page += f"{_escaped(entry.description)}. A {WORDS[entry.kind]}: `{entry.target}`.\n\n"
    if told.long_description:
        page += f"{_escaped(_plain_roles(told.long_description))}\n\n"
    options = options_of(cls).values()
    if options:
        page += "| option | means |\n|---|---|\n"
        page += "".join(f"| {_cell(f'`{o}`')} | {_cell(means.get(o.name, ''))} |\n" for o in options) + "\n"
    return page


def _plain_roles(text: str) -> str:
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text.replace("``", "`"))


def _escaped(text: str, pipe: str = "|") -> str:
    """Return a text of ours in which nothing is taken for HTML; code is taken for none anyway."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = (html.escape(part, quote=False).replace("|", pipe) for part in parts[::2])
    return "".join(parts)


def _cell(text: str) -> str:
    return _escaped(" ".join(_plain_roles(text).split()), pipe="&#124;")
