"""``phase-bus consumers`` and ``phase-bus new consumer``."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from phase_bus.cli.options import JsonOption
from phase_bus.cli.output import configure_logging, print_json, print_line, print_lines, print_table
from phase_bus.errors import ConfigError, PhaseBusError, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phase_bus.consumer.options import Option
    from phase_bus.plugins.registry import Entry, Registry

SOMETHING_WRONG = 2
_COLUMNS = ("NAME", "DESCRIPTION", "KIND", "PRIORITY", "AUTO", "TAGS", "PLUGIN")
_SPARE = ("PLUGIN", "PRIORITY", "AUTO", "TAGS", "KIND")


def consumers(*names: str, tag: str | None = None, validate: bool = False, json: JsonOption = False) -> int:
    """List what can be started by name: consumers, phase hooks and post-processors.

    With names, each of these is shown with its options: their types, defaults and meanings.

    For example:

        phase-bus consumers
        phase-bus consumers elasticsearch
        phase-bus consumers --tag logging --json
        phase-bus consumers --validate my_plugin/registry.yaml

    Args:
        names: Show these, with their options. With --validate: the files to check; by default those of all
            installed plugins.
        tag: Only those with this tag.
        validate: Check registry.yaml files, import their classes, print a line for each mistake, and
            exit with 2 if there is one.
    """
    from phase_bus.plugins.registry import Registry

    configure_logging()
    if validate:
        return _validate(tuple(map(Path, names)), json)
    registry = Registry.load()
    known = {entry.use: entry for entry in registry.entries()}
    for name in names:
        if name not in known:
            if Path(name).exists():
                raise ConfigError(
                    f"{name!r} is no consumer; to check it as a registry file, add --validate"
                )
            raise ConfigError(f"there is no consumer {name!r}{suggest(name, known)}")
    chosen = [entry for use, entry in known.items() if not names or use in names]
    tags = {each for entry in known.values() for each in entry.tags}
    if tag is not None and tag not in tags:
        raise ConfigError(f"no consumer has the tag {tag!r}{suggest(tag, tags)}")
    entries = [entry for entry in chosen if tag is None or tag in entry.tags]
    if json:
        print_json([_document(registry, entry) for entry in entries])
    elif names:
        for number, entry in enumerate(entries):
            if number:
                print_line("")
            _show(registry, entry)
    else:
        _list(registry, entries)
    return 0


def _list(registry: Registry, entries: Sequence[Entry]) -> None:
    rows = (
        (
            entry.use,
            _options(registry, entry)[1] or entry.description,
            entry.kind,
            entry.priority,
            "yes" if entry.auto_load else "no",
            ", ".join(entry.tags),
            entry.plugin,
        )
        for entry in entries
    )
    print_table(_COLUMNS, rows, "none of these has this tag", whole=("NAME",), spare=_SPARE)
    if entries:
        print_lines("\n'phase-bus consumers NAME' shows one with its options.")


def _show(registry: Registry, entry: Entry) -> None:
    """Show an entry with its options."""
    options, problem = _options(registry, entry)
    print_line(f"{entry.use}: {entry.description}")
    if problem:
        print_line(problem)
        return
    rows = [(option.name, _about(option)) for option in options]
    print_table(("OPTION", "WHAT IT IS"), rows, whole=("OPTION",))
    print_lines(f"\nGive them as {entry.use}:option=value,option=value")


def _about(option: Option) -> str:
    default = f", default {option.shown_default}" if option.shown_default else ""
    kind = f"({option.kind}{', required' if option.required else default})"
    means = option.means[:1].upper() + option.means[1:].rstrip(".")
    return f"{means} {kind}" if means else kind


def _document(registry: Registry, entry: Entry) -> dict[str, Any]:
    options, problem = _options(registry, entry)
    described = [
        {
            "name": option.name,
            "type": option.kind,
            "default": option.shown_default,
            "required": option.required,
            "means": option.means,
        }
        for option in options
    ]
    about = {"name": entry.name, **msgspec.structs.asdict(entry), "use": entry.use}
    return {**about, "options": described, "problem": problem}


def _options(registry: Registry, entry: Entry) -> tuple[list[Option], str]:
    """Return the options of what an entry names, and what is wrong with it."""
    from phase_bus.consumer.consumer import Consumer
    from phase_bus.consumer.options import common_options, described_options

    try:
        cls = registry.class_of(entry.kind, entry.name)
        common = common_options(cls if entry.kind == "consumer" else Consumer)
        return [*described_options(cls), *common.values()], ""
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
        for path in set(files) - {Path(finding.file) for finding in findings}:
            print_line(f"{path}: fine")
        if not (files or findings):
            print_line("the files of all installed plugins are fine")
    return SOMETHING_WRONG if findings else 0


def new(
    name: str,
    /,
    *,
    on: str = "records,run_complete",
    directory: Annotated[Path | None, Parameter(name=["--directory", "-d"])] = None,
) -> None:
    """Write a package for a consumer of your own: code, registry, options, tests, README.

    It has a handler, and tests, for each kind of event that you ask for. It works as it is, and passes its
    own tests, mypy and ruff; change it into what you need.

    For example:

        phase-bus new consumer slow-requests
        phase-bus new consumer phase-watch --on phase_start,phase_complete
        phase-bus new consumer slow-requests --directory src/slow-requests

    Args:
        name: What users will call it: lower-case letters, digits and '-'.
        on: The kinds of event that it handles, separated by commas, such as 'phase_complete,records'.
        directory: Where to write it; must not exist. Default: NAME in the current directory.
    """
    from phase_bus.plugins.scaffold import write_consumer

    where = directory if directory is not None else Path(name)
    for path in write_consumer(name, where, on):
        print_line(f"wrote {path}")
    python = _python()
    print_lines(
        f"\nNext:\n  {python} -m pip install -e {shlex.quote(f'{where}[dev]')}\n"
        f"  {python} -m pytest {shlex.quote(str(where))}\n"
        f"  {python} -m phase_bus exec --with {name} -- {python} -m phase_bus simulate"
    )


def _python() -> str:
    """Return what to type for the Python that this runs in, which the package is to be installed in."""
    found = shutil.which("python")
    is_this = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    return "python" if is_this else shlex.quote(sys.executable)
