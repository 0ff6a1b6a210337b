"""A consumer's process that dies is started again, as often as it may be, unless all is ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from phase_bus.core.control import Status
from phase_bus.harness import restarts
from phase_bus.harness.children import ConsumerChild
from phase_bus.harness.config import ConsumerConfig
from phase_bus.harness.restarts import Restarts
from phase_bus.testing.waiting import until

STATUS = Status(bus_id="", pid=0, addresses=(), uptime_s=0.0, events=0, dropped=0, offset=0)


class FakeChild(ConsumerChild):
    """A consumer whose process is a number: the times that it was started."""

    def __init__(self) -> None:
        super().__init__(ConsumerConfig("metrics"), "ipc:///nowhere", lambda _who, _line: None, 1.0)
        self.starts = 1
        self.code: int | None = None
        self.ready = True
        self.on_start: Callable[[], None] = lambda: None
        self._ended = asyncio.Event()

    def die(self, code: int) -> None:
        self.code = code
        self._ended.set()

    @property
    def returncode(self) -> int | None:
        return self.code

    async def start(self) -> None:
        self.code = None
        self._ended = asyncio.Event()
        self.starts += 1
        self.on_start()

    async def wait(self) -> None:
        await self._ended.wait()

    async def stop(self) -> bool:
        self.ending = True
        self.die(0)
        return True

    def is_ready(self, status: Status) -> bool:
        return self.ready


class World:
    """A watched child, what was noted, and whether there is anything left to do."""

    def __init__(self, most: int) -> None:
        self.child = FakeChild()
        self.notes: list[str] = []
        self.going_on = True
        self.watch = Restarts(
            self.child, most, status=self._status, goes_on=lambda: self.going_on, note=self._note
        )
        self.task = asyncio.create_task(self.watch.run())

    async def _status(self) -> Status | None:
        return STATUS

    def _note(self, *parts: Any) -> None:
        self.notes.append("".join(part if isinstance(part, str) else part[0] for part in parts))

    async def die(self, code: int) -> None:
        """Die, and wait until it is there again, or is given up."""
        died = self.child.starts
        self.child.die(code)
        await until(lambda: self.task.done() or (self.child.starts > died and not self.watch.death))

    async def result(self) -> str:
        async with asyncio.timeout(10.0):
            return await self.task


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it look, and start again, at once."""
    monkeypatch.setattr(restarts, "_WAIT_S", 0.0)
    monkeypatch.setattr(restarts, "_LOOK_S", 0.0)


async def test_it_comes_back_and_that_is_told() -> None:
    world = World(most=3)
    await world.die(-9)
    assert world.notes == [
        "consumer metrics was ended by SIGKILL; starting it again (1 of 3)",
        "consumer metrics is back, and goes on from where it was",
    ]
    await world.child.stop()
    assert await world.result() == ""


async def test_it_is_given_up_when_its_restarts_are_used_up() -> None:
    world = World(most=2)
    for _ in range(3):
        await world.die(1)
    assert await world.result() == "ended with exit code 1, having been started again 2 times"
    assert world.child.starts == 3


@pytest.mark.parametrize(
    ("most", "code"), [(0, -9), (3, 2)], ids=["none wanted", "the user's to put right"]
)
async def test_it_is_not_started_again(most: int, code: int) -> None:
    world = World(most)
    await world.die(code)
    assert await world.result()
    assert (world.child.starts, world.notes) == (1, [])


async def test_who_ran_for_long_has_all_restarts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "_RESTORED_AFTER_S", 0.0)
    world = World(most=1)
    for _ in range(4):
        await world.die(-11)
    assert world.child.starts == 5
    await world.child.stop()
    await world.result()


async def test_one_that_is_not_ready_again_counts_as_dead() -> None:
    """So that nobody takes its work for done."""
    world = World(most=3)
    world.child.ready = False
    world.child.die(-9)
    await until(lambda: world.child.starts == 2)
    assert world.watch.death == "was ended by SIGKILL"
    world.going_on = False
    await world.child.stop()
    assert await world.result()


async def test_nothing_is_started_when_all_is_over() -> None:
    world = World(most=3)
    world.going_on = False
    world.child.die(-9)
    assert await world.result() == "was ended by SIGKILL"
    assert world.child.starts == 1


async def test_one_that_started_while_the_others_were_stopped_is_stopped() -> None:
    """Whoever stopped the others did not see it: it would be left behind."""
    world = World(most=3)

    def close() -> None:
        world.going_on = False

    world.child.on_start = close
    world.child.die(-9)
    assert await world.result() == "was ended by SIGKILL"
    assert world.child.starts == 2
    assert world.child.ending
