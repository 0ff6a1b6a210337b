"""A bus with a run on it that is attacked meanwhile, and what each consumer has of the run afterwards."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Status
from phase_bus.errors import BusUnreachableError
from phase_bus.testing.waiting import wait_until
from tests.support.processes import JournaledBus, Killable, consumer

RECORDS, RATE = 10_000, 2_000
RUN_S = RECORDS / RATE
_PATIENCE_S = 60.0
_PROLONGED = 2.0  # how many times longer the run may take, with the processors that the attack takes
_MOST_BYTES = 300 << 20
_MOST_LOG_BYTES = 1 << 20
_ANSWER_S = 1.0
_CALM = 0.3  # of a processor, afterwards


@dataclass
class Watch:
    """Looks at a bus all the time: its memory each 50 ms, its status four times a second."""

    bus: JournaledBus
    most_bytes: int = 0
    slowest_s: float = 0.0
    unanswered: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=each) for each in (self._weigh, self._ask)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _weigh(self) -> None:
        process = psutil.Process(self.bus.pid)
        while not self._stop.wait(0.05):
            try:
                self.most_bytes = max(self.most_bytes, process.memory_info().rss)
            except psutil.NoSuchProcess:
                return

    def _ask(self) -> None:
        with BusClient(Address.parse(self.bus.addresses[1])) as client:
            while not self._stop.wait(0.25):
                began_s = time.monotonic()
                try:
                    client.status(10.0)
                except BusUnreachableError:
                    self.unanswered += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)


@dataclass
class Siege:
    """A bus, its consumers, and a publisher that is not to feel an attack.

    Attributes:
        bus: on tcp and on ipc.
        cpu: how much of a processor the bus took meanwhile.
    """

    directory: Path
    bus: JournaledBus
    consumers: dict[str, Killable]
    client: BusClient
    watch: Watch
    cpu: float = 0.0
    report: dict[str, object] = field(default_factory=dict)

    def run(self, attack: str, scheme: str, *, leaves: bool = False) -> None:
        """Publish a run while there is an attack, and wait until all has been handled.

        Args:
            leaves: whether the attacker ends with the run, since consumers connect anew for their receipts.
        """
        address = self.bus.addresses[scheme == "ipc"]
        attacker = Killable(self.directory / "attack.log", "-m", "tests.flood.attacks", attack, address)
        publisher = Killable(
            self.directory / "publisher.log", "-m", "tests.chaos.publish",
            self.bus.address, "run", str(RECORDS), "1", str(RATE), str(self.directory / "truth"),
        )  # fmt: skip
        began_s, before_s = time.monotonic(), self._cpu_s()
        with publisher, ExitStack() as stack:
            wait_until(lambda: self.status().runs)  # those who are connected are to feel nothing
            stack.enter_context(attacker)
            wait_until(lambda: self._bus_runs() and not publisher.runs, _PATIENCE_S)
            took_s = time.monotonic() - began_s
            assert publisher.process.returncode == 0, publisher.tail()
            wait_until(lambda: _has(attacker, "done"), _PATIENCE_S)
            if leaves:
                attacker.kill()
            self._await_handled()
            self.cpu = (self._cpu_s() - before_s) / (time.monotonic() - began_s)
            status = self.status()
        self.report |= {
            "MiB": self.watch.most_bytes >> 20,
            "run s": round(took_s, 1),
            "cpu": round(self.cpu, 2),
            "status s": round(self.watch.slowest_s, 2),
            "refused": {each.reason: each.count for each in status.rejected},
        }
        assert took_s < _PROLONGED * RUN_S + 3.0, self.report

    def check(self, counted: str = "") -> None:
        """See that the run is whole everywhere, that the bus was never at a loss, and is calm again.

        Args:
            counted: as what the attack is to be counted.
        """
        print(self.report)
        said = json.loads((self.directory / "truth").read_text())
        assert said["records"] == RECORDS
        assert not said["dropped"]
        self._check_consumers(said["phase_events"])
        assert self.bus.runs, self.bus.tail()
        assert self.watch.most_bytes < _MOST_BYTES, self.report
        assert not self.watch.unanswered, self.report
        assert self.watch.slowest_s < _ANSWER_S, self.report
        wait_until(lambda: not counted or self._rejected(counted))
        wait_until(self._is_calm)
        assert self.bus.log.stat().st_size < _MOST_LOG_BYTES
        assert "Traceback" not in self.bus.log.read_text(), self.bus.tail()

    def status(self) -> Status:
        """Return the bus's status."""
        return self.client.status(10.0)

    def _bus_runs(self) -> bool:
        assert self.bus.runs, self.bus.tail()
        return True

    def _rejected(self, reason: str) -> int:
        """Return how often something was refused for a reason."""
        return sum(each.count for each in self.status().rejected if each.reason == reason)

    def _await_handled(self) -> None:
        def handled() -> bool:
            for process in self.consumers.values():
                assert process.runs, process.tail()
            here = self.status().clients
            clients = {client.pid: client for client in here if client.role == "consumer"}
            pids = [process.pid for process in self.consumers.values()]
            return all(pid in clients and "run" in clients[pid].handled_runs for pid in pids)

        try:
            wait_until(handled, _PATIENCE_S)
        except AssertionError:
            logs = "\n".join(p.tail() for p in (self.bus, *self.consumers.values()))
            raise AssertionError(logs) from None

    def _check_consumers(self, phase_events: int) -> None:
        numbers, events, ends = Counter[int](), Counter[int](), []
        for line in (self.directory / "recording.txt").read_text().splitlines():
            run_id, kind, text = line.split(" ")
            if run_id != "run":
                continue
            if kind == "run_complete":
                ends.append(text)
            else:
                counts = numbers if kind == "records" else events
                counts.update(int(number) for number in text.split(",") if number)
        assert numbers == Counter(range(RECORDS))
        assert events == Counter(range(phase_events))
        assert ends == ["completed"]
        with sqlite3.connect(self.directory / "sql.db") as db:
            rows = db.execute("SELECT session_num FROM phase_bus_records WHERE run_id = 'run'")
            assert Counter(number for (number,) in rows) == Counter(range(RECORDS))
            (status,) = db.execute("SELECT status FROM phase_bus_runs WHERE run_id = 'run'").fetchone()
            assert status == "completed"
        db.close()
        summary = json.loads((self.directory / "summary.json").read_text())["runs"]["run"]
        assert (summary["records"], summary["complete"], summary["status"]) == (RECORDS, True, "completed")
        latency = sum(1_000_000 + number for number in range(RECORDS))
        assert summary["overall"]["metrics"]["request_latency"]["sum"] == latency

    def _is_calm(self) -> bool:
        before_s = self._cpu_s()
        time.sleep(1.0)
        return self._cpu_s() - before_s < _CALM

    def _cpu_s(self) -> float:
        times = psutil.Process(self.bus.pid).cpu_times()
        return times.user + times.system


def _has(process: Killable, word: str) -> bool:
    said = process.log.read_text().splitlines()
    assert process.runs, process.tail()
    return word in said


@contextmanager
def a_siege(tmp_path: Path, ipc_dir: Path, *options: str, under: tuple[str, ...] = ()) -> Iterator[Siege]:
    """Start the bus and the consumers; end whatever is left at the end."""
    with ExitStack() as stack:
        bus = JournaledBus(tmp_path, "tcp://127.0.0.1:0", f"ipc://{ipc_dir}", options=options, under=under)
        stack.callback(bus.kill)
        tcp, ipc = bus.addresses
        recording = "tests.support.writers:Recording"
        consumers = {
            "recording": consumer(tmp_path, recording, ipc, f"output={tmp_path / 'recording.txt'}"),
            "sql": consumer(tmp_path, "sql", tcp, f"url=sqlite:///{tmp_path / 'sql.db'}"),
            "aggregator": consumer(tmp_path, "aggregator", tcp, f"output={tmp_path / 'summary.json'}"),
        }
        for process in consumers.values():
            stack.enter_context(process)
        client = stack.enter_context(BusClient(Address.parse(ipc)))
        pids = {process.pid for process in consumers.values()}
        wait_until(lambda: pids <= {c.pid for c in client.status().clients if c.state == "ready"})
        watch = stack.enter_context(Watch(bus))
        yield Siege(tmp_path, bus, consumers, client, watch)
