"""The ``alerting`` consumer's alerts: when they fire and are resolved, and what a restart knows of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from phase_bus import StateError
from phase_bus.events import (
    Drop,
    EventBase,
    PhaseComplete,
    PhaseProgress,
    PhaseStats,
    PhaseTimeout,
    RunComplete,
)
from phase_bus.testing import PROFILING, MemoryBus, make_event, until
from phase_bus_consumers.alerting import PhaseAlerts
from phase_bus_consumers.alerting_conditions import Conditions
from phase_bus_consumers.alerting_delivery import UndeliveredError
from tests.support.servers.webhook import Webhook

SECOND = 10**9


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is so at once."""
    monkeypatch.setattr("phase_bus_consumers.alerting_delivery._LONGEST_WAIT_S", 0.2)


def progress(seconds: float, completed: int = 0, errors: int = 0, run_id: str = "r1") -> PhaseProgress:
    """A phase that has been running for so long."""
    stats = PhaseStats(start_ns=0, completed=completed, errors=errors)
    return PhaseProgress(run_id=run_id, phase=PROFILING, stats=stats, ts_ns=int(seconds * SECOND))


def complete(seconds: float, completed: int = 0, errors: int = 0, run_id: str = "r1") -> PhaseComplete:
    """A phase that took so long."""
    end_ns = int(seconds * SECOND)
    stats = PhaseStats(start_ns=0, end_ns=end_ns, completed=completed, errors=errors)
    return PhaseComplete(run_id=run_id, phase=PROFILING, stats=stats, ts_ns=end_ns)


def changes(*events: EventBase, limit: float | None = 0.1, run_end: bool = False) -> list[tuple[str, str]]:
    """Return kinds and states of what changes with events, one after another."""
    conditions = Conditions(60.0, limit, 20, run_end)
    return [(alert.kind, alert.state) for event in events for alert in conditions.take(event)]


FIRES, OVER = ("slow_phase", "firing"), ("slow_phase", "resolved")
END = RunComplete(run_id="r1", status="completed")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([progress(61), progress(62), complete(75)], [FIRES, OVER]),
        ([complete(75)], [FIRES, OVER]),
        ([progress(61), END], [FIRES, OVER]),
        ([progress(61, run_id="r2"), END], [FIRES]),
        ([progress(1, 100, 20), progress(2, 150, 20)], [("error_rate", "firing")]),  # it is 13 %
        ([progress(1, 100, 20), progress(2, 210, 20)], [("error_rate", "firing")]),  # just below the limit
        (
            [progress(1, 100, 20), progress(2, 300, 20)],
            [("error_rate", "firing"), ("error_rate", "resolved")],
        ),
        (
            [progress(1, 100, 20), complete(2, 210, 20), END],
            [("error_rate", "firing"), ("error_rate", "resolved")],
        ),
        ([progress(1, 100, 20), complete(2, 100, 20), END], [("error_rate", "firing")]),
        (
            [RunComplete(run_id="r1", status="lost"), progress(1), END],
            [("run_lost", "firing"), ("run_lost", "resolved")],
        ),
        (
            [RunComplete(run_id="r1", status="lost"), RunComplete(run_id="r1", status="lost"), END],
            [("run_lost", "firing"), ("run_lost", "resolved")],
        ),
        (
            [RunComplete(run_id="r1", status="failed"), END],
            [("run_failed", "firing"), ("run_failed", "resolved")],
        ),
        (
            [PhaseTimeout(run_id="r1", phase=PROFILING, requests_cut=3)] * 2,
            [("phase_timeout", "firing")],
        ),
    ],
)
def test_what_changes(events: list[EventBase], expected: list[tuple[str, str]]) -> None:
    assert changes(*events) == expected


def test_a_resolved_alert_has_the_key_of_the_one_that_fired_the_figure_and_the_limit() -> None:
    conditions = Conditions(60.0, None, 20, False)
    (fired,) = conditions.take(progress(61))
    (resolved,) = conditions.take(complete(75.25))
    assert fired.key == resolved.key
    assert resolved.message == "phase profiling is complete after 75.2 s (the limit is 60 s)"
    assert resolved.details == {"duration_s": 75.25, "threshold_s": 60.0}


def test_keys_differ_whatever_names_are_made_of() -> None:
    conditions = Conditions(0.0, None, 20, False)
    one = complete(1, run_id="a/b")
    other = msgspec.structs.replace(one, run_id="a", phase=msgspec.structs.replace(PROFILING, name="b/x"))
    assert len({alert.key for event in (one, other) for alert in conditions.take(event)}) == 2


def test_a_run_s_end_on_request() -> None:
    conditions = Conditions(60.0, None, 20, True)
    assert not conditions.take(complete(10, 3000, 24))
    end = RunComplete(run_id="r1", status="completed", records=3000)
    (ended,) = conditions.take(end)
    assert (ended.kind, ended.state) == ("run_end", "ended")
    assert ended.message == (
        "run r1 completed: 3,000 records; profiling: 3,000 requests, 24 errors (0.8%) in 10.0 s"
    )
    assert not conditions.known.phases


def test_what_is_kept_in_mind_has_a_bound() -> None:
    conditions = Conditions(60.0, None, 20, True)
    for number in range(1200):
        run = f"r{number}"
        conditions.take(progress(61, run_id=run))
        conditions.take(complete(1, run_id=f"x{number}"))
        conditions.take(Drop(run_id=run, source="bus", reason="full", events={"a": 1}))
    known = conditions.known
    assert len(known.firing) == len(known.drops) == len(known.phases) == 1000
    assert PhaseAlerts().state() is None


def options(webhook: Webhook, **others: Any) -> dict[str, Any]:
    return {"name": "alerting", "webhook": webhook.url, "webhook_format": "cloudevents", **others}


def told(webhook: Webhook) -> list[str]:
    return [str(each.json["type"]).removeprefix("phase-bus.") for each in webhook.received]


async def test_a_restart_tells_nothing_twice(webhook: Webhook) -> None:
    """What fires and was told is in the checkpoint: the next process resolves it without repeating it."""
    bus = MemoryBus()
    async with bus.consumer(PhaseAlerts, **options(webhook)) as run:
        bus.publish(progress(61))
        await run.catch_up()
        assert await run.flush()
        await run.crash()
    bus.publish(progress(65), complete(70))
    bus.complete_run("r1")
    await bus.run_consumer(PhaseAlerts, **options(webhook))
    assert told(webhook) == ["alert.firing", "alert.resolved"]
    assert webhook.received[0].json["data"]["message"].endswith("61.0 s, more than 60 s")


async def test_a_crash_before_the_checkpoint_tells_it_again_under_the_same_id(webhook: Webhook) -> None:
    """At least once: nothing is lost, and who is told twice can recognise it."""
    bus = MemoryBus()
    async with bus.consumer(PhaseAlerts, **options(webhook)) as run:
        bus.publish(progress(61))
        await run.catch_up()
        await until(lambda: not run.consumer._deliveries)
        await run.crash()
    async with bus.consumer(PhaseAlerts, **options(webhook)) as run:
        await run.catch_up()
    first, second = (each.json for each in webhook.received)
    assert first == second


async def test_a_crash_before_it_was_delivered_loses_nothing(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phase_bus_consumers.alerting_delivery._PATIENCE_S", 0.1)
    bus = MemoryBus()
    webhook.status = 503
    async with bus.consumer(PhaseAlerts, **options(webhook)) as run:
        bus.publish(progress(61))
        await run.catch_up()
        assert not await run.flush()
        await run.crash()
        await run.consumer.stop()
    webhook.status = 200
    webhook.received.clear()
    async with bus.consumer(PhaseAlerts, **options(webhook)) as run:
        await run.catch_up()
        assert await run.flush()
    assert told(webhook) == ["alert.firing"]


async def test_what_is_over_is_not_told_before_that_it_began(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the other side is away everything about one thing waits in its order."""
    monkeypatch.setattr("phase_bus_consumers.alerting_delivery._PATIENCE_S", 0.1)
    bus = MemoryBus()
    webhook.kill()
    async with bus.consumer(PhaseAlerts, **options(webhook)) as run:
        bus.publish(progress(61), complete(70))
        bus.complete_run("r1")
        await run.catch_up()
        assert not run.receipts
        webhook.start()
        await until(lambda: not run.consumer._deliveries)
    assert run.receipt.complete
    assert told(webhook) == ["alert.firing", "alert.resolved"]


async def test_a_dead_letter_that_is_tried_again_goes_to_those_who_lack_it(
    webhook: Webhook, tmp_path: Any
) -> None:
    """One target had it, the other was given up: the state says so, and the retry delivers that alone."""
    bus = MemoryBus()
    webhook.status = 500
    done = tmp_path / "done"
    use = options(webhook, retry_s=0.0, command=f"touch {done}")
    async with bus.consumer(PhaseAlerts, **use) as run:
        event = progress(61)
        bus.publish(event)
        await run.catch_up()
        assert await run.flush()
        state = run.consumer.state()
        place = (run.consumer.stream, run.consumer.offset)
    assert len(run.dead_letters) == 1
    assert state is not None
    done.unlink()
    webhook.status, webhook.received[:] = 200, []
    retried = PhaseAlerts(**{key: value for key, value in use.items() if key != "name"})
    retried.restore(state)
    await retried.start()
    retried.context.offset = place[1]
    retried.context.lineage = run.consumer.context.lineage
    assert (retried.stream, retried.offset) == place
    await retried.on_phase_progress(event)
    await retried.flush()
    await retried.stop()
    assert told(webhook) == ["alert.firing"]
    assert not done.exists()
    assert msgspec.msgpack.decode(retried.state() or b"")["owed"] == {}


async def test_too_many_that_wait_are_refused_and_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert that there is no room for is not taken for told: its event is a dead letter."""
    monkeypatch.setattr("phase_bus_consumers.alerting_delivery._MAX_WAITING", 1)
    consumer = PhaseAlerts(webhook="http://127.0.0.1:9/")
    await consumer.start()
    await consumer.on_phase_progress(progress(61))
    for _ in range(2):
        with pytest.raises(UndeliveredError, match="1 alert is not delivered yet"):
            await consumer.on_phase_progress(progress(61, run_id="r2"))
    await consumer.on_phase_progress(progress(1, run_id="r3"))
    await consumer.stop()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _state: b"\xc1",
        lambda state: msgspec.msgpack.encode(msgspec.msgpack.decode(state) | {"version": 99}),
    ],
)
def test_a_state_that_cannot_be_gone_on_from(spoil: Callable[[bytes], bytes]) -> None:
    consumer = PhaseAlerts()
    consumer._conditions.take(progress(61))
    state = consumer.state()
    assert state is not None
    with pytest.raises(StateError):
        PhaseAlerts().restore(spoil(state))
    again = PhaseAlerts()
    again.restore(state)
    assert again.state() == state


def test_an_event_of_another_kind_changes_nothing() -> None:
    assert changes(make_event(PhaseProgress, run_id="r1")) == []
