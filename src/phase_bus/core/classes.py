"""Importing a class that is given as ``module:Class``, and what only an extra installs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

from phase_bus.errors import ConfigError, ConsumerNotFoundError, suggest

Check: TypeAlias = Callable[[type], bool]


def import_class(name: str, target: str, *, wanted: Check | None = None, what: str = "a class") -> Any:
    """Return the class that ``module:Class`` names.

    Args:
        name: what the user called it, for the message.
        wanted: returns whether a class is of the right kind, which is what ``what`` says in words.

    Raises:
        ConsumerNotFoundError: if it does not import, or is of another kind.
    """

    def fits(value: object) -> bool:
        return isinstance(value, type) and (wanted is None or wanted(value))

    module_name, _, class_name = target.partition(":")
    if not module_name or not class_name:
        raise ConsumerNotFoundError(name, "write it as module:Class, such as my_consumers:SlowPhase")
    try:
        module = import_module(module_name)
    except Exception as error:  # a module may fail with anything
        raise ConsumerNotFoundError(
            name, f"module {module_name!r} cannot be imported ({one_line(error)})"
        ) from error
    try:
        cls = attrgetter(class_name)(module)
    except AttributeError:
        known = [name for name, value in vars(module).items() if fits(value)]
        raise ConsumerNotFoundError(
            name, f"module {module_name!r} has no {class_name!r}{suggest(class_name, known)}"
        ) from None
    if not fits(cls):
        raise ConsumerNotFoundError(name, f"{target} is not {what}")
    return cls


def import_extra(module: str, extra: str, what_for: str = "") -> Any:
    """Return a module that an extra of ours installs.

    Raises:
        ConfigError: if it is not installed; the message begins with ``what_for``.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        remedy = f"install it with: pip install 'phase-bus[{extra}]'"
        raise ConfigError(f"{what_for}{error.name} is missing; {remedy}") from error


def look_here_too() -> None:
    """Let modules be found in the current working directory too."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def one_line(error: Exception) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def type_in_words(message: str) -> str:
    """Return what msgspec says of a value of the wrong type as people say it: ``must be text``."""

    def words(found: re.Match[str]) -> str:
        wanted = [_TYPES.get(each, each) for each in found[1].split(" | ")]
        got = f", not {_TYPES.get(found[2], found[2])}" if found[2] else ""
        return f"must be {' or '.join(wanted)}{got}"

    told = re.sub(r"Expected `([^`]+)`(?:, got `([^`]+)`)?", words, message)
    return told.replace("`", "'")


_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a map",
}
