"""When a run began and ended, and how many events it has: the same wherever it is shown."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from phase_bus.cli.output import duration
from phase_bus.consumer.consumer import named
from phase_bus.core.control import EndRuns, RunInfo
from phase_bus.events import PhaseStart, Receipt, RunComplete, RunStart, Summary
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus
from tests.support.clients import RawClient
from tests.support.recorder import PHASE, WithRecords, running

pytestmark = pytest.mark.usefixtures("no_leaks")

_S = 10**9
AGO_NS = 3600 * _S


def shown(bus: DurableBus, run_id: str = "r") -> RunInfo:
    """Return a run as `status` shows it, after a look whether `runs` shows the same."""
    with RawClient(bus.address) as client:
        (info,) = (run for run in client.status().runs if run.run_id == run_id)
    with JournalReader(bus.data) as reader:
        (row,) = (row for row in reader.runs() if row.run_id == run_id)
        ends = reader.events(run_id, RunComplete)
    told = (info.status, info.started_ns, info.ended_ns, info.events)
    assert told == (row.status, row.started_ns, row.ended_ns, row.events)
    if info.status != "running":
        assert ends[-1].events == info.events, "what `exec` and `up` show"
        assert ends[-1].ts_ns == info.ended_ns
    return info


async def test_events_are_those_of_the_publisher_and_the_end(kept: DurableBus) -> None:
    """What consumers add is not counted; what the publisher itself says beside its run is."""
    with Publisher(kept.address, batch_records=10) as publisher:
        publisher.publish(RunStart(run_id="r"))
        publisher.publish(Summary(run_id="r", producer="the benchmark"))
        for _ in range(25):
            publisher.record("r", PHASE, {"n": 1}, {})
        assert await asyncio.to_thread(publisher.flush, 10)
        assert shown(kept).events == 5
        publisher.complete_run("r", "completed")
        assert await asyncio.to_thread(publisher.flush, 10)
    for name in ("a", "b"):
        consumer = named(WithRecords(), name)
        async with running(consumer, kept.address):
            await until(lambda: consumer.ended)  # noqa: B023
    with JournalReader(kept.data) as reader:
        assert len(reader.events("r", Receipt)) == 2
    assert shown(kept).events == 1 + 1 + 3 + 1
    await asyncio.to_thread(kept.close)
    kept.open()
    assert shown(kept).events == 6, "after a restart too"


async def test_a_run_of_before_is_shown_with_its_own_times(kept: DurableBus) -> None:
    """Delivered an hour late, as from a spool file: start, end and duration are the benchmark's."""
    began_ns = time.time_ns() - AGO_NS
    with Publisher(kept.address) as publisher:
        publisher.publish(PhaseStart(run_id="r", ts_ns=began_ns - 5 * _S, phase=PHASE))
        publisher.publish(RunStart(run_id="r", ts_ns=began_ns))
        publisher.publish(RunStart(run_id="r", ts_ns=began_ns + 2 * _S))
        publisher.publish(RunComplete(run_id="r", ts_ns=began_ns + 30 * _S, status="completed"))
        assert await asyncio.to_thread(publisher.flush, 10)
        with RawClient(kept.address) as client:
            (info,) = client.status().runs
    assert (info.started_ns, info.ended_ns) == (began_ns, began_ns + 30 * _S)
    assert duration(info.started_ns, info.ended_ns) == "30.0 s"


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_run_of_before_that_is_lost_ends_in_its_own_time(kept: DurableBus, restarted: bool) -> None:
    """Its end, which the bus says, is not an hour after its start because it was replayed."""
    began_ns = time.time_ns() - AGO_NS
    with Publisher(kept.address) as publisher:
        publisher.publish(RunStart(run_id="r", ts_ns=began_ns))
        if not restarted:
            publisher.publish(PhaseStart(run_id="r", ts_ns=began_ns + 50 * _S, phase=PHASE))
        assert await asyncio.to_thread(publisher.flush, 10)
        if restarted:
            await asyncio.to_thread(kept.close)
            kept.open()
        with RawClient(kept.address) as client:
            client.ask(EndRuns(reason="it is gone"))
        info = shown(kept)
    assert info.status == "lost"
    lasted_s = ((info.ended_ns or 0) - info.started_ns) / 1e9
    assert info.started_ns == began_ns
    assert lasted_s >= 50.0 if not restarted else 0 <= lasted_s < 60


def test_a_clock_that_was_set_back_makes_no_negative_duration(tmp_path: Path) -> None:
    assert duration(10 * _S, 10 * _S - 1) == "0.0 s"
    assert duration(0, 2 * _S) == "2.0 s"
    assert duration(0, None) == ""
