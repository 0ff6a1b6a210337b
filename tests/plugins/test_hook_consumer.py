"""Phase hooks as a consumer: what they are given, in which order, and what becomes of those that raise."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import msgspec
import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.errors import ConsumerDefinitionError, ConsumerNotFoundError, OptionError
from phase_bus.events import (
    PhaseComplete,
    PhaseEvent,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    RunComplete,
)
from phase_bus.plugins.adapters.hooks import HookConsumer
from phase_bus.plugins.build import build as build_consumer
from phase_bus.plugins.registry import Entry, Registry
from phase_bus.publisher.hooks import BasePhaseLifecycleHook, EventHook, EventTracker, to_phase, to_ref

WARMUP = PhaseRef("warmup", "warmup", 0)
STATS = PhaseStats(sent=100, completed=95, in_flight=5, start_ns=10, end_ns=2_000_000_010)
EVENTS = (PhaseStart, PhaseSendingComplete, PhaseTimeout, PhaseComplete)

called: list[tuple[Any, ...]] = []
broken: set[str] = set()


class CreditPhase(StrEnum):
    """As AIPerf's own."""

    WARMUP = "warmup"


class ByShape:
    """No base class, and only one of the methods."""

    def __init__(self, name="shape", number=1, when=None):  # type: ignore[no-untyped-def]
        self.options = (name, number, when)

    async def on_phase_complete(self, phase: Any, tracker: Any) -> None:
        called.append(("shape", phase, tracker.create_stats(), self.options))


class ByInheritance(BasePhaseLifecycleHook):
    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.count = 0

    async def on_phase_complete(self, phase: Any, tracker: Any) -> None:
        if "inheritance" in broken:
            raise RuntimeError("not today")
        self.count += 1
        called.append(("inheritance", f"{self.prefix}{phase}", self.count))


class WithHandler:
    def __init__(self, handler):  # type: ignore[no-untyped-def]
        self.handler = handler

    async def on_phase_complete(self, phase: Any, tracker: Any) -> None:
        called.append(("handler", self.handler.channel))


class Handler:
    def __init__(self, channel: str, urgent: bool = False) -> None:
        self.channel = (channel, urgent)


class Everything:
    def __init__(self, **options: Any) -> None:
        self.options = options

    def on_phase_complete(self, phase: Any, tracker: Any) -> None:  # not even async
        called.append(("everything", self.options))


class Explodes:
    def __init__(self) -> None:
        raise RuntimeError("boom")

    async def on_phase_start(self, phase: Any, tracker: Any) -> None: ...


class Plain: ...


def entry(name: str, cls: type, priority: int = 50, **more: Any) -> Entry:
    return Entry(name=name, kind="hook", target=f"{__name__}:{cls.__name__}", priority=priority, **more)


REGISTRY = Registry(
    hooks={
        e.name: e
        for e in (
            entry("late", ByShape, 90),
            entry("early", ByInheritance, 10),
            entry("needs", WithHandler, 20, auto_load=False),
            entry("explodes", Explodes, 1),
            Entry(name="gone", kind="hook", target="no_such_module:Hook"),
        )
    }
)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    called.clear()
    broken.clear()


def build(use: str, **values: Any) -> Consumer:
    return build_consumer(REGISTRY, use, use, values)


def at(name: str) -> str:
    return f"{__name__}:{name}"


def event(kind: type[PhaseEvent] = PhaseComplete, run_id: str = "r") -> PhaseEvent:
    return kind(run_id=run_id, phase=WARMUP, stats=STATS)


async def tell(consumer: Consumer, *events: PhaseEvent | RunComplete) -> None:
    for each in events:
        await getattr(consumer, f"on_{each.kind}")(each)


def test_a_phase_is_what_hooks_expect() -> None:
    """It reads as a text and as a member of an enum, whoever's enum it is, and can be encoded."""
    phase: Any = to_phase(WARMUP)
    assert f"{phase}" == phase == CreditPhase.WARMUP == phase.value == "warmup"
    assert (phase.name, phase.value.upper()) == ("WARMUP", "WARMUP")
    assert {"warmup": 1}[phase] == 1
    assert json.dumps({phase: phase}) == '{"warmup": "warmup"}'
    assert msgspec.json.encode(phase) == b'"warmup"'
    assert to_ref(phase) is WARMUP


@pytest.mark.parametrize("name", ["ramp-2", "", "__x__", "mro", "a b", "é"])
def test_phases_of_any_name(name: str) -> None:
    """Other load generators name their phases as they like."""
    assert str(to_phase(PhaseRef(name))) == name


@pytest.mark.parametrize("kind", EVENTS)
async def test_a_hook_of_ours_gets_the_event_itself(kind: type[PhaseEvent]) -> None:
    """Nothing that the event says is lost on the way, such as when it happened."""
    taken: list[PhaseEvent] = []

    class Hook(EventHook):
        def take(self, event: PhaseEvent) -> None:
            taken.append(event)

    happened = event(kind)
    await getattr(Hook(), f"on_{kind.kind}")(to_phase(WARMUP), EventTracker(happened))
    assert taken == [happened]
    assert taken[0] is happened


async def test_by_shape() -> None:
    """A class of one method gets that event, with phase and counts, and no other."""
    consumer = build(f"hook:{at('ByShape')}")
    await tell(consumer, *(event(kind) for kind in EVENTS))
    assert called == [("shape", "warmup", STATS, ("shape", 1, None))]


async def test_options_are_the_constructors_parameters() -> None:
    """Without type hints, defaults say the types; without defaults, YAML does."""
    await tell(build(f"hook:{at('ByShape')}", name="5", number="5", when="[1, a]"), event())
    assert called[0][3] == ("5", 5, [1, "a"])
    await tell(build(f"hook:{at('Everything')}", any="1", other="x"), event())
    assert called[1] == ("everything", {"any": 1, "other": "x"})


@pytest.mark.parametrize(
    "value", ["{class: %s, channel: ops, urgent: true}", {"class": "%s", "channel": "ops", "urgent": True}]
)
async def test_an_object_as_an_option(value: Any) -> None:
    """An object that a constructor wants is named by its class, on the command line and in YAML."""
    if isinstance(value, str):
        value %= at("Handler")
    else:
        value = {**value, "class": at("Handler")}
    await tell(build(f"hook:{at('WithHandler')}", handler=value), event())
    assert called == [("handler", ("ops", True))]


@pytest.mark.parametrize("use", ["hook:late,early", "hook:early,late", "hooks"])
async def test_several_run_in_the_order_of_their_priority(
    use: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Lower first, however they are named; of all that load by themselves, broken ones are left out."""
    await tell(build_consumer(REGISTRY, use, use, {"early.prefix": "the ", "late.number": "7"}), event())
    assert [call[0] for call in called] == ["inheritance", "shape"]
    assert called[0][1] == "the warmup"
    assert called[1][3] == ("shape", 7, None)
    told = caplog.text if use == "hooks" else "boom no_such_module left out"
    assert "boom" in told
    assert "no_such_module" in told
    assert "left out" in told


async def test_each_run_has_hooks_of_its_own() -> None:
    """What a hook keeps of one run is not mixed with another's, even when they overlap."""
    consumer = build("hook:early")
    await tell(consumer, event(), event(run_id="other"), event())
    await tell(consumer, RunComplete(run_id="r", status="completed"), event())
    assert [call[2] for call in called] == [1, 1, 2, 1]


async def test_one_that_raises_is_tried_again_alone() -> None:
    """The others have the event once; the failure is raised, so that the event is dead-lettered."""
    consumer = build("hook:early,late")
    broken.add("inheritance")
    failing = event()
    consumer.context.offset = 7
    for _ in range(3):
        with pytest.raises(ExceptionGroup, match="hook early failed") as caught:
            await tell(consumer, failing)
        assert str(caught.value.exceptions[0]) == "not today"
    assert [call[0] for call in called] == ["shape"]
    consumer.context.offset = 8
    broken.clear()
    await tell(consumer, event())
    assert [call[0] for call in called] == ["shape", "inheritance", "shape"]
    # Later, by 'dead-letters retry', in another process.
    again = build("hook:early,late")
    state = consumer.state()
    assert state is not None
    again.restore(state)
    again.context.offset = 7
    await tell(again, failing)
    assert [call[0] for call in called] == ["shape", "inheritance", "shape", "inheritance"]
    assert again.state() == msgspec.msgpack.encode({})


@pytest.mark.parametrize(
    ("use", "values", "error", "message"),
    [
        ("hook:erly", {}, ConsumerNotFoundError, "a phase hook of that.*did you mean 'early'"),
        ("early", {}, ConsumerNotFoundError, "that is a phase hook; write it as 'hook:early'"),
        ("hook:gone", {}, ConsumerNotFoundError, "No module named 'no_such_module'"),
        ("hook:{here}:Plain", {}, ConsumerNotFoundError, "not a phase hook: it has none of on_phase_start"),
        ("hook:{here}:Handler", {}, ConsumerNotFoundError, "is not a phase hook"),
        ("hook:early,{here}:Nothing", {}, ConsumerNotFoundError, "has no 'Nothing'"),
        ("hook:early,early", {}, ConsumerDefinitionError, "two are called 'early'"),
        ("hook:explodes", {}, ConsumerDefinitionError, "constructor of 'explodes' failed .Runtime"),
        ("hook:needs", {}, OptionError, "option 'handler': is required; give handler=..."),
        ("hook:needs,early", {}, OptionError, "is required; give needs.handler=..."),
        ("hook:early", {"prefx": "x"}, OptionError, "there is no such option; did you mean 'prefix'"),
        ("hook:early,late", {"prefix": "x"}, OptionError, "write it as NAME.prefix=..., with one of"),
        ("hook:early,late", {"ealry.prefix": "x"}, OptionError, "one of the names early, late"),
        ("hook:needs", {"handler": "{class: nowhere:X}"}, OptionError, "No module named 'nowhere'"),
        ("hook:needs", {"handler": "{class: '{here}:Handler'}"}, OptionError, "is required; give channel"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(use: str, values: dict[str, str], error: type[Exception], message: str) -> None:
    """One line says what is wrong, before anything starts."""
    values = {name: value.replace("{here}", __name__) for name, value in values.items()}
    with pytest.raises(error, match=message) as caught:
        build_consumer(REGISTRY, use.replace("{here}", __name__), "mine", values)
    assert "\n" not in str(caught.value)


def test_no_hook_needs_no_naming() -> None:
    """``hooks`` with nothing to load is an error, not an idle process."""
    only = Registry(hooks={"needs": REGISTRY.hooks["needs"]})
    with pytest.raises(ConsumerNotFoundError, match="no hook is loaded without being named"):
        build_consumer(only, "hooks", "hooks", {})


def test_a_module_called_hooks() -> None:
    """``hooks:Class`` is the class of a module of that name, as for any other."""
    with pytest.raises(ConsumerNotFoundError, match="No module named 'hooks'"):
        build_consumer(REGISTRY, "hooks:MyConsumer", "mine", {})


def test_adapt_makes_named_consumers() -> None:
    consumer = build_consumer(REGISTRY, "hook:early", "mine", {})
    assert isinstance(consumer, HookConsumer)
    assert consumer.name == "mine"
