"""The options of a consumer: its constructor's parameters, converted and checked by their type hints."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.core.classes import import_class, look_here_too
from phase_bus.core.numbers import check_finite
from phase_bus.errors import ConsumerDefinitionError, OptionError, PhaseBusError, suggest


class Option(Struct, frozen=True):
    """A constructor parameter of a consumer, as an option.

    Attributes:
        type: its type hint; without one that of its default, or ``Any``.
    """

    name: str
    type: Any
    default: Any = None
    required: bool = False

    def __str__(self) -> str:
        """Return ``name: type = default``."""
        hint = self.type.__name__ if isinstance(self.type, type) else str(self.type)
        hint = re.sub(r"pathlib\.(_local\.)?|typing\.", "", hint)
        return f"{self.name}: {hint}" + ("" if self.required else f" = {_plain(self.default)!r}")


def options_of(cls: type) -> dict[str, Option]:
    """Return the options of a consumer class: the parameters of its constructor."""
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError) as error:  # such as a name imported for type checkers only
        raise ConsumerDefinitionError(
            f"consumer class {cls.__name__}: a type hint of its constructor cannot be read: {error}"
        ) from error
    options = {}
    for parameter in _parameters(cls):
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        name = parameter.name
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        options[name] = Option(name, hints.get(name, _type_of(default)), default, required)
    return options


def build_consumer(cls: type[Consumer], name: str, values: Mapping[str, Any]) -> Consumer:
    """Make a consumer with options given as text (from ``--set``) or as values (from YAML).

    Raises:
        OptionError: an option that it does not have, that is missing, or whose value does not fit.
        ConsumerDefinitionError: the class itself is not right.
    """
    consumer: Consumer = build_object(cls, name, values)
    return named(consumer, name)


def build_object(cls: type, owner: str, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Make an object with options given as text or as values.

    Args:
        owner: the consumer that it is or belongs to, for messages.
        prefix: what users write before the options' names.

    Raises:
        OptionError: an option that it does not have, that is missing, or whose value does not fit.
        ConsumerDefinitionError: the class itself is not right.
    """
    options = options_of(cls)
    if any(p.kind is p.VAR_KEYWORD for p in _parameters(cls)):
        options = {**{name: Option(name, Any) for name in values}, **options}
    for option in values:
        if option not in options:
            raise OptionError(owner, prefix + option, f"there is no such option{suggest(option, options)}")
    converted = {o: _convert(owner, prefix + o, options[o], value) for o, value in values.items()}
    for option, described in options.items():
        if described.required and option not in converted:
            raise OptionError(owner, prefix + option, f"is required; give {prefix}{option}=...")
    try:
        return cls(**converted)
    except (ValueError, OSError) as error:
        raise OptionError(owner, ", ".join(prefix + o for o in values) or "-", str(error)) from error


def _convert(owner: str, shown: str, option: Option, value: Any) -> Any:
    attempts = [value]
    if isinstance(value, str) and option.type is not str:
        meant = _yaml(value)  # so that lists, maps and null can be written too
        attempts = [meant] if _is_object(meant) else [value, meant]
    error: Exception | None = None
    try:
        check_finite(attempts[-1])
        if option.type is Any:
            return _made(attempts[-1])
        for kind in _kinds(option.type):
            for attempt in attempts:
                try:
                    converted = msgspec.convert(attempt, kind, strict=False, dec_hook=_convert_other)
                    check_finite(converted)
                    return converted
                except (msgspec.ValidationError, NotImplementedError, TypeError, ValueError) as caught:
                    error = error or caught
    except (PhaseBusError, ValueError) as caught:  # of an object inside the option, or no finite number
        error = caught
    choices = ", ".join(map(repr, _choices(option.type)))
    choose = f"; choose one of {choices}" if choices else ""
    raise OptionError(owner, shown, f"{value!r} does not fit {option}: {error}{choose}") from error


def _choices(hint: Any) -> list[Any]:
    """Return the values of the enumerations in a type hint."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [member.value for member in hint]
    return [choice for each in typing.get_args(hint) for choice in _choices(each)]


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return what to try for a type hint: msgspec takes no union such as ``str | Path`` as a whole."""
    try:
        msgspec.convert(None, hint, dec_hook=_convert_other)
    except (msgspec.ValidationError, NotImplementedError):
        pass
    except TypeError:
        return typing.get_args(hint) or (hint,)
    return (hint,)


def _convert_other(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    made = _made(value)
    if made is value and not isinstance(value, kind):
        raise NotImplementedError(
            f"no way to make a {kind.__name__} of {value!r}; write {{class: module:Class, option: value}}"
        )
    return made


def _made(value: Any) -> Any:
    """Return a value; ``{class: module:Class, option: value}`` becomes an object of that class."""
    if not _is_object(value):
        return value
    target = value["class"]
    look_here_too()
    options = {name: given for name, given in value.items() if name != "class"}
    return build_object(import_class(target, target), target, options)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("class"), str)


def _parameters(cls: type) -> list[inspect.Parameter]:
    return list(inspect.signature(cls).parameters.values())


def _type_of(default: Any) -> Any:
    return type(default) if isinstance(default, bool | int | float | str | list | dict) else Any


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
