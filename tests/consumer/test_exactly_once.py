"""The same bytes from one worker, from eight, and from workers that are killed, stopped and replaced."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import GroupInfo, Status
from phase_bus.events import Receipt, Summary
from phase_bus.journal.reader import JournalReader
from phase_bus.testing.waiting import wait_until
from tests.support.processes import ROOT, JournaledBus, Killable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RECORDS = 2_000_000
SILENT_S = 1.5


class Group:
    """Workers of one group, each a process, on a bus that is a process too."""

    def __init__(self, bus: JournaledBus, directory: Path, name: str) -> None:
        self.bus, self.name = bus, name
        self.workers: list[Killable] = []
        self._directory = directory

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.kill()

    def add(self) -> Killable:
        """Start one more."""
        log = self._directory / f"{self.name}-{len(self.workers)}.log"
        settings = [f"output={self._directory / self.name}.json", "interval_s=0.5"]
        worker = Killable(
            log, "-m", "phase_bus", "consume", "aggregator", "--group", self.name,
            "--address", self.bus.address, *[part for each in settings for part in ("--set", each)],
        )  # fmt: skip
        worker.start()
        self.workers.append(worker)
        return worker

    @property
    def info(self) -> GroupInfo | None:
        """What the bus knows of it."""
        return next((info for info in status(self.bus).groups if info.name == self.name), None)

    def received(self) -> int:
        """How many events its living members have received, as they last said."""
        members = [client for client in status(self.bus).clients if client.group == self.name]
        return sum(client.received for client in members if client.state == "ready")

    def wait_received(self, events: int) -> None:
        """Wait until its living members have received so many more events."""
        goal = self.received() + events
        wait_until(lambda: self.received() >= goal, timeout_s=60.0)

    def is_missed(self, worker: Killable) -> bool:
        """Whether the bus has noticed that one is gone."""
        states = {client.pid: client.state for client in status(self.bus).clients}
        return states.get(worker.pid) == "silent"

    def wait_handled(self, run_id: str) -> GroupInfo:
        """Wait until it has handled the run's end."""

        def handled() -> GroupInfo | None:
            assert any(worker.runs for worker in self.workers), self.workers[-1].tail()
            info = self.info
            return info if info is not None and run_id in info.handled_runs else None

        return wait_until(lambda: handled() or False, timeout_s=120.0)


def status(bus: JournaledBus) -> Status:
    """What the bus knows."""
    with BusClient(Address.parse(bus.address)) as client:
        return client.status(20.0)


def result(bus: JournaledBus, name: str, run_id: str) -> bytes:
    """The final result that a group published, without anything that names it."""
    finals = [s for s in journaled(bus, Summary, run_id) if s.producer == name and s.final]
    assert finals
    assert len({msgspec.json.encode(final.result) for final in finals}) == 1
    (receipt,) = [r for r in journaled(bus, Receipt, run_id) if r.consumer == name][-1:]
    assert receipt.complete, receipt
    return msgspec.json.encode(finals[-1].result)


def report(bus: JournaledBus, run_id: str, *options: str) -> bytes:
    """The result that `phase-bus report --json` prints, without its white space."""
    command = [sys.executable, "-m", "phase_bus", "report", run_id, "--json", *options]
    done = subprocess.run(
        [*command, "--data", str(bus.directory)], cwd=ROOT, capture_output=True, check=True, timeout=200
    )
    document = msgspec.json.decode(done.stdout)
    del document["settings"]  # of the run, not of its result
    return msgspec.json.encode(document)


def journaled(bus: JournaledBus, kind: type[Any], run_id: str) -> list[Any]:
    """The events of one kind in the journal."""
    with JournalReader(bus.directory) as reader:
        return reader.events(run_id, kind)


def simulate(bus: JournaledBus, run_id: str, records: int, rate: float) -> subprocess.Popen[bytes]:
    """Publish a run."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "phase_bus", "simulate", "--requests", str(records), "--rate", str(rate),
            "--run-id", run_id, "--address", bus.address,
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JournaledBus]:
    """A bus whose journal holds a long run already."""
    directory = tmp_path_factory.mktemp("long")
    options = ("--silent-after-s", str(SILENT_S))
    bus = JournaledBus(directory, "tcp://127.0.0.1:0", options=options)
    try:
        with simulate(bus, "long", RECORDS, 0) as publisher:
            assert publisher.wait(200) == 0
        yield bus
    finally:
        bus.kill()


@pytest.fixture(scope="module")
def alone(bus: JournaledBus, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one worker makes of the long run."""
    with Group(bus, tmp_path_factory.mktemp("alone"), "alone") as group:
        group.add()
        group.wait_handled("long")
    return result(bus, "alone", "long")


def test_the_ungrouped_aggregator(bus: JournaledBus, alone: bytes, tmp_path: Path) -> None:
    """So does the consumer without any group, and the report that reads the journal."""
    assert report(bus, "long") == alone
    assert report(bus, "long", "--by", "alone") == alone
    log = tmp_path / "single.log"
    arguments = ("consume", "aggregator", "--name", "single", "--address", bus.address)
    with Killable(log, "-m", "phase_bus", *arguments, "--set", f"output={tmp_path / 'single.json'}"):
        wait_until(
            lambda: any(s.final and s.producer == "single" for s in journaled(bus, Summary, "long")), 60
        )
        wait_until(lambda: any(r.consumer == "single" for r in journaled(bus, Receipt, "long")))
    assert result(bus, "single", "long") == alone


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_several_workers(bus: JournaledBus, alone: bytes, tmp_path: Path, workers: int) -> None:
    """However many share the work, the bytes are those of one."""
    with Group(bus, tmp_path, f"{workers}-workers") as group:
        for _ in range(workers):
            group.add()
        group.wait_handled("long")
        assert result(bus, group.name, "long") == alone


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_workers(bus: JournaledBus, alone: bytes, tmp_path: Path, seed: int) -> None:
    """Three of four are killed at random places and one is added: each record is counted once."""
    dice = random.Random(seed)
    print(f"seed {seed}")
    with Group(bus, tmp_path, f"killed-{seed}") as group:
        for _ in range(4):
            group.add()
        for number, worker in enumerate(dice.sample(group.workers, 3)):
            group.wait_received(dice.randint(200, 900))  # of some 7,800
            assert group.info is not None
            assert "long" not in group.info.handled_runs, "it was over too soon to kill anybody"
            worker.kill()
            if number == 1:
                group.add()
        group.wait_handled("long")
        assert result(bus, group.name, "long") == alone


def test_a_live_run_with_kills_and_a_pause(bus: JournaledBus, tmp_path: Path) -> None:
    """While a run goes on: a worker sleeps past its time and wakes, others are killed, one is added.

    The sleeper finds its shares given away; a group of one, left alone, has the same result.
    """
    seed = 7
    dice = random.Random(seed)
    print(f"seed {seed}")
    with ExitStack() as stack:
        calm = stack.enter_context(Group(bus, tmp_path, "calm"))
        group = stack.enter_context(Group(bus, tmp_path, "chased"))
        calm.add()
        for _ in range(4):
            group.add()
        wait_until(lambda: (info := group.info) is not None and info.members == 4, timeout_s=60.0)
        wait_until(lambda: "long" in group.wait_handled("long").handled_runs)
        publisher = simulate(bus, "live", 150_000, 10_000)
        try:
            sleeper, *others = dice.sample(group.workers, 4)
            before = group.received()
            wait_until(lambda: group.received() > before + 20)
            sleeper.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: (info := group.info) is not None and info.members == 3, timeout_s=30.0)
            sleeper.process.send_signal(signal.SIGCONT)
            wait_until(lambda: (info := group.info) is not None and info.members == 4, timeout_s=30.0)
            others[0].kill()
            group.add()
            wait_until(lambda: group.is_missed(others[0]))
            others[1].kill()
            assert publisher.wait(60) == 0
        finally:
            publisher.kill()
            publisher.wait()
        group.wait_handled("live")
        calm.wait_handled("live")
        assert "was given to another member while this one was silent" in sleeper.log.read_text()
        assert result(bus, "chased", "live") == result(bus, "calm", "live")
