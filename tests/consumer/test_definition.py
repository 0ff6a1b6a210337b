"""How a consumer class is read: handlers, options, subscriptions, and every error message."""

from __future__ import annotations

import math
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from phase_bus.consumer.consumer import Consumer, description_of, handlers_of, subscriptions_of
from phase_bus.consumer.options import build_consumer, described_options, options_of
from phase_bus.errors import ConsumerDefinitionError, OptionError
from phase_bus.events import KINDS, EventBase, PhaseComplete, Records

if typing.TYPE_CHECKING:
    from decimal import Decimal


class Sink(Consumer):
    """Puts things somewhere.

    And more words.
    """

    def __init__(
        self,
        path: Path,
        threshold_s: float = 60.0,
        count: int = 3,
        verbose: bool = False,
        names: list[str] | None = None,
        mode: typing.Literal["a", "b"] = "a",
        label: str = "x",
    ) -> None:
        if count < 0:
            raise ValueError("count must not be negative")
        self.values = (path, threshold_s, count, verbose, names, mode, label)

    async def on_phase_complete(self, event: PhaseComplete) -> None: ...

    async def on_records(self, event: Records) -> None: ...


class Everything(Consumer):
    """Takes all."""

    async def on_event(self, event: EventBase) -> None: ...

    async def on_heartbeat(self, event: EventBase) -> None: ...


def test_handlers_and_subscriptions() -> None:
    """The methods decide."""
    handlers = handlers_of(Sink(Path()))
    assert set(handlers) == {"phase_complete", "records"}
    assert subscriptions_of(handlers) == ("phase_complete.", "records.")


def test_on_event_takes_all_kinds() -> None:
    """``on_event`` subscribes to every kind but the bus's heartbeats."""
    handlers = handlers_of(Everything())
    assert set(handlers) == {"*", "heartbeat"}
    assert set(subscriptions_of({"*": handlers["*"]})) == {f"{k}." for k in KINDS if k != "heartbeat"}


def make(name: str, body: Any) -> Consumer:
    """Return a consumer of a class with one attribute."""
    return typing.cast(Consumer, type("Made", (Consumer,), {name: body})())


async def handler(self: Consumer, event: EventBase) -> None:
    """A handler."""


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "on_phase_complet",
            handler,
            "on_phase_complet handles no kind of event; did you mean 'on_phase_complete'?",
        ),
        (
            "on_phase_start",
            lambda self, event: None,
            "must be written 'async def on_phase_start(self, event)'",
        ),
        ("other", handler, "handles nothing; define 'async def on_phase_complete(self, event)'"),
    ],
)
def test_wrong_classes(name: str, body: Any, message: str) -> None:
    """Each mistake has a message that says how to fix it."""
    with pytest.raises(ConsumerDefinitionError) as caught:
        handlers_of(make(name, body))
    assert message in str(caught.value)


def test_options_of() -> None:
    """Options are the constructor's parameters."""
    options = options_of(Sink)
    assert list(options) == ["path", "threshold_s", "count", "verbose", "names", "mode", "label"]
    assert options["path"].required
    assert str(options["path"]) == "path: Path"
    assert str(options["threshold_s"]) == "threshold_s: float = 60.0"
    assert options_of(Everything) == {}


class Documented(Consumer):
    """Says what its options are for.

    Args:
        limit: of ``things`` in
            :class:`Part`.
        rates: which there are.
        files: where each is.
    """

    def __init__(
        self,
        limit: float | None = 1.5,
        files: dict[str, Path] | None = None,
        *,
        rates: list[int],
    ) -> None: ...

    on_event = Everything.on_event


def test_options_are_described() -> None:
    """In words for people, what must be given first: types without Python, meanings by the docstring."""
    told = [(o.name, o.kind, o.shown_default, o.means) for o in described_options(Documented)]
    assert told == [
        ("rates", "list of integers", "", "which there are."),
        ("limit", "number", "1.5", "of 'things' in Part."),
        ("files", "map of text to path", "", "where each is."),
    ]


def test_retries_are_options_of_every_consumer() -> None:
    """Beside its own, and checked; a class may use the name for something else."""
    built = build_consumer(Sink, "sink", {"path": "x", "retry_times": "5", "retry_wait_s": "0.5"})
    assert (built.retry_times, built.retry_wait_s) == (5, 0.5)
    assert build_consumer(Sink, "sink", {"path": "x"}).retry_wait_s == 10.0
    with pytest.raises(OptionError, match="'retry_times': must not be negative"):
        build_consumer(Sink, "sink", {"path": "x", "retry_times": -1})
    with pytest.raises(OptionError, match="'retry_wait_s': must be a number, not 'long'"):
        build_consumer(Sink, "sink", {"path": "x", "retry_wait_s": "long"})
    with pytest.raises(OptionError, match="did you mean 'retry_times'"):
        build_consumer(Sink, "sink", {"path": "x", "retry_time": 1})

    class Own(Everything):
        def __init__(self, retry_times: str = "") -> None:
            self.words = retry_times

    own = build_consumer(Own, "own", {"retry_times": "now and then"})
    assert isinstance(own, Own)
    assert (own.words, own.retry_times) == ("now and then", None)


def test_description() -> None:
    """The first line of the docstring describes a consumer."""
    assert description_of(Sink) == "Puts things somewhere"


def test_conversion_from_text() -> None:
    """Text from the command line becomes what the type hints say."""
    texts = {
        "path": "~/x",
        "threshold_s": "5",
        "count": "7",
        "verbose": "true",
        "names": "[a, b]",
        "mode": "b",
        "label": "8",
    }
    consumer = build_consumer(Sink, "sink", texts)
    assert isinstance(consumer, Sink)
    assert consumer.values == (Path("~/x").expanduser(), 5.0, 7, True, ["a", "b"], "b", "8")
    assert consumer.name == "sink"


def test_conversion_from_values() -> None:
    """Values from YAML are taken as they are."""
    consumer = build_consumer(Sink, "sink", {"path": Path("x"), "threshold_s": 5, "names": None})
    assert isinstance(consumer, Sink)
    assert consumer.values == (Path("x"), 5.0, 3, False, None, "a", "x")


@pytest.mark.parametrize(
    ("values", "option", "message"),
    [
        ({}, "path", "is required; give path=..."),
        (
            {"path": "x", "treshold_s": 1},
            "treshold_s",
            "there is no such option; did you mean 'threshold_s'?",
        ),
        ({"path": "x", "count": "many"}, "count", "must be an integer, not 'many'"),
        ({"path": "x", "count": 1.5}, "count", "must be an integer, not 1.5"),
        ({"path": "x", "mode": "c"}, "mode", "must be 'a' or 'b', not 'c'"),
        ({"path": "x", "names": "a: b"}, "names", "must be a list of text, not 'a: b'"),
        ({"path": 5}, "path", "must be a path, not 5"),
        ({"path": "x", "threshold_s": "nan"}, "threshold_s", "nan is not a finite number"),
        ({"path": "x", "threshold_s": math.inf}, "threshold_s", "inf is not a finite number"),
        ({"path": "x", "names": "[a, -.inf]"}, "names", "-inf is not a finite number"),
        ({"path": "x", "count": "-1"}, "path, count", "count must not be negative"),
    ],
)
def test_wrong_options(values: dict[str, Any], option: str, message: str) -> None:
    """Each mistake names the consumer, the option, and what would be right."""
    with pytest.raises(OptionError) as caught:
        build_consumer(Sink, "my-sink", values)
    assert (caught.value.consumer, caught.value.option) == ("my-sink", option)
    assert "'my-sink'" in str(caught.value)
    assert message in str(caught.value)


class Colour(Enum):
    RED = "red"
    GREEN = "green"


def test_the_choices_of_an_enumeration_are_listed() -> None:
    class Painter(Everything):
        def __init__(self, colour: Colour | None = None) -> None:
            self.colour = colour

    painter = build_consumer(Painter, "painter", {"colour": "green"})
    assert isinstance(painter, Painter)
    assert painter.colour is Colour.GREEN
    with pytest.raises(OptionError, match="must be 'red' or 'green', not 'blue'"):
        build_consumer(Painter, "painter", {"colour": "blue"})


def test_type_hints_that_cannot_be_read() -> None:
    """A hint that exists for type checkers only is an error of the class, in words."""

    class Hidden(Consumer):
        def __init__(self, value: Decimal) -> None: ...

    with pytest.raises(ConsumerDefinitionError, match="Decimal"):
        build_consumer(Hidden, "hidden", {"value": "1"})


class Part:
    """Something that an option may hold."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


class Whole(Consumer):
    """Options of types that only Python knows."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        path: str | Path | None = None,
        part: Part | None = None,
        limit=5,
        anything=None,
    ) -> None:
        self.values = (path, part and part.size, limit, anything)

    async def on_phase_complete(self, event: EventBase) -> None: ...


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"path": "x"}, ("x", None, 5, None)),
        ({"path": Path("x"), "limit": "7"}, (Path("x"), None, 7, None)),
        ({"part": f"{{class: {__name__}:Part, size: 3}}"}, (None, 3, 5, None)),
        ({"part": {"class": f"{__name__}:Part"}, "anything": "[1, a]"}, (None, 1, 5, [1, "a"])),
        ({"part": "null", "anything": "a: b: c"}, (None, None, 5, "a: b: c")),
    ],
)
def test_options_that_are_objects_or_have_no_hint(
    values: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    """A default is as good as a hint, and an object is named by its class."""
    consumer = build_consumer(Whole, "whole", values)
    assert isinstance(consumer, Whole)
    assert consumer.values == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"part": "big"}, "write {class: module:Class, option: value}"),
        ({"part": f"{{class: {__name__}:Sink, path: x}}"}, "must be a Part, not"),
        ({"part": f"{{class: {__name__}:Part, size: big}}"}, "option 'size': must be an integer"),
        ({"part": f"{{class: {__name__}:Prt}}"}, "has no 'Prt'; did you mean 'Part'"),
        ({"limit": "many"}, "must be an integer, not 'many'"),
        ({"path": 5}, "must be text or path, not 5"),
    ],
)  # fmt: skip
def test_objects_that_cannot_be_made(values: dict[str, Any], message: str) -> None:
    """One line, with what would be right."""
    with pytest.raises(OptionError) as caught:
        build_consumer(Whole, "whole", values)
    assert message in str(caught.value)
