"""The options of a consumer: its constructor's parameters, converted and checked by their type hints."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct
from msgspec.structs import replace

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.core.classes import import_class, look_here_too
from phase_bus.core.numbers import check_finite
from phase_bus.core.secret import Secret
from phase_bus.errors import ConsumerDefinitionError, OptionError, PhaseBusError, suggest


class Option(Struct, frozen=True):
    """A constructor parameter of a consumer, as an option.

    Attributes:
        type: its type hint; without one that of its default, or ``Any``.
        means: what it is for, as the docstring says.
    """

    name: str
    type: Any
    default: Any = None
    required: bool = False
    means: str = ""

    @property
    def kind(self) -> str:
        """Its type in words: ``number``, ``path``, ``list of text``, ``'a' or 'b'``."""
        return _in_words(self.type)

    @property
    def shown_default(self) -> str:
        """Its default as people write it; empty if there is none."""
        if self.required or self.default is None:
            return ""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return _plain_text(self.default)

    def __str__(self) -> str:
        """Return ``name: type = default``."""
        hint = self.type.__name__ if isinstance(self.type, type) else str(self.type)
        hint = re.sub(r"pathlib\.(_local\.)?|typing\.|phase_bus\.core\.secret\.", "", hint)
        return f"{self.name}: {hint}" + ("" if self.required else f" = {_plain(self.default)!r}")


def options_of(cls: type) -> dict[str, Option]:
    """Return the options of a consumer class: the parameters of its constructor.

    If it has ``**options``, which it hands on to the class above it, those of that one too.
    """
    options: dict[str, Option] = {}
    for each in _constructors(cls):
        try:
            hints = typing.get_type_hints(each.__init__)  # type: ignore[misc]
        except (NameError, TypeError) as error:  # such as a name imported for type checkers only
            raise ConsumerDefinitionError(
                f"consumer class {cls.__name__}: a type hint of its constructor cannot be read: {error}"
            ) from error
        for parameter in _parameters(each):
            name = parameter.name
            if name in options or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            options[name] = Option(name, hints.get(name, _type_of(default)), default, required)
    return options


def described_options(cls: type) -> list[Option]:
    """Return the options of a class, required ones first, each with what its docstring says of it."""
    import docstring_parser  # only here: no process of a consumer needs it

    means: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):  # a class says nothing of the options that it hands on
        told = docstring_parser.parse(inspect.cleandoc(each.__doc__ or "")).params
        means |= {param.arg_name: _plain_words(param.description or "") for param in told}
    found = [replace(option, means=means.get(option.name, "")) for option in options_of(cls).values()]
    return sorted(found, key=lambda option: not option.required)


def common_options(cls: type) -> dict[str, Option]:
    """Return the options that every consumer has, and this class does not use for something else."""
    own = options_of(cls)
    return {option.name: option for option in _COMMON if option.name not in own}


def build_consumer(cls: type[Consumer], name: str, values: Mapping[str, Any]) -> Consumer:
    """Make a consumer with options given as text (on the command line) or as values (from YAML).

    Raises:
        OptionError: an option that it does not have, that is missing, or whose value does not fit.
        ConsumerDefinitionError: the class itself is not right.
    """
    common = common_options(cls)
    own = {option: value for option, value in values.items() if option not in common}
    consumer: Consumer = build_object(cls, name, own, known=common)
    set_common(consumer, name, values)
    return named(consumer, name)


def set_common(consumer: Consumer, owner: str, values: Mapping[str, Any]) -> None:
    """Set those options that every consumer has.

    Raises:
        OptionError: a value does not fit.
    """
    for option, described in common_options(type(consumer)).items():
        if option in values:
            converted = _convert(owner, option, described, values[option])
            if converted is not None and converted < 0:
                raise OptionError(owner, option, "must not be negative")
            setattr(consumer, option, converted)


def build_object(
    cls: type, owner: str, values: Mapping[str, Any], prefix: str = "", known: Iterable[str] = ()
) -> Any:
    """Make an object with options given as text or as values.

    Args:
        owner: the consumer that it is or belongs to, for messages.
        prefix: what users write before the options' names.
        known: options that belong to something else, for messages.

    Raises:
        OptionError: an option that it does not have, that is missing, or whose value does not fit.
        ConsumerDefinitionError: the class itself is not right.
    """
    options = options_of(cls)
    if _takes_others(_constructors(cls)[-1]):
        options = {**{name: Option(name, Any) for name in values}, **options}
    for option in values:
        if option not in options:
            raise OptionError(
                owner, prefix + option, f"there is no such option{suggest(option, [*options, *known])}"
            )
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
    if _is_secret(option.type):  # the value may be the secret itself, and is not shown
        raise OptionError(owner, shown, str(error)) from None
    wanted = option.kind
    article = "" if wanted[0] in "t'" else "an " if wanted[0].lower() in "aeiou" else "a "
    detail = "" if isinstance(error, msgspec.ValidationError) else f": {error}"
    raise OptionError(owner, shown, f"must be {article}{wanted}, not {value!r}{detail}") from error


def _in_words(hint: Any) -> str:
    """Return a type hint in words."""
    arguments = [each for each in typing.get_args(hint) if each is not type(None)]
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return _either(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return _either(dict.fromkeys(map(_in_words, arguments)))
    if origin is typing.Annotated:
        return _in_words(arguments[0])
    if origin is not None and issubclass(origin, Mapping):
        return "map" + (f" of {_in_words(arguments[0])} to {_in_words(arguments[1])}" if arguments else "")
    if origin is not None and issubclass(origin, Iterable):
        return f"list of {_plural(_in_words(arguments[0]))}" if arguments else "list"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _either(repr(member.value) for member in hint)
    return _WORDS.get(hint) or (hint.__name__ if isinstance(hint, type) else "value")


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _plural(word: str) -> str:
    return f"{word}s" if word in ("number", "integer", "path", "secret") else word


def _is_secret(hint: Any) -> bool:
    return hint is Secret or any(map(_is_secret, typing.get_args(hint)))


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
    if kind is Secret and isinstance(value, str):
        return Secret(value)
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


def _constructors(cls: type) -> list[type]:
    """Return a class, and those above it to whose constructors it may hand on what it does not know."""
    found = [cls]
    for above in cls.__mro__[1:-1]:
        if not _takes_others(found[-1]):
            break
        if "__init__" in vars(above) and above.__init__ is not found[-1].__init__:  # type: ignore[misc]
            found.append(above)
    return found


def _takes_others(cls: type) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(cls))


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


def _plain_words(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    return " ".join(text.replace("``", "'").split())


def _plain_text(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain_text, value))}]"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


_WORDS: dict[Any, str] = {
    Any: "value",
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    Secret: "secret",
    list: "list",
    dict: "map",
}
_COMMON = (
    Option(
        "retry_times",
        int | None,
        Consumer.retry_times,
        means="how often a handler that fails is called again before its event becomes a dead letter; by "
        "default 2 times, or for a minute if a server does not answer",
    ),
    Option(
        "retry_wait_s",
        float,
        Consumer.retry_wait_s,
        means="the longest wait between two tries, in seconds; a sink's between two tries to send, too",
    ),
)
