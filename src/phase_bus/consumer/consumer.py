"""What a consumer is: a class whose methods say what it subscribes to.

:class:`Consumer` is what people subclass; the functions beside it read such a class. The process around
it is :mod:`phase_bus.consumer.runner`.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog
import yaml
from msgspec import Struct

from phase_bus.core.classes import import_class, look_here_too
from phase_bus.errors import ConsumerDefinitionError, OptionError, PhaseBusError, suggest
from phase_bus.events import KINDS, EventBase

Handler: TypeAlias = Callable[[Any], Awaitable[None]]

_ANY = "on_event"


class Consumer:
    """A process of its own that does something with the events of benchmark runs.

    Define ``async def on_<kind>(self, event)`` for each kind of event you want (``on_phase_complete``,
    ``on_records`` ...; ``on_event`` takes all kinds that have no handler of their own): these methods
    decide what the consumer subscribes to. They run one after another, in the order of the events. The
    constructor's parameters are the consumer's options, converted and checked by their type hints. The
    first line of the class's docstring describes it.

    Attributes:
        name: what the user calls this consumer; set before :meth:`start`.
        log: a structlog logger.
        offset: while a handler runs, its event's place in the bus's journal; 0 without one.
        journal_id: which journal offsets are of; set before :meth:`position` is called.
        group: the group that processes of this class form unless the user names another; empty for none.
            In a group, processes share the work of one consumer: each partition of the records has an
            instance in one of them, and one more instance, the leader, has all events that are no records.
        holds_checkpoint: set it in :meth:`flush` to leave the checkpoint where it is, so that the next
            process reads all events since then again.
        partition: in a group, the partition whose records this instance gets, None for the leader; set
            before :meth:`start`.
    """

    name: str = ""
    offset: int = 0
    journal_id: str = ""
    group: str = ""
    holds_checkpoint: bool = False
    partition: int | None = None
    log: Any = structlog.get_logger("phase_bus.consumer")
    _publish: Callable[[EventBase], None] | None = None

    async def start(self) -> None:
        """Prepare: called once, before the first event. An exception here ends the process."""

    async def flush(self) -> None:
        """Write out what is buffered: called every second, after each run's end, and before :meth:`stop`.

        The consumer's position moves only when it succeeds; an exception has it tried again.
        """

    async def stop(self) -> None:
        """Let go of everything: called once, last."""

    async def position(self) -> int | None:
        """Say up to which offset this consumer has stored everything, if it keeps that with its data.

        Called once, after :meth:`start`. One that stores data and offset in one transaction gets every
        event after it and is exactly-once. None leaves it to the bus, which remembers the last offset
        that was flushed: then an event may come twice after a crash.
        """
        return None

    def state(self) -> bytes | None:
        """Return what is to be kept with the position, for a consumer whose results live in memory."""
        return None

    def restore(self, state: bytes) -> None:
        """Go on from a state that an earlier process of this name left. Called before any event."""

    async def merge(self, states: Mapping[int, bytes]) -> None:
        """Take over what the partitions of the group have come to; called on the leader only.

        Called about once a second while something changes, and always before the leader's
        ``on_run_complete``, which in a group comes when every partition has handled all of the run.

        Args:
            states: the latest kept :meth:`state` of each partition that changed, in the partitions' order.
        """

    def forget(self, run_id: str) -> None:
        """Let go of a run that the whole group has handled; called on the instances of partitions."""

    def publish(self, event: EventBase) -> None:
        """Put an event on the bus, for other consumers. Never blocks, never raises."""
        if self._publish is not None:
            self._publish(event)


class Option(Struct, frozen=True):
    """A constructor parameter of a consumer, as an option.

    Attributes:
        name: its name.
        type: its type hint; without one that of its default, or ``Any``.
        default: its default.
        required: whether it has no default.
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


def handlers_of(consumer: Consumer) -> dict[str, Handler]:
    """Return a consumer's handlers by kind of event; one for ``*`` takes all other kinds.

    Raises:
        ConsumerDefinitionError: it has none, or one for a kind that does not exist, or one that is not
            an ``async def``.
    """
    handlers: dict[str, Handler] = {}
    cls = type(consumer)
    for name in dir(cls):
        if not name.startswith("on_"):
            continue
        method = getattr(consumer, name)
        kind = name.removeprefix("on_")
        if name != _ANY and kind not in KINDS:
            known = [f"on_{k}" for k in KINDS]
            raise ConsumerDefinitionError(
                f"consumer class {cls.__name__}: {name} handles no kind of event{suggest(name, known)}"
            )
        if not inspect.iscoroutinefunction(method):
            raise ConsumerDefinitionError(
                f"consumer class {cls.__name__}: {name} must be written 'async def {name}(self, event)'"
            )
        handlers["*" if name == _ANY else kind] = method
    if not handlers:
        raise ConsumerDefinitionError(
            f"consumer class {cls.__name__} handles nothing; "
            "define 'async def on_phase_complete(self, event)' or another on_<kind>"
        )
    return handlers


def options_of(cls: type) -> dict[str, Option]:
    """Return the options of a consumer class: the parameters of its constructor."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
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


def description_of(cls: type) -> str:
    """Return the first line of a consumer class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")


def build_consumer(cls: type[Consumer], name: str, values: Mapping[str, Any]) -> Consumer:
    """Make a consumer with options given as text (from ``--set``) or as values (from YAML).

    Raises:
        OptionError: an option that it does not have, that is missing, or whose value does not fit.
        ConsumerDefinitionError: the class itself is not right.
    """
    consumer: Consumer = build_object(cls, name, values)
    return named(consumer, name)


def named(consumer: Consumer, name: str) -> Consumer:
    """Give a consumer its name, and see that it handles something.

    Raises:
        ConsumerDefinitionError: it does not.
    """
    consumer.name = name
    consumer.log = structlog.get_logger("phase_bus.consumer").bind(consumer=name)
    handlers_of(consumer)
    return consumer


def build_object(cls: type, owner: str, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Make an object with options given as text or as values.

    Args:
        cls: its class.
        owner: the consumer that it is or belongs to, for messages.
        values: the options by name.
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


def subscriptions_of(handlers: Mapping[str, Handler]) -> tuple[str, ...]:
    """Return the topic prefixes that a consumer with these handlers subscribes to."""
    kinds = (k for k in KINDS if k != "heartbeat") if "*" in handlers else handlers
    return tuple(sorted({f"{kind}." for kind in kinds if kind != "*"}))


def _convert(owner: str, shown: str, option: Option, value: Any) -> Any:
    attempts = [value]
    if isinstance(value, str) and option.type is not str:
        meant = _yaml(value)  # so that lists, maps and null can be written too
        attempts = [meant] if _is_object(meant) else [value, meant]
    error: Exception | None = None
    try:
        if option.type is Any:
            return _made(attempts[-1])
        for kind in _kinds(option.type):
            for attempt in attempts:
                try:
                    return msgspec.convert(attempt, kind, strict=False, dec_hook=_convert_other)
                except (msgspec.ValidationError, NotImplementedError, TypeError, ValueError) as caught:
                    error = error or caught
    except PhaseBusError as caught:  # of an object inside the option
        error = caught
    raise OptionError(owner, shown, f"{value!r} does not fit {option}: {error}") from error


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
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return []
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
