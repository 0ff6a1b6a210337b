"""Everything that runs in the chaos test: a bus, its consumers, and publishers one after another."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import zmq

from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Status
from phase_bus.core.wire import decode_event
from phase_bus.errors import BusUnreachableError
from phase_bus.events import Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.testing.waiting import wait_until
from tests.chaos.publish import EVENTS_A_PHASE
from tests.support.processes import Forwarder, JournaledBus, Killable, consumer

SILENT_AFTER_S = 2.0
_OPTIONS = (
    *("--silent-after-s", str(SILENT_AFTER_S), "--max-runs", "4"),
    *("--max-bytes", "200000", "--max-unread-bytes", "2000000"),
)  # fmt: skip
_PATIENCE_S = 120.0
_LATE_S = 30.0  # how long after its end a run may be in the journal alone


@dataclass
class Run:
    """A run as it was planned, from the seed alone.

    Attributes:
        records: they are numbered from 0.
        phases: each has :data:`EVENTS_A_PHASE` events, which are numbered from 0 through all phases.
        started_s, ended_s: when its publisher was there, by :func:`time.monotonic`.
    """

    run_id: str
    records: int
    phases: int
    started_s: float = 0.0
    ended_s: float = 0.0

    @property
    def phase_events(self) -> int:
        """How many phase events it has."""
        return self.phases * EVENTS_A_PHASE


def name_of(process: str) -> str:
    """Return the consumer's name, which all members of a group have in common."""
    return process.partition("-")[0]


class Observer:
    """Listens to all receipts: a run that is pruned takes those in the journal with it."""

    def __init__(self, directory: Path) -> None:
        self.receipts: list[Receipt] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.RCVHWM, 0)
        self._sub.subscribe("receipt.")
        self._sub.connect(f"ipc://{directory}/events.ipc")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _main(self) -> None:
        while not self._stop.is_set():
            if self._sub.poll(100):
                topic, _, payload = self._sub.recv_multipart()
                event = decode_event(topic, payload)
                assert isinstance(event, Receipt)
                self.receipts.append(event)


class _Held(NamedTuple):
    process: Killable
    pid: int
    until_s: float


@dataclass
class World:
    """Everything that runs, and what has been done to it.

    Attributes:
        cuts: when the journal lost something, or was replaced.
        journals: those that were moved away.
    """

    directory: Path
    bus: JournaledBus
    consumers: dict[str, Killable]
    forwarder: Forwarder
    random: random.Random
    runs: list[Run]
    rate: float
    publishers: dict[str, Killable] = field(default_factory=dict)
    cuts: list[float] = field(default_factory=list)
    journals: list[Path] = field(default_factory=list)
    _next: int = 0
    _held: list[_Held] = field(default_factory=list)

    # ---- publishers: two at a time ----

    def keep_publishing(self) -> bool:
        """Start publishers where one has ended; return whether there is one."""
        for run in self.runs[: self._next]:
            process = self.publishers[run.run_id]
            if not run.ended_s and not process.runs:
                run.ended_s = time.monotonic()
                assert process.process.returncode == 0, f"{process.tail()}\n{self.bus.tail()}"
        while self._next < len(self.runs) and len(self.publishing) < 2:
            run = self.runs[self._next]
            process = Killable(
                self.directory / f"{run.run_id}.log", "-m", "tests.chaos.publish",
                f"tcp://127.0.0.1:{self.forwarder.port}", run.run_id, str(run.records),
                str(run.phases), str(self.rate), str(self.truth_of(run)),
            )  # fmt: skip
            self.publishers[run.run_id] = process
            process.start()
            run.started_s = time.monotonic()
            self._next += 1
        return bool(self.publishing)

    def end_publishers(self) -> None:
        """Kill those that are there."""
        for process in self.publishers.values():
            process.kill()

    @property
    def publishing(self) -> list[Killable]:
        """The publishers that are there."""
        return [process for process in self.publishers.values() if process.runs]

    def truth_of(self, run: Run) -> Path:
        """Return the file in which a run's publisher says what it has published."""
        return self.directory / f"{run.run_id}.truth"

    def was_cut(self, run: Run) -> bool:
        """Return whether the journal lost something while there was something of a run in it alone."""
        return any(run.started_s <= cut_s <= run.ended_s + _LATE_S for cut_s in self.cuts)

    def was_pruned_unread(self, run: Run, name: str) -> bool:
        """Return whether the bus said that it pruned a run before a consumer had read it."""
        said = re.findall(
            rf"run {run.run_id} was pruned from the journal before it was read by (.*)",
            self.bus.log.read_text(),
        )
        return any(f"{name} (" in each for each in said)

    def was_safe(self, run: Run, name: str) -> bool:
        """Return whether nothing happened to a run that may cost a consumer anything of it."""
        return not self.was_cut(run) and not self.was_pruned_unread(run, name)

    # ---- processes that are suspended, while other things happen ----

    def hold(self, process: Killable, seconds: float) -> None:
        """Suspend a process until :meth:`let_go` is called and the time is over."""
        os.kill(process.pid, signal.SIGSTOP)
        self._held.append(_Held(process, process.pid, time.monotonic() + seconds))

    def let_go(self, *, all_of_them: bool = False) -> None:
        """Let those go on that were suspended for long enough."""
        now_s = time.monotonic()
        for held in [each for each in self._held if all_of_them or each.until_s <= now_s]:
            self._held.remove(held)
            if held.process.runs and held.process.pid == held.pid:  # it may have been killed meanwhile
                os.kill(held.pid, signal.SIGCONT)

    # ---- the end ----

    def status(self) -> Status | None:
        """Return the bus's status, None if it does not answer."""
        with BusClient(Address.parse(self.bus.address)) as client:
            try:
                return client.status()
            except BusUnreachableError:
                return None

    def await_end(self) -> None:
        """Publish a last run, and wait until each consumer has handled it and all others that are there.

        In its receipt it tells what it has lost before.
        """
        self.runs.append(Run("last", 200, 1))
        while self.keep_publishing():
            time.sleep(0.05)

        def handled() -> bool:
            for process in (self.bus, *self.consumers.values()):
                assert process.runs, process.tail()
            status = self.status()
            if status is None or any(run.status == "running" for run in status.runs):
                return False
            clients = {c.pid: c for c in status.clients if c.role == "consumer" and c.state == "ready"}
            if not all(process.pid in clients for process in self.consumers.values()):
                return False
            # One that is not known is what the bus says of junk.
            ended = {"last", *(run.run_id for run in status.runs if run.status != "unknown")}
            groups = {group.name: group for group in status.groups}
            return all(
                ended <= set((groups.get(name_of(name)) or clients[process.pid]).handled_runs)
                for name, process in self.consumers.items()
            )

        try:
            wait_until(handled, _PATIENCE_S)
        except AssertionError:
            logs = "\n".join(p.tail() for p in (self.bus, *self.consumers.values()))
            raise AssertionError(f"{self.status()}\n{logs}") from None

    def stop(self) -> None:
        """End everything in order."""
        for process in self.consumers.values():
            assert process.terminate() == 0, process.tail()
        assert self.bus.terminate() == 0, self.bus.tail()

    def kept_receipts(self) -> Iterator[Receipt]:
        """Yield the receipts in all journals that there were."""
        for directory in (*self.journals, self.bus.directory):
            with JournalReader(directory) as journal:
                for row in journal.runs():
                    yield from journal.events(row.run_id, Receipt)

    def log_of(self, name: str) -> str:
        """Return what a consumer, all members of a group, said."""
        return "".join(p.log.read_text() for n, p in self.consumers.items() if name_of(n) == name)

    def said(self, run: Run) -> Any:
        """Return what a run's publisher said it has published."""
        return json.loads(self.truth_of(run).read_text())


@contextmanager
def a_world(
    tmp_path: Path, ipc_dir: Path, database: str, seed: int, runs: list[Run], rate: float
) -> Iterator[World]:
    """Start the bus and the consumers; end whatever is left at the end."""
    with ExitStack() as stack:
        bus = JournaledBus(tmp_path, "tcp://127.0.0.1:0", f"ipc://{ipc_dir}", options=_OPTIONS)
        stack.callback(bus.kill)
        tcp, ipc = bus.addresses
        forwarder = stack.enter_context(Forwarder(Address.parse(tcp).port))

        def aggregator(name: str, output: str, *options: str) -> Killable:
            return Killable(
                tmp_path / f"{name}.log", "-m", "phase_bus", "consume", "aggregator", "--address", ipc,
                "--set", f"output={tmp_path / output}", *options,
            )  # fmt: skip

        consumers = {
            "recording": consumer(
                tmp_path, "tests.support.writers:Recording", ipc, f"output={tmp_path / 'recording.txt'}"
            ),
            "sql": consumer(tmp_path, "sql", tcp, f"url={database}"),
            "metrics": consumer(tmp_path, "metrics", ipc, f"output={tmp_path / 'metrics.json'}"),
            "alone": aggregator("alone", "alone.json", "--name", "alone"),
            "team-1": aggregator("team-1", "team.json", "--group", "team"),
            "team-2": aggregator("team-2", "team.json", "--group", "team"),
        }
        for process in consumers.values():
            stack.enter_context(process)
        world = World(tmp_path, bus, consumers, forwarder, random.Random(seed), runs, rate)
        stack.callback(world.end_publishers)
        yield world
