"""``phase-bus consumers`` and ``phase-bus new consumer``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter
from rich.text import Text

from phase_bus.cli.options import JsonOption
from phase_bus.cli.output import configure_logging, print_json, print_line, print_lines, print_table
from phase_bus.core.printable import printable_lines
from phase_bus.errors import ConfigError, PhaseBusError

if TYPE_CHECKING:
    from phase_bus.plugins.registry import Entry, Registry

SOMETHING_WRONG = 2
_COLUMNS = ("NAME", "KIND", "PRIORITY", "AUTO", "DESCRIPTION", "OPTIONS", "TAGS", "PLUGIN")


def consumers(
    *files: Path, tag: str | None = None, validate: bool = False, json: JsonOption = False
) -> int:
    """List the consumers, phase hooks and post-processors that can be started by name.

    For example:

        phase-bus consumers
        phase-bus consumers --tag logging --json
        phase-bus consumers --validate my_plugin/registry.yaml

    Args:
        files: With --validate: the files to check; by default those of all installed plugins.
        tag: Only those with this tag.
        validate: Check registry.yaml files, import their classes, print a line for each mistake, and
            exit with 2 if there is one.
    """
    from phase_bus.plugins.registry import Registry

    configure_logging()
    if validate:
        return _validate(files, json)
    if files:
        raise ConfigError(f"{str(files[0])!r}: files are given to check them; add --validate")
    registry = Registry.load()
    entries = [entry for entry in registry.entries() if tag is None or tag in entry.tags]
    rows = [(entry, *_options(registry, entry)) for entry in entries]
    if json:
        document = [
            {
                "name": entry.name,
                **msgspec.structs.asdict(entry),
                "use": entry.use,
                "options": options,
                "problem": problem,
            }
            for entry, options, problem in rows
        ]
        print_json(document)
        return 0
    shown = (
        (
            entry.use,
            entry.kind,
            entry.priority,
            "yes" if entry.auto_load else "no",
            entry.description,
            Text(printable_lines("\n".join(options))) if options else problem,
            ", ".join(entry.tags),
            entry.plugin,
        )
        for entry, options, problem in rows
    )
    print_table(_COLUMNS, shown)
    return 0


def _options(registry: Registry, entry: Entry) -> tuple[list[str], str]:
    """Return the options of what an entry names, and what is wrong with it."""
    from phase_bus.consumer.options import options_of

    try:
        return [str(o) for o in options_of(registry.class_of(entry.kind, entry.name)).values()], ""
    except PhaseBusError as error:  # an extra that is not installed; the others are there
        return [], str(error)


def _validate(files: tuple[Path, ...], json: bool) -> int:
    from phase_bus.plugins.check import check_files, check_installed

    findings = check_files(files) if files else check_installed()
    if json:
        print_json(findings)
    else:
        for finding in findings:
            print_line(str(finding))
    return SOMETHING_WRONG if findings else 0


def new(
    name: str, /, *, directory: Annotated[Path | None, Parameter(name=["--directory", "-d"])] = None
) -> None:
    """Write a package for a consumer of your own: code, registry, options, tests, README.

    It works as it is, and passes its own tests, mypy and ruff; change it into what you need.

    For example:

        phase-bus new consumer slow-requests
        phase-bus new consumer slow-requests --directory src/slow-requests

    Args:
        name: What users will call it: lower-case letters, digits and '-'.
        directory: Where to write it; must not exist. Default: NAME in the current directory.
    """
    from phase_bus.plugins.scaffold import write_consumer

    where = directory if directory is not None else Path(name)
    for path in write_consumer(name, where):
        print_line(f"wrote {path}")
    place = shlex.quote(str(where))
    print_lines(
        f"\nNext:\n  pip install -e {place}'[dev]'\n  pytest {place}\n"
        f"  phase-bus exec --with {name} -- phase-bus simulate"
    )
