"""Groups on the in-memory bus: the consumer that the tests of the real runtime use, and the example."""

from __future__ import annotations

import pytest

from examples.latency_histogram import LatencyHistogram
from phase_bus.consumer.consumer import Consumer
from phase_bus.core.records import RecordBatch
from phase_bus.errors import ConfigError
from phase_bus.events import PhaseStart, Receipt, Records, Summary
from phase_bus.testing import PROFILING, MemoryBus, make_event, make_run, run_consumer
from tests.support.groups import Totals


def publish_numbers(bus: MemoryBus, run_id: str, count: int) -> None:
    """Publish a run of numbered records in many partitions."""
    with bus.publisher() as publisher:
        publisher.publish(make_event(PhaseStart, run_id=run_id))
        for number in range(count):
            publisher.record(run_id, PROFILING, {"n": number}, {})
        publisher.complete_run(run_id, "completed")


async def test_the_leader_adds_up_what_the_partitions_count() -> None:
    """Each record is counted once, by the instance of its partition, before the leader's run_complete."""
    bus = MemoryBus(batch_records=4)
    publish_numbers(bus, "r", 100)
    run = await bus.run_group(Totals)
    (summary,) = run.of(Summary)
    assert summary.result == {"records": 100, "sum": sum(range(100)), "phases": 1}
    assert summary.final
    assert run.consumer.partition is None
    assert {number: each.partition for number, each in run.partitions.items()} == {n: n for n in range(16)}
    assert [each.forgotten for each in run.partitions.values()] == [["r"]] * 16
    assert run.receipt.complete
    assert sum(t.handled for name, t in run.receipt.topics.items() if name.startswith("records.")) == 25
    assert bus.events(Receipt) == [run.receipt]


async def test_a_group_goes_on_where_it_was() -> None:
    """Later instances of the group's name get what came since, on top of the earlier ones' states."""
    bus = MemoryBus(batch_records=4)
    publish_numbers(bus, "r1", 20)
    await bus.run_group(Totals)
    publish_numbers(bus, "r2", 40)
    run = await bus.run_group(Totals)
    (summary,) = run.of(Summary)
    assert (summary.run_id, summary.result["records"], summary.result["phases"]) == ("r2", 40, 2)
    other = await bus.run_group(Totals, name="other")
    assert [each.run_id for each in other.of(Summary)] == ["r1", "r2"]


async def test_failures_in_a_partition() -> None:
    """They are dead letters of the group, and in its receipt."""

    class Failing(Totals):
        async def on_records(self, event: Records) -> None:
            if event.partition == 3:
                raise ValueError("not this one")
            await super().on_records(event)

    bus = MemoryBus(batch_records=4)
    publish_numbers(bus, "r", 32)
    run = await bus.run_group(Failing)
    (letter,) = run.dead_letters
    assert (letter.kind, letter.error) == ("records", "ValueError('not this one')")
    assert not run.receipt.complete
    assert run.of(Summary)[0].result["records"] == 28


async def test_a_consumer_without_records_is_no_group() -> None:
    """There is nothing to share."""

    class Phases(Consumer):
        async def on_phase_start(self, event: PhaseStart) -> None: ...

    with pytest.raises(ConfigError, match="takes no records"):
        await MemoryBus().run_group(Phases)


async def test_the_example() -> None:
    """All latencies of the run are in the group's summary, in the right places."""
    bus = MemoryBus()
    events = make_run(records=300, error_rate=0.1)
    bus.publish(*events)
    run = await bus.run_group(LatencyHistogram)
    (summary,) = run.of(Summary)
    latencies = [
        value
        for event in events
        if isinstance(event, Records)
        for value in RecordBatch(event).values("request_latency").tolist()
    ]
    bound = 2**17  # us
    below = sum(count for name, count in summary.result.items() if int(name.split()[2]) <= bound)
    assert sum(summary.result.values()) == len(latencies) > 500
    assert below == sum(latency < bound * 1000 for latency in latencies)
    assert 0 < below < len(latencies)
    assert run.receipt.complete
    assert all(each.counts == {} for each in run.partitions.values())


async def test_the_example_alone_counts_nothing_wrong() -> None:
    """Started without a group it has all records itself, and needs no merging."""
    run = await run_consumer(LatencyHistogram, *make_run(records=50))
    assert sum(run.of(Summary)[0].result.values()) == 100
