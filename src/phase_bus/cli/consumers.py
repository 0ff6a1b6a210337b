"""``phase-bus consumers``."""

from __future__ import annotations

import msgspec
from rich.markup import escape
from rich.table import Table

from phase_bus.cli.options import JsonOption, make_console
from phase_bus.consumer import options_of
from phase_bus.errors import ConsumerNotFoundError
from phase_bus.registry import Registry


def consumers(*, tag: str | None = None, json: JsonOption = False) -> None:
    """List the consumers that can be started by name, with their options.

    For example:

        phase-bus consumers

        phase-bus consumers --tag logging --json

    Args:
        tag: Only those with this tag.
    """
    registry = Registry.load()
    entries = [e for e in registry.consumers.values() if tag is None or tag in e.tags]
    rows = []
    for entry in sorted(entries, key=lambda e: (e.priority, e.name)):
        try:
            options = [str(option) for option in options_of(registry.resolve(entry.name)).values()]
            problem = ""
        except ConsumerNotFoundError as error:  # an extra that is not installed; the others are there
            options, problem = [], str(error)
        rows.append((entry, options, problem))
    if json:
        document = [
            {**msgspec.to_builtins(entry), "options": options, "problem": problem}
            for entry, options, problem in rows
        ]
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("NAME", "DESCRIPTION", "OPTIONS", "TAGS"):
        table.add_column(column, overflow="fold")
    for entry, options, problem in rows:
        table.add_row(
            entry.name,
            escape(entry.description),
            escape("\n".join(options) or problem),
            ", ".join(entry.tags),
        )
    make_console().print(table)
