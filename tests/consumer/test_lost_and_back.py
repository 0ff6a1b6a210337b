"""A publisher that is taken for lost and comes back: everybody tells the run as it really ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phase_bus.bus.options import BusOptions
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.events import Receipt, RunComplete, Summary
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.receipts import held_against, is_whole, last_end
from phase_bus.reporting.source import compute
from phase_bus.testing import until
from phase_bus_consumers.aggregator import ResultsAggregator
from tests.support.buses import DurableBus
from tests.support.groups import Member, publish, shared_out

pytestmark = pytest.mark.usefixtures("no_leaks")

_PUBLISH = """
import sys
from phase_bus import PhaseRef, Publisher, PublisherHook

with Publisher(sys.argv[1]) as publisher:
    hook = PublisherHook(publisher, "slow")
    for count in (200, 300):
        for number in range(count):
            publisher.record("slow", PhaseRef("profiling"), {"n": number}, {})
        assert publisher.flush(20)
        print("published", flush=True)
        sys.stdin.readline()
    hook.complete()
"""


class Slow:
    """A process that publishes a run of 500 records, and is suspended after 200."""

    def __init__(self, address: str) -> None:
        arguments = [sys.executable, "-c", _PUBLISH, address]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "published\n"
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on, and end its run."""
        os.kill(self._process.pid, signal.SIGCONT)
        self._process.communicate("\n\n", timeout=20)
        assert self._process.returncode == 0


@pytest.fixture
def quick(ipc_dir: Path, tmp_path: Path) -> Iterator[DurableBus]:
    bus = DurableBus(ipc_dir, tmp_path / "journal", BusOptions(heartbeat_s=0.1, silent_after_s=1.0))
    yield bus
    bus.close()


@pytest.fixture
def aggregator(tmp_path: Path) -> type[ResultsAggregator]:
    """The aggregator with a file of the test's own."""

    class Aggregator(ResultsAggregator):
        def __init__(self) -> None:
            super().__init__(output=tmp_path / "summary.json", interval_s=0.0)

    return Aggregator


def written(tmp_path: Path, run_id: str) -> dict[str, Any]:
    """A run's summary in the aggregator's file."""
    path = tmp_path / "summary.json"
    runs = msgspec.json.decode(path.read_bytes())["runs"] if path.exists() else {}
    return runs.get(run_id, {})  # type: ignore[no-any-return]


def standing(address: str, run_id: str) -> str:
    """What the bus says of a run."""
    with BusClient(Address.parse(address)) as client:
        return next((run.status for run in client.status().runs if run.run_id == run_id), "")


def check(bus: DurableBus, tmp_path: Path, run_id: str, records: int) -> None:
    """Hold what everybody tells of a run against the truth."""
    with JournalReader(bus.data) as reader:
        summary = reader.events(run_id, Summary)[-1]
        end = last_end(reader.events(run_id, RunComplete))
        receipts = held_against(reader.events(run_id, Receipt), end)
    assert end is not None
    assert (end.status, end.records) == ("completed", records)
    past = compute(bus.data, run_id)
    for told in (summary.result, past.summary, written(tmp_path, run_id)):
        assert (told["status"], told["records"], told["complete"]) == ("completed", records, True)
    assert summary.final
    assert past.is_complete
    assert receipts
    assert is_whole(receipts)


async def test_a_consumer(quick: DurableBus, tmp_path: Path, aggregator: type[ResultsAggregator]) -> None:
    from phase_bus.consumer.consumer import named

    runner = ConsumerRunner(named(aggregator(), "totals"), Address.parse(quick.address))
    running = asyncio.create_task(runner.run())
    try:
        slow = await asyncio.to_thread(Slow, quick.address)
        try:
            await until(lambda: written(tmp_path, "slow").get("status") == "lost")
            assert written(tmp_path, "slow")["complete"] is False
            await asyncio.to_thread(publish, quick.address, 50, "other")
        finally:
            await asyncio.to_thread(slow.go_on)
        await until(lambda: "slow" in runner.share.dispatcher.handled and _is_handled(quick, "slow"))
    finally:
        runner.stop()
        await running
    check(quick, tmp_path, "slow", 500)
    check(quick, tmp_path, "other", 50)


async def test_a_group_whose_leader_changes_twice_meanwhile(
    quick: DurableBus, tmp_path: Path, aggregator: type[ResultsAggregator]
) -> None:
    """More runs go by than are kept of those that lack something, and whoever leads knows the lost one."""
    slow = await asyncio.to_thread(Slow, quick.address)
    try:
        async with AsyncExitStack() as stack:
            members = [Member(quick.address, aggregator), Member(quick.address, aggregator)]
            await until(lambda: shared_out(members))
            await until(lambda: written(tmp_path, "slow").get("final"))
            assert written(tmp_path, "slow")["records"] == 200
            for number in range(12):
                await asyncio.to_thread(publish, quick.address, 20, f"short {number}")
            for _ in range(2):
                leader = next(each for each in members if -1 in each.shares)
                members.remove(leader)
                await leader.stop()
                members.append(Member(quick.address, aggregator))
                await until(lambda: shared_out(members))
                await asyncio.to_thread(publish, quick.address, 20, f"after {len(members)}{_}")
                await until(lambda n=_: written(tmp_path, f"after 2{n}").get("final"))  # type: ignore[misc]
                assert (written(tmp_path, "slow")["records"], written(tmp_path, "slow")["final"]) == (
                    200,
                    True,
                )
            for member in members:
                stack.push_async_callback(member.stop)
            await asyncio.to_thread(slow.go_on)
            await until(lambda: _is_handled(quick, "slow", group=True))
    finally:
        if slow._process.returncode is None:
            await asyncio.to_thread(slow.go_on)
    check(quick, tmp_path, "slow", 500)
    check(quick, tmp_path, "short 0", 20)


def _is_handled(bus: DurableBus, run_id: str, *, group: bool = False) -> bool:
    """Whether the bus knows that the run's last end, which is no loss, is handled."""
    with BusClient(Address.parse(bus.address)) as client:
        status = client.status()
    known = status.groups if group else [c for c in status.clients if c.role == "consumer"]
    ended = any(run.run_id == run_id and run.status == "completed" for run in status.runs)
    return ended and any(run_id in each.handled_runs for each in known)
