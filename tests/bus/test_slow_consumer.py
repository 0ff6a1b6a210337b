"""A slow consumer beside a fast one: neither the fast one, nor the publisher, nor the bus waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psutil
import pytest

from phase_bus.events import PhaseRef, PhaseStart
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import wait_until
from tests.support.processes import JournaledBus, Killable, consumer

EVENTS, ROUNDS, RECORDS = 6000, 6, 20
LIMIT_MIB = 300
SETTLED_S = 0.5
PHASE = PhaseRef("profiling")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Load:
    """Rounds of full load, in each of which the fast consumer's throughput is measured."""

    def __init__(self, bus: JournaledBus, directory: Path) -> None:
        self.bus = bus
        self.fast_output = directory / "fast.txt"
        self.sent = 0
        self.rss_mib = 0.0
        self._bus = psutil.Process(bus.pid)

    def round(self) -> float:
        """Publish as fast as it goes; return the events a second that the fast consumer had."""
        begin_s = time.monotonic()
        with Publisher(self.bus.address, batch_records=RECORDS) as publisher:
            for _ in range(EVENTS):
                publisher.publish(PhaseStart(run_id="r", phase=PHASE, ts_ns=self.sent))
                for _ in range(RECORDS):
                    publisher.record("r", PHASE, {"request_latency": 1.0}, {"x_request_id": "x" * 36})
                self.sent += 1
                while publisher.pending > 2000:
                    self._watch()
                    time.sleep(0.001)
            assert publisher.flush(60)
        assert not publisher.undelivered
        wait_until(self._fast_is_done, 60)
        return EVENTS / (time.monotonic() - begin_s)

    def _fast_is_done(self) -> bool:
        self._watch()
        return last_number(self.fast_output) == self.sent - 1

    def _watch(self) -> None:
        self.rss_mib = max(self.rss_mib, self._bus.memory_info().rss / 2**20)


def last_number(output: Path) -> int:
    """Return the number in the last line that a consumer wrote."""
    if not output.exists():
        return -1
    with output.open("rb") as file:
        file.seek(max(output.stat().st_size - 200, 0))
        lines = file.read().splitlines()
    return int(lines[-1]) if lines else -1


def numbers(output: Path) -> Iterator[int]:
    """Return what a consumer wrote."""
    return map(int, output.read_text().splitlines())


def test_a_slow_consumer_costs_nothing(tmp_path: Path, ipc_dir: Path) -> None:
    """The fast one has finished when the slow one has hardly begun; the bus stays small; nothing is lost.

    What the slow one costs the fast one is printed only: the budget is a tenth, on a machine at rest.
    """
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}")
    load = Load(bus, tmp_path)
    kind = "tests.support.writers:Numbers"
    slow_output = tmp_path / "slow.txt"

    def slow(delay_s: float) -> Killable:
        return consumer(
            tmp_path, kind, bus.address, f"output={slow_output}", f"delay_s={delay_s}", name="slow"
        )

    with ExitStack() as stack:
        stack.callback(bus.kill)
        stack.enter_context(
            consumer(tmp_path, kind, bus.address, f"output={load.fast_output}", name="fast")
        )
        load.round()  # to warm up
        alone, beside = [], []
        for _ in range(ROUNDS):
            alone.append(load.round())
            with slow(0.01):
                wait_until(lambda: last_number(slow_output) >= 0)
                time.sleep(SETTLED_S)  # what its start costs is not what is measured
                beside.append(load.round())
                assert last_number(slow_output) < load.sent - EVENTS // 2, "the slow one was not slow"
        ratio = median(beside) / median(alone)
        print(f"alone {median(alone):.0f} events/s, beside the slow one {median(beside):.0f}: {ratio:.2f}")
        print(f"the bus took {load.rss_mib:.0f} MiB at most; {load.sent} events, {load.sent} batches")
        with JournalReader(bus.directory) as journal:
            kept = journal.checkpoint("slow")
            assert kept is not None
            assert kept.offset < journal.head.offset / 4, "the slow one was not slow"
        with slow(0.0):  # at 10 ms an event the rest would take minutes: it has been slow long enough
            wait_until(lambda: last_number(slow_output) == load.sent - 1, 120)
    seen = list(numbers(slow_output))
    assert sorted(set(seen)) == list(range(load.sent))
    assert list(numbers(load.fast_output)) == list(range(load.sent))
    assert load.rss_mib < LIMIT_MIB


def test_a_slow_consumer_finishes(tmp_path: Path, ipc_dir: Path) -> None:
    """At 10 ms an event, with everything published in a moment: all of it, once, in order."""
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}", options=("--high-water-mark", "50"))
    output = tmp_path / "slow.txt"
    kind = "tests.support.writers:Numbers"
    with ExitStack() as stack:
        stack.callback(bus.kill)
        slow = consumer(tmp_path, kind, bus.address, f"output={output}", "delay_s=0.01", name="slow")
        stack.enter_context(slow)
        with Publisher(bus.address) as publisher:
            for number in range(2500):
                publisher.publish(PhaseStart(run_id="r", phase=PHASE, ts_ns=number))
            assert publisher.flush(20)
        wait_until(lambda: last_number(output) == 2499, 120)
        assert slow.terminate() == 0, slow.tail()
    assert list(numbers(output)) == list(range(2500))
