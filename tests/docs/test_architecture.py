"""docs/architecture.md: what it names is there, and the routes that it walks are those that are taken."""

from __future__ import annotations

import asyncio
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import phase_bus
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.events import PhaseRef, PhaseStart, PhaseStats
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing import LiveBus, until

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(str(phase_bus.__file__)).parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PICTURE = (ROOT / "docs" / "assets" / "architecture.svg").read_text()
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_every_path_is_there() -> None:
    """Modules are named from the package, everything else from the project's root."""
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?|\w+\.\w{2,4})`", PAGE):
        if "NAME" not in path:
            assert any((root / path).exists() for root in (PACKAGE, ROOT, PACKAGE / "consumer")), path


def test_the_boxes_are_those_of_the_contract() -> None:
    """The table has every folder, in the contract's order; the picture has them all."""
    rows = re.search(r"^\| \| folder .*?\n\n", PAGE, re.DOTALL | re.MULTILINE)
    assert rows
    told = re.findall(r"`(\w+)(?:/|\.py)`", rows[0])
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    place = {name: n for n, layer in enumerate(contract["layers"]) for name in layer.split(" | ")}
    assert set(told) == set(place) >= FOLDERS
    assert [place[name] for name in told] == sorted(place[name] for name in told)
    assert set(told) <= set(re.findall(r">(\w+)</text>", PICTURE))


def walked(heading: str) -> list[set[str]]:
    """Return the modules of a route's numbered table: in each row those that one of is passed."""
    section = PAGE.partition(heading)[2].partition("\n\n## ")[0]
    rows = re.findall(r"^\| \d \| (.*?) \|", section, re.MULTILINE)
    return [set(re.findall(r"`((?:consumer|core)/\w+\.py)`", row)) for row in rows]


class Notes:
    """The calls of our modules in one thread, in order; ``read`` looks at each as it comes."""

    def __init__(self, read: Callable[[str, str], None]) -> None:
        self._read = read

    def __call__(self, frame: FrameType, what: str, _argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if what == "call" and path.is_relative_to(PACKAGE):
            self._read(str(path.relative_to(PACKAGE)), frame.f_code.co_name)


def modules_of(frame: FrameType | None) -> set[str]:
    """Return our modules that a frame was called from."""
    found = set()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found.add(str(path.relative_to(PACKAGE)))
        frame = frame.f_back
    return found


async def test_the_routes_are_those_that_are_taken(no_leaks: None) -> None:
    """A live event from the socket to the handler, and the beat that carries the commit."""
    calls: list[tuple[str, str]] = []
    event: set[str] = set()
    commit: set[str] = set()

    def read(module: str, name: str) -> None:
        if (module, name) in (("core/wire.py", "receive_event"), ("core/session.py", "due")):
            calls.clear()
        calls.append((module, name))
        if (module, name) == ("core/wire.py", "encode_control") and ("consumer/share.py", "tell") in calls:
            commit.update({called for called, _ in calls} | modules_of(sys._getframe(2)))

    class Watcher(Consumer):
        async def on_phase_start(self, _event: PhaseStart) -> None:
            if sys.getprofile() is not None:
                event.update({called for called, _ in calls} | modules_of(sys._getframe(1)))

    def phase_start(name: str) -> PhaseStart:
        return PhaseStart(run_id="r", ts_ns=1, phase=PhaseRef(name), stats=PhaseStats())

    with LiveBus() as bus, Publisher(bus.address) as publisher:
        runner = ConsumerRunner(named(Watcher(), "watcher"), Address.parse(bus.address))
        running = asyncio.create_task(runner.run())
        await until(lambda: runner.state == "ready" and not runner.share.follower.replaying)
        publisher.publish(phase_start("warmup"))
        await until(lambda: runner.share.dispatcher.received == 1)
        sys.setprofile(Notes(read))
        try:
            publisher.publish(phase_start("profiling"))
            await until(lambda: runner.share.checkpoint == 2 and runner.share.commit is None)
        finally:
            sys.setprofile(None)
        runner.stop()
        await running
    for taken, heading in ((event, "**To the handler.**"), (commit, "## The route of a checkpoint")):
        route = walked(heading)
        assert route
        assert taken <= set().union(*route)
        assert all(row & taken for row in route), (route, taken)
