"""System calls of each process in a burst, counted: publisher, bus and a consumer, as users run them.

How much is taken at once, and so the number of calls, depends a little on who gets the processor when. So
each burst comes several times, and the round with the fewest calls counts: what is done twice shows in all
of them. Each bound is 1.2 to 1.8 times what that was on a busy machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from benchmarks import shapes
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Ack, Hello, Welcome
from phase_bus.core.wire import BUNDLED_MOST, encode_event, topic_of
from phase_bus.testing.process import BusProcess, PythonProcess
from phase_bus.testing.waiting import wait_until
from tests.guards.bounds import assert_at_most
from tests.guards.burst import BATCH, DONE_S, moments
from tests.guards.syscalls import calls_between, needs_strace, tracing, wait_traced
from tests.support.bundles import packed
from tests.support.clients import SOURCE, RawClient, Subscriber

ROOT = Path(__file__).parents[2]
ROUNDS = 3
COUNTS = {"records": 80 * BATCH, "events": 10_000}
JOURNAL = ("pwrite64", "pread64", "fdatasync", "fsync", "ftruncate", "fcntl")  # as SQLite makes them

# By process ("journal" is the bus's) and burst: how often each call was made in the best round.
Calls: TypeAlias = dict[tuple[str, str], Counter[str]]

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]


class Bursts:
    """A bus, a consumer, and for each burst a publisher, all of them traced.

    Attributes:
        windows: by burst, the times of each round: when it began, when the publisher was rid of it, when
            the consumer had it.
    """

    def __init__(self, directory: Path) -> None:
        self.windows: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in COUNTS}
        self._directory = directory
        self._address = f"ipc://{directory}/bus"

    def run(self) -> Calls:
        """Let all bursts happen; return what was counted."""
        with ExitStack() as stack:
            bus = BusProcess(
                self._log("bus"),
                self._address,
                options=("--data", str(self._directory / "journal")),
                under=tracing(self._trace("bus")),
            )
            stack.enter_context(bus)
            taker = self._process("consumer", "-m", "phase_bus", "consume", "tests.guards.burst:Taker")
            stack.enter_context(taker)
            with BusClient(Address.parse(self._address)) as client:
                wait_until(lambda: any(c.state == "ready" for c in client.status().clients), DONE_S)
            for round_ in range(ROUNDS):
                for kind in COUNTS:
                    self._burst(kind, f"{kind}-{round_}", taker)
            for name, process in (("consumer", taker), ("bus", bus)):
                assert process.terminate() == 0, process.tail()
                wait_traced(process, self._trace(name))
        return {key: calls for kind in COUNTS for key, calls in self._best(kind)}

    def _burst(self, kind: str, name: str, taker: PythonProcess) -> None:
        count = str(COUNTS[kind])
        with self._process(name, "-m", "tests.guards.burst", kind, name, count) as publisher:
            assert publisher.process.wait(DONE_S) == 0, publisher.tail()
            taken_s = wait_until(lambda: moments(taker.log).get(name, False), DONE_S)
            wait_traced(publisher, self._trace(name))
        told = moments(publisher.log)
        self.windows[kind].append((told["begin"], told["end"], taken_s))

    def _best(self, kind: str) -> Iterator[tuple[tuple[str, str], Counter[str]]]:
        windows = self.windows[kind]
        rounds = {
            "publisher": [
                calls_between(self._trace(f"{kind}-{round_}"), begin_s, end_s)
                for round_, (begin_s, end_s, _) in enumerate(windows)
            ],
            "consumer": [calls_between(self._trace("consumer"), begin, end) for begin, _, end in windows],
        }
        of_bus = [calls_between(self._trace("bus"), begin_s, end_s) for begin_s, _, end_s in windows]
        rounds["journal"] = [Counter({c: n for c, n in one.items() if c in JOURNAL}) for one in of_bus]
        rounds["bus"] = [one - journal for one, journal in zip(of_bus, rounds["journal"], strict=True)]
        for who, found in rounds.items():
            yield (who, kind), min(found, key=Counter.total)

    def _process(self, name: str, *arguments: str) -> PythonProcess:
        arguments = (*arguments, "--address", self._address)
        return PythonProcess(self._log(name), *arguments, cwd=ROOT, under=tracing(self._trace(name)))

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _trace(self, name: str) -> Path:
        return self._directory / f"{name}.strace"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """What every process did in each burst."""
    needs_strace()
    return Bursts(tmp_path_factory.mktemp("b")).run()


@pytest.mark.parametrize(
    ("who", "bound"), [("publisher", 9.0), ("bus", 18.0), ("journal", 80.0), ("consumer", 18.0)]
)
def test_calls_a_batch_of_records(calls: Calls, who: str, bound: float) -> None:
    """A batch is some 170 kB: most calls are as many as its pages in the journal and pieces on sockets."""
    batches = COUNTS["records"] // BATCH
    found = calls[who, "records"]
    print(f"{who}: {found.total() / batches:.2f} a batch, {found.most_common(5)}")
    assert_at_most(bound, found.total() / batches, f"system calls a batch, {who} ({found.most_common(5)})")


@pytest.mark.parametrize(
    ("who", "bound"), [("publisher", 0.075), ("bus", 0.13), ("journal", 0.16), ("consumer", 0.07)]
)
def test_calls_an_event_of_a_burst(calls: Calls, who: str, bound: float) -> None:
    """Of each far less than one: what waits goes in bundles, here of 250 events or so.

    That is some 11 to 20 calls a bundle, in the journal as many as it has pages.
    """
    found = calls[who, "events"]
    each = found.total() / COUNTS["events"]
    print(f"{who}: {each:.3f} an event, {found.most_common(5)}")
    assert_at_most(bound, each, f"system calls an event, {who} ({found.most_common(5)})")


def test_calls_of_an_event_alone(tmp_path: Path, ipc_dir: Path) -> None:
    """The publisher is woken, takes it and sends it, and waits; ZeroMQ's thread writes it.

    Replies are read many at once, and the directory is looked at now and then.
    """
    needs_strace()
    address, count, found = f"ipc://{ipc_dir}", 50, list[Counter[str]]()
    with BusProcess(tmp_path / "bus.log", address, options=("--data", str(tmp_path / "journal"))):
        for round_ in range(ROUNDS):
            trace, log = tmp_path / f"{round_}.strace", tmp_path / f"{round_}.log"
            arguments = ("tests.guards.burst", "singles", f"end-{round_}", str(count), "--address", address)
            with PythonProcess(log, "-m", *arguments, cwd=ROOT, under=tracing(trace)) as publisher:
                assert publisher.process.wait(DONE_S) == 0, publisher.tail()
                wait_traced(publisher, trace)
            told = moments(log)
            found.append(calls_between(trace, told["begin"], told["end"]))
            del (
                found[-1]["clock_nanosleep"],
                found[-1]["getpid"],
            )  # between events; asked by ZeroMQ for nothing
    least = min(found, key=Counter.total)
    each = least.total() / count
    print(f"an event alone: {each:.2f} calls, {least.most_common(8)}")
    assert_at_most(22, each, f"system calls of an event alone ({least.most_common(5)})")


def test_calls_of_a_bundle(tmp_path: Path, ipc_dir: Path) -> None:
    """The bus makes a few for it, for journal and consumer too; for its events one by one, far more."""
    needs_strace()
    trace, address = tmp_path / "bus.strace", f"ipc://{ipc_dir}"
    windows: dict[int, list[tuple[float, float]]] = {1: [], BUNDLED_MOST: []}
    options = ("--data", str(tmp_path / "journal"))
    with BusProcess(tmp_path / "bus.log", address, options=options, under=tracing(trace)) as bus:
        with Subscriber(address) as subscriber, RawClient(address) as client:
            hello = Hello(client_id=SOURCE.hex(), role="publisher", name="raw")
            wait_until(lambda: isinstance(client.ask(hello), Welcome))
            _send(client, subscriber, 1)  # the first event begins the run
            for each in (1, BUNDLED_MOST) * 5:
                begin_s = time.time()
                _send(client, subscriber, each)
                windows[each].append((begin_s, time.time()))
        assert bus.terminate() == 0, bus.tail()
        wait_traced(bus, trace)
    one_by_one, bundled = (min(calls_between(trace, *each).total() for each in w) for w in windows.values())
    print(f"a bundle: {bundled} calls, its events one by one: {one_by_one}")
    assert_at_most(120, bundled, "system calls of the bus for a bundle")
    assert bundled < one_by_one / 3


def _send(client: RawClient, subscriber: Subscriber, each: int) -> None:
    """Send as many events as fit into a bundle, so many in a message; wait until they are delivered."""
    event = shapes.event_of_size(200)
    payloads, topic = [encode_event(event)] * each, topic_of(event)
    before = len(subscriber.read())
    for seq in range(before + 1, before + BUNDLED_MOST + 1, each):
        client.socket.send_multipart(packed(payloads, topic, SOURCE, seq, seq))
    while client.reply() != Ack(seq=before + BUNDLED_MOST):
        pass
    wait_until(lambda: len(subscriber.read()) == before + BUNDLED_MOST)
