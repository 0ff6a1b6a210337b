"""A bus, sinks with their servers, and publishers: all of them processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import psutil

from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import ClientInfo, Status
from phase_bus.errors import BusUnreachableError
from phase_bus.events import Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import DeadLetter
from phase_bus.testing.waiting import wait_until
from tests.sinks.case import SinkCase, Truth
from tests.support.processes import JournaledBus, Killable

PATIENCE_S = 60.0
_LOOK_S = 0.2  # a look at the bus or a server costs them something
SILENT_AFTER_S = 3.0


class SinkProcess(Killable):
    """``phase-bus consume`` for a case; its secret is in its own environment alone."""

    def __init__(self, case: SinkCase, address: str, secret: str | None = None, **settings: str) -> None:
        given = case.settings() | (settings if case.has_limits else {})
        options = [f"--set={key}={value}" for key, value in given.items()]
        super().__init__(
            case.directory / "sink.log",
            "-m", "phase_bus", "consume", case.use, "--name", case.name, "--address", address, *options,
        )  # fmt: skip
        self.case = case
        self.environment = case.environment(case.secret if secret is None else secret)

    def memory_mib(self) -> float:
        """Return how much it holds in memory of its own."""
        return float(psutil.Process(self.pid).memory_info().rss) / (1 << 20)


class World:
    """Everything that runs, for one or several runs.

    Args:
        directory: where everything is.
        ipc_dir: a directory with a short path.
        cases: the sinks.
        settings: options that each of them is given.

    Attributes:
        truths: what publishers said of their runs.
    """

    def __init__(self, directory: Path, ipc_dir: Path, cases: Sequence[SinkCase], **settings: str) -> None:
        self.directory = directory
        self.cases = {case.name: case for case in cases}
        for case in cases:
            case.open()
        options = ("--silent-after-s", str(SILENT_AFTER_S))
        self.bus = JournaledBus(directory, f"ipc://{ipc_dir}", options=options)
        self.sinks = {case.name: SinkProcess(case, self.bus.address, **settings) for case in cases}
        self.publishers: dict[str, Killable] = {}

    # ---- the processes ----

    def start(self) -> None:
        """Start the sinks; return when they are ready."""
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until all sinks are on the bus; start those that have ended."""
        for sink in self.sinks.values():
            if not sink.runs:
                sink.start()
        pids = {sink.pid for sink in self.sinks.values()}

        def ready() -> bool:
            for sink in self.sinks.values():
                assert sink.runs, "a sink has ended"
            return pids <= {client.pid for client in self.clients() if client.state == "ready"}

        self.wait(ready)

    def close(self) -> None:
        """End all of them."""
        for process in (*self.publishers.values(), *self.sinks.values(), self.bus):
            process.kill()
        for case in self.cases.values():
            case.close()

    def publish(self, run_id: str, records: int, rate: float, *options: str) -> None:
        """Start a publisher; for the options see tests/sinks/publish.py."""
        publisher = Killable(
            self.directory / f"{run_id}.log", "-m", "tests.sinks.publish",
            self.bus.address, run_id, str(records), str(rate), str(self._truth_file(run_id)), *options,
        )  # fmt: skip
        self.publishers[run_id] = publisher
        publisher.start()

    def truth(self, run_id: str) -> Truth:
        """Wait for a publisher, and return what it says."""
        publisher, path = self.publishers[run_id], self._truth_file(run_id)

        def said() -> bool:
            assert path.exists() or publisher.runs or publisher.process.returncode == 0, publisher.tail()
            return path.exists()

        wait_until(said, PATIENCE_S)
        truth = msgspec.json.decode(path.read_bytes(), type=Truth)
        assert not truth.dropped, truth
        return truth

    def _truth_file(self, run_id: str) -> Path:
        return self.directory / f"{run_id}.truth"

    # ---- what is known of it ----

    def status(self) -> Status | None:
        """Return the bus's status, None if it does not answer."""
        with BusClient(Address.parse(self.bus.address)) as client:
            try:
                return client.status()
            except BusUnreachableError:
                return None

    def clients(self) -> Iterable[ClientInfo]:
        """Return the consumers that the bus knows."""
        status = self.status()
        return () if status is None else [each for each in status.clients if each.role == "consumer"]

    def info(self, name: str) -> ClientInfo:
        """Return what the bus knows of a sink's process."""
        (info,) = (each for each in self.clients() if each.pid == self.sinks[name].pid)
        return info

    def await_some(
        self, run_id: str, records: int, then: Callable[[str], object] = lambda _name: None
    ) -> None:
        """Wait until each sink has delivered so many records of a run, or says that there are no more.

        Args:
            then: called with the name of each sink as soon as it has.
        """
        left = list(self.cases)

        def all_have() -> bool:
            handled = self.handled(run_id)
            for name in list(left):
                if name in handled or self.cases[name].count(run_id) >= records:
                    left.remove(name)
                    then(name)
            return not left

        self.wait(all_have)

    def await_handled(self, run_id: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until each sink has handled the end of a run."""

        self.wait(lambda: self.handled(run_id) == set(self.sinks), patience_s)

    def handled(self, run_id: str) -> set[str]:
        """Return the sinks that have handled the end of a run."""
        pids = {client.pid for client in self.clients() if run_id in client.handled_runs}
        return {name for name, sink in self.sinks.items() if sink.pid in pids}

    def wait(self, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Wait for a condition; if it does not come true say what the processes said."""

        def look() -> bool:
            time.sleep(_LOOK_S)
            return bool(condition())

        try:
            wait_until(look, patience_s)
        except AssertionError as error:
            logs = "\n".join(process.tail() for process in (*self.sinks.values(), self.bus))
            raise AssertionError(f"{error}\n{self.status()}\n{logs}") from None

    def receipts(self, run_id: str) -> dict[str, Receipt]:
        """Return the last receipt of each sink."""
        with self._reader() as reader:
            return {each.consumer: each for each in reader.events(run_id, Receipt)}

    def dead_letters(self, name: str) -> list[DeadLetter]:
        """Return what a sink has given up."""
        with self._reader() as reader:
            return list(reader.dead_letters(name))

    def _reader(self) -> JournalReader:
        return JournalReader(self.bus.directory)

    def verdicts(self, run_id: str) -> dict[str, list[str]]:
        """Hold what each server has, and each receipt, against what was published; return what is wrong."""
        truth, receipts = self.truth(run_id), self.receipts(run_id)
        found: dict[str, list[str]] = {}
        for name, case in self.cases.items():
            wrong = case.judge(run_id, truth)
            receipt = receipts.get(name)
            if receipt is None:
                wrong.append("there is no receipt")
            elif not receipt.complete:
                wrong.append(f"its receipt says that something is missing: {receipt}")
            if wrong:
                found[name] = wrong
        return found


@contextmanager
def a_world(directory: Path, ipc_dir: Path, cases: Sequence[SinkCase], **settings: str) -> Iterator[World]:
    """Start everything; end whatever is left."""
    with ExitStack() as stack:
        world = World(directory, ipc_dir, cases, **settings)
        stack.callback(world.close)
        world.start()
        yield world
