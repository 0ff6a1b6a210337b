"""Ten minutes of a bus on which everybody comes and goes: nothing may grow, and nothing may be missing.

``make soak`` runs it, for PHASE_BUS_SOAK_S seconds. One bus has an ipc and a tcp address. Publishers bring
run after run at both, some are ended in the middle, one stays; a consumer of each address and a group stay,
another consumer and another member of the group come and go; readers of the past, and clients that send
nonsense, connect now and then. Each second the memory, the file descriptors and the threads of every
process that stays are looked at. It fails if one of them grows, or if a consumer has other records than
were published.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import psutil
import zmq
from rich.console import Console
from rich.table import Table

from phase_bus.consumer.consumer import Consumer
from phase_bus.events import Records, RunComplete
from phase_bus.testing.process import BusProcess, PythonProcess
from phase_bus.testing.waiting import wait_until

_REQUESTS, _WARMUP, _RATE = 1000, 50, 400
_CUT_SHORT = 8  # one run in so many is ended in the middle
_STAYS_S = 17.0  # how long those who come and go stay
_STRANGERS_S = 5.0  # between two of them
_WAIT_S = 60.0
_WARM = 1 / 3  # of the time: until then caches, sketches and the journal's log have their size
_MIB = 1 << 20
# What may grow after the warm-up, by the slope that half of the pairs of moments exceed (Theil-Sen): one
# descriptor or thread left behind by a run, a client or a reader would be dozens in a minute; those of
# the clients that are there come and go. Memory moves by 1 or 2 MiB as the allocator sees fit; a leak of
# 32 bytes a record would be 5 MiB in five minutes.
_MAY_GROW_MIB, _MAY_GROW_DESCRIPTORS, _MAY_GROW_THREADS = 4.0, 5.0, 1.5

Run: TypeAlias = tuple[
    int, int, bool
]  # its records here, those that its end names, whether it was completed
Series: TypeAlias = npt.NDArray[np.float64]


class Counted(Consumer):
    """Count the records of each run, and write the count down at its end.

    Args:
        output: a line for each run that has ended: its id, the records here, those that its end names, and
            how it ended.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._records: Counter[str] = Counter()
        self._lines: list[str] = []

    async def on_records(self, event: Records) -> None:
        self._records[event.run_id] += event.count

    async def on_run_complete(self, event: RunComplete) -> None:
        line = [event.run_id, self._records.pop(event.run_id, 0), event.records, event.status]
        self._lines.append(json.dumps(line) + "\n")

    async def flush(self) -> None:
        with self.output.open("a") as file:
            file.writelines(self._lines)
        self._lines.clear()

    def state(self) -> bytes:
        return json.dumps(self._records).encode()

    def restore(self, state: bytes) -> None:
        self._records = Counter(json.loads(state))


class Sample(NamedTuple):
    """A process at one moment."""

    at_s: float
    memory_mib: float
    descriptors: int
    threads: int


class Soak:
    """All that runs."""

    def __init__(self, where: Path, stack: ExitStack) -> None:
        self.where = where
        self.runs: dict[str, bool] = {}  # those that were begun, and whether they were left to end
        self.samples: dict[str, list[Sample]] = {}
        self._stack = stack
        self._random = random.Random(1)
        self._numbers = count()
        self._bus = BusProcess(
            where / "bus.log",
            f"ipc://{where}/bus",
            "tcp://127.0.0.1:0",
            options=("--data", str(where / "journal"), "--max-runs", "40"),
        )
        self._stay: dict[str, PythonProcess] = {"bus": self._bus}
        self._guests: list[tuple[float, PythonProcess]] = []
        self._publishers: dict[
            int, tuple[PythonProcess, float]
        ] = {}  # by address, until when each may go on
        self._readers: list[PythonProcess] = []

    # ---- the processes ----

    def start(self) -> None:
        """Start those who stay."""
        self._stack.enter_context(self._bus)
        for name, address in zip(("over ipc", "over tcp"), self._bus.addresses, strict=True):
            self._stay[name] = self._consume(name, address)
        self._stay["group"] = self._process(*self._member(), "--workers", "2")
        self._stay["publisher"] = self._simulate(self._bus.addresses[0], runs=100_000)
        wait_until(lambda: len(psutil.Process(self._stay["group"].pid).children()) == 2, _WAIT_S)

    def turn(self, now_s: float) -> None:
        """Let some come and some go."""
        for index, address in enumerate(self._bus.addresses):
            publisher, until_s = self._publishers.get(index, (None, now_s))
            if publisher is not None and publisher.runs and now_s > until_s:
                publisher.process.send_signal(signal.SIGTERM)
            if publisher is None or not publisher.runs:
                cut_short = self._random.randrange(_CUT_SHORT) == 0
                lasts_s = self._random.uniform(1.0, _REQUESTS / _RATE) if cut_short else _WAIT_S
                self._publishers[index] = (self._simulate(address, cut_short=cut_short), now_s + lasts_s)
        for until_s, guest in list(self._guests):
            if now_s > until_s:
                guest.process.send_signal(self._random.choice((signal.SIGTERM, signal.SIGKILL)))
                self._guests.remove((until_s, guest))
                guest.process.wait(_WAIT_S)
        if not self._guests:
            self._guests = [
                (now_s + self._random.uniform(0.5, 1.0) * _STAYS_S, guest)
                for guest in (
                    self._consume("guest", self._bus.addresses[1]),
                    self._process(*self._member()),
                )
            ]

    def strangers(self) -> None:
        """Let a reader of the past begin, and somebody send nonsense."""
        address = self._random.choice(self._bus.addresses)
        for reader in self._readers[:-1]:  # who has come to the end of the past by now
            reader.terminate()
        del self._readers[:-1]
        reading = ("-m", "phase_bus", "tail", "--from", "start", "--json")
        self._readers.append(self._process(*reading, "--address", address))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 200)
            dealer.connect(self._bus.addresses[1])
            for _ in range(20):
                dealer.send_multipart([self._random.randbytes(self._random.randrange(1, 200))])
            dealer.send_multipart([b"x"] * 3)
        host, port = self._bus.addresses[1].removeprefix("tcp://").split(":")
        with suppress(OSError), socket.create_connection((host, int(port)), 1.0) as bare:
            bare.sendall(self._random.randbytes(64))

    def finish(self) -> None:
        """Wait until all runs have ended and all who stay have what was published; end them then."""
        self._stay["publisher"].process.send_signal(signal.SIGTERM)
        for publisher, _ in [(self._stay["publisher"], 0.0), *self._publishers.values()]:
            publisher.process.wait(_WAIT_S)
        done = self._stay["publisher"].log.read_text().count("records published")
        self.runs |= {"publisher" if n == 1 else f"publisher-{n}": True for n in range(1, done + 1)}
        whole = {run_id for run_id, is_whole in self.runs.items() if is_whole}
        with suppress(AssertionError):  # what is missing is told in the end
            wait_until(lambda: all(whole <= self.counted(name).keys() for name in self.counting), _WAIT_S)
            wait_until(lambda: f"publisher-{done}" in self.summaries(), _WAIT_S)
        for _, guest in self._guests:
            assert guest.runs, f"a guest has ended: {guest.tail()}"
            guest.terminate()
        for name in ("over ipc", "over tcp", "group", "bus"):
            code = self._stay[name].terminate()
            said = f"{self._stay[name].tail()}\n{self._bus.tail()}"
            assert code == 0, f"{name} ended with exit code {code}: {said}"

    def _process(self, *arguments: str, name: str = "") -> PythonProcess:
        log = self.where / f"{name or next(self._numbers)}.log"
        return self._stack.enter_context(PythonProcess(log, *arguments, cwd=Path(__file__).parents[1]))

    def _consume(self, name: str, address: str) -> PythonProcess:
        arguments = ("consume", "benchmarks.soak:Counted", "--name", name, "--address", address)
        return self._process("-m", "phase_bus", *arguments, "--set", f"output={self.where}/{name}.jsonl")

    def _member(self) -> tuple[str, ...]:
        output = f"output={self.where}/group.json"
        place = ("--group", "group", "--address", self._bus.addresses[0])
        kept = "keep_runs=20"  # what it holds is to have its size by the end of the warm-up
        return ("-m", "phase_bus", "consume", "aggregator", *place, "--set", output, "--set", kept)

    def _simulate(self, address: str, *, cut_short: bool = False, runs: int = 1) -> PythonProcess:
        name = f"run-{next(self._numbers)}" if runs == 1 else "publisher"
        if runs == 1:
            self.runs[name] = not cut_short
        load = ("-n", str(_REQUESTS), "--warmup", str(_WARMUP), "-r", str(_RATE), "--runs", str(runs))
        arguments = ("simulate", *load, "--run-id", name, "--address", address)
        return self._process("-m", "phase_bus", *arguments, name=name)

    # ---- what is looked at ----

    def look(self, at_s: float) -> None:
        """Look at each process that stays."""
        for name, process in self._stay.items():
            assert process.runs, f"{name} has ended: {process.tail()}"
        pids = {name: process.pid for name, process in self._stay.items()}
        for number, worker in enumerate(psutil.Process(pids["group"]).children(), 1):
            pids[f"group's worker {number}"] = worker.pid
        for name, pid in pids.items():
            seen = psutil.Process(pid)
            with seen.oneshot():
                memory_mib = seen.memory_info().rss / _MIB
                sample = Sample(at_s, memory_mib, seen.num_fds(), seen.num_threads())
            self.samples.setdefault(name, []).append(sample)

    @property
    def counting(self) -> tuple[str, ...]:
        """The consumers that count, by the names of their files."""
        return ("over ipc", "over tcp", "guest")

    def counted(self, name: str) -> dict[str, Run]:
        """Return what a consumer has of each run."""
        path = self.where / f"{name}.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return {run: (here, named, status == "completed") for run, here, named, status in lines}

    def summaries(self) -> dict[str, int]:
        """Return the group's records of the latest runs that it has as a whole."""
        path = self.where / "group.json"
        runs = json.loads(path.read_text())["runs"] if path.exists() else {}
        return {run_id: run["records"] for run_id, run in runs.items() if run["final"]}

    def wrong(self) -> Iterator[str]:
        """Yield what a consumer has, and was not published."""
        for name in self.counting:
            counted = self.counted(name)
            for run_id, whole in self.runs.items():
                if run_id not in counted and not whole:  # it was ended before it had begun
                    continue
                here, named, completed = counted.get(run_id, (0, 0, False))
                right = here == named == _REQUESTS + _WARMUP and completed if whole else here == named
                if not right:
                    yield f"{name}: {here} records of {run_id}, whose end names {named}"
        for run_id, records in self.summaries().items():
            if records != (truth := self.counted("over ipc")[run_id][1]):
                yield f"group: {records} records of {run_id}, for {truth}"


def slope(samples: list[Sample], values: Series) -> float:
    """Return by how much a value grows a second: the median of the slopes of all pairs of moments."""
    at_s = np.array([sample.at_s for sample in samples])
    first, second = np.triu_indices(len(samples), 1)
    return float(np.median((values[second] - values[first]) / (at_s[second] - at_s[first])))


def judge(samples: dict[str, list[Sample]], duration_s: float, console: Console) -> list[str]:
    """Print the figures of each process; return what has grown."""
    grown = []
    table = Table("process", "", "start", "warm", "end", "most", "an hour", box=None)
    fields = (
        ("memory, MiB", _MAY_GROW_MIB),
        ("descriptors", _MAY_GROW_DESCRIPTORS),
        ("threads", _MAY_GROW_THREADS),
    )
    for name, all_samples in samples.items():
        warm = [sample for sample in all_samples if sample.at_s >= _WARM * duration_s]
        for index, (what, may_grow) in enumerate(fields, 1):
            everything = np.array([sample[index] for sample in all_samples], dtype=np.float64)
            values = everything[-len(warm) :]
            a_second = slope(warm, values)
            shown = (everything[0], values[0], values[-1], everything.max(), a_second * 3600)
            table.add_row(name if index == 1 else "", what, *(f"{value:.1f}" for value in shown))
            growth = a_second * (warm[-1].at_s - warm[0].at_s)
            if growth > may_grow:
                grown.append(f"{name}: {what} grew by {growth:.1f}, where {may_grow:g} is the most")
    console.print(table)
    return grown


def main() -> int:
    """Run it; return the exit code."""
    duration_s = float(os.environ.get("PHASE_BUS_SOAK_S") or 600)
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="soak-") as directory, ExitStack() as stack:
        soak = Soak(Path(directory), stack)
        soak.start()
        began_s = time.monotonic()
        strangers_s = began_s
        while (at_s := time.monotonic() - began_s) < duration_s:
            soak.look(at_s)
            soak.turn(time.monotonic())
            if time.monotonic() > strangers_s:
                strangers_s = time.monotonic() + _STRANGERS_S
                soak.strangers()
            time.sleep(max(0.0, began_s + at_s + 1.0 - time.monotonic()))
        soak.finish()
        wrong = [*soak.wrong(), *judge(soak.samples, duration_s, console)]
        whole = sum(soak.runs.values())
        console.print(
            f"{duration_s:g} s; {len(soak.runs)} runs, {whole} of them whole with {_REQUESTS + _WARMUP} "
            f"records each; {len(soak.counting)} consumers and a group held against them"
        )
    for line in wrong:
        console.print(line, style="red")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
