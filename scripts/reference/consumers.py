"""The page of the consumers, hooks and processors that come with phase-bus."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

import docstring_parser

from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.options import Option, common_options, described_options
from phase_bus.plugins.registry import WORDS, Entry, Registry
from scripts.reference.markdown import MADE, cell, code, prose, table

_HEAD = f"""\
# Consumers that come with it

{MADE}`phase-bus consumers` lists these on your machine, and what other plugins bring.
Options follow the name, as `NAME:option=value,option=value`, or stand in [YAML](configuration.md).
A secret is never given itself, but where it is: `env:NAME` or `file:PATH`.

"""


def consumers_page() -> str:
    """Return the page."""
    registry = Registry.load()
    ours = [entry for entry in registry.entries() if entry.target.startswith("phase_bus")]
    rows = ((f"[`{e.use}`](#{e.use.replace(':', '')})", cell(e.description)) for e in ours)
    found = (_entry(entry, registry.class_of(entry.kind, entry.name)) for entry in ours)
    common = f"## Options that all have\n\n{_options(common_options(Consumer).values())}"
    return "\n".join((_HEAD + table(("name", "does"), rows) + "\n".join(found), common)).rstrip() + "\n"


def _entry(entry: Entry, cls: type) -> str:
    page = f"## {entry.use}\n\n{prose(entry.description)}. A {WORDS[entry.kind]}: `{entry.target}`.\n\n"
    if told := docstring_parser.parse(inspect.getdoc(cls) or "").long_description:
        page += f"{prose(told)}\n\n"
    return (page + _options(described_options(cls))).rstrip() + "\n"


def _options(options: Iterable[Option]) -> str:
    rows = ((code(o.name), _code_in(o.kind), _default(o), cell(_code_in(o.means))) for o in options)
    return table(("option", "value", "default", "meaning"), rows)


def _default(option: Option) -> str:
    return "required" if option.required else code(option.shown_default)


def _code_in(text: str) -> str:
    """Return words with what stands between single quotes as code."""
    return re.sub(r"(?<!\w)'([^']+)'(?!\w)", r"`\1`", text)
