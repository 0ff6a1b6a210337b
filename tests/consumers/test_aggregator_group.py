"""The aggregator spread over workers: whoever counts which partition, the result is the same bytes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phase_bus.aggregation import metric
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.state import RunState
from phase_bus.aggregation.summary import RunResult
from phase_bus.consumer.options import build_consumer
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseRef,
    PhaseStart,
    PhaseStats,
    Records,
    RunComplete,
    RunStart,
    Summary,
)
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus_consumers.aggregator import ResultsAggregator

WARMUP, PROFILING = PhaseRef("warmup", "warmup", 0), PhaseRef("profiling", "profiling", 1)
T0 = 1_795_354_391_000_000_000
PARTITIONS = 16
LIMIT = 40  # so that some partitions stay exact, and others do not


def records(draw: random.Random, phase: PhaseRef, number: int, run_id: str = "run") -> Records:
    builder = RecordBuilder()
    count = draw.randint(1, 40)
    for _ in range(count):
        end_ns = T0 + int(number * 5e7) + draw.randrange(10**9)
        fields = {"request_end_ns": end_ns if draw.random() < 0.98 else None, "was_cancelled": False}
        if draw.random() < 0.1:
            builder.add({"error_isl": 32}, fields, ("TimeoutError", "", None))
            continue
        metrics = {
            "request_latency": int(draw.lognormvariate(17, 1)),
            "inter_token_latency": draw.choice([draw.lognormvariate(14, 9), math.nan]),
            "min_request_timestamp": end_ns - 5,
            "max_response_timestamp": end_ns,
        }
        builder.add(metrics, fields)
    tables, known, errors, _ = builder.build()
    return Records(
        run_id=run_id,
        phase=phase,
        partition=number % PARTITIONS,
        count=count,
        metrics=tables,
        fields=known,
        errors=errors,
    )


def journal(seed: int) -> list[EventBase]:
    """All events of a run, its last one the run's end."""
    draw = random.Random(seed)
    events: list[EventBase] = [RunStart(run_id="run")]
    for phase, batches in ((WARMUP, 20), (PROFILING, 90)):
        start_ns = T0 + phase.index * 2 * 10**9
        stats = PhaseStats(start_ns=start_ns)
        events.append(PhaseStart(run_id="run", phase=phase, stats=stats))
        events += [records(draw, phase, phase.index * 20 + n) for n in range(batches)]
        stats = PhaseStats(start_ns=start_ns, end_ns=start_ns + 10**10)
        events.append(PhaseComplete(run_id="run", phase=phase, stats=stats))
    count = sum(event.count for event in events if isinstance(event, Records))
    events.append(RunComplete(run_id="run", status="completed", records=count))
    return events


def expected(events: list[EventBase]) -> bytes:
    """What the journal alone comes to."""
    result = RunResult(RunState("run", Options(exact_limit=LIMIT)))
    for event in events:
        result.take(event)
    assert result.final
    return msgspec.msgpack.encode(result.summary())


class Member:
    """An instance of the consumer that saves its state now and then, and can be replaced."""

    def __init__(
        self, partition: int | None, told: list[Summary], *, leads: bool = False, **options: Any
    ) -> None:
        self.partition, self.leads = partition, leads
        self._told = told
        self._options = {"exact_limit": LIMIT, "interval_s": 0, **options}
        self._kept: bytes | None = None
        self._since: list[EventBase] = []
        self.instance = self._make()

    async def handle(self, event: EventBase) -> None:
        self._since.append(event)
        await getattr(self.instance, f"on_{event.kind}")(event)

    async def commit(self) -> bytes:
        await self.instance.flush()
        self._kept, self._since = self.instance.state(), []
        return self._kept

    async def replace(self) -> None:
        """Lose the process: another goes on from the last checkpoint."""
        self.instance, since = self._make(), self._since
        self._since = []
        await self.instance.start()
        if self._kept is not None:
            self.instance.restore(self._kept)
        for event in since:
            await self.handle(event)

    def _make(self) -> ResultsAggregator:
        consumer = build_consumer(ResultsAggregator, "aggregator", self._options)
        assert isinstance(consumer, ResultsAggregator)

        def publish(event: EventBase) -> None:
            assert isinstance(event, Summary)
            self._told.append(event)

        consumer.context.publish, consumer.context.partition = publish, self.partition
        consumer.context.leads = self.leads
        return consumer


class Group:
    """A leader, and a member for each partition."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.told: list[Summary] = []
        self.by_partitions: list[Summary] = []
        output: dict[str, Any] = {"output": str(tmp_path / "summary.json")}
        self.leader = Member(None, self.told, leads=True, **output, **options)
        self.parts = [Member(n, self.by_partitions, **output, **options) for n in range(PARTITIONS)]
        self.kept: dict[int, bytes] = {}
        self._news: dict[int, bytes] = {}

    async def start(self) -> None:
        for member in (self.leader, *self.parts):
            await member.instance.start()

    async def handle(self, event: EventBase) -> None:
        await (self.parts[event.partition] if isinstance(event, Records) else self.leader).handle(event)

    async def commit(self, partition: int) -> None:
        self.kept[partition] = self._news[partition] = await self.parts[partition].commit()

    async def merge(self) -> None:
        news, self._news = self._news, {}
        await self.leader.instance.merge(dict(sorted(news.items())))

    async def replace_leader(self) -> None:
        await self.leader.replace()
        self._news = dict(self.kept)
        await self.merge()

    async def finish(self, end: EventBase) -> None:
        for partition in range(PARTITIONS):
            await self.commit(partition)
        await self.merge()
        await self.leader.handle(end)
        await self.leader.instance.flush()
        if self.told[-1].final:  # the others may still change: as the runtime does it
            for part in self.parts:
                part.instance.forget(end.run_id)


@pytest.mark.parametrize("seed", range(3))
async def test_the_result_does_not_depend_on_the_workers(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric, "_CHUNK", 16)  # so that sums are made of several parts
    monkeypatch.setattr(metric, "_BLOCK", 32)
    events = journal(seed)
    wanted = expected(events)
    draw = random.Random(seed)

    told: list[Summary] = []
    alone = Member(None, told, output=None)
    group = Group(tmp_path)
    await group.start()
    for event in events[:-1]:
        await alone.handle(event)
        await group.handle(event)
        if draw.random() < 0.05:
            await alone.commit()
            await alone.replace()
        for _ in range(draw.choice([0, 1, 3])):
            await group.commit(draw.randrange(PARTITIONS))
        if draw.random() < 0.3:
            await group.parts[draw.randrange(PARTITIONS)].replace()
        if draw.random() < 0.12:
            await group.merge()
        if draw.random() < 0.1:
            await group.leader.commit()
        if draw.random() < 0.05:
            await group.replace_leader()
    await alone.handle(events[-1])
    await group.finish(events[-1])

    for summaries in (told, group.told):
        assert [summary.final for summary in summaries].count(True) == 1
        assert msgspec.msgpack.encode(summaries[-1].result) == wanted
        assert len(summaries) > 10, "it is also told while the run goes on"
    assert json.loads((tmp_path / "summary.json").read_text())["runs"]["run"] == group.told[-1].result
    exact = {m["exact"] for phase in group.told[-1].result["phases"] for m in phase["metrics"].values()}
    assert exact == {True, False}, "the test is about both"


async def test_running_summaries_tell_only_the_last_windows(tmp_path: Path) -> None:
    group = Group(tmp_path)
    await group.start()
    draw = random.Random(1)
    for number in range(0, 20_000, 200):  # 10 s apart
        await group.handle(records(draw, PROFILING, number))
        await group.commit(number % PARTITIONS)
    await group.merge()
    running = group.told[-1].result["phases"][0]["windows"]
    assert len(running["requests"]) == 60
    assert len(running["metrics"]["request_latency"]["p99"]) == 60
    total = group.told[-1].result["records"]
    await group.leader.handle(RunComplete(run_id="run", status="completed", records=total))
    windows = group.told[-1].result["phases"][0]["windows"]
    assert sum(windows["requests"]) + windows["unplaced"] == total
    assert windows["requests"][-60:] == running["requests"]


async def test_partitions_publish_nothing_and_touch_no_files(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("my notes")
    group = Group(tmp_path)
    part = group.parts[3]
    await part.instance.start()  # the leader would refuse that file
    await part.handle(records(random.Random(1), PROFILING, 3))
    await part.commit()
    await part.instance.stop()
    assert group.by_partitions == []
    assert (tmp_path / "summary.json").read_text() == "my notes"


async def test_a_merge_tells_a_running_summary_at_most_once_an_interval(tmp_path: Path) -> None:
    group = Group(tmp_path, interval_s=60)
    await group.start()
    for number in range(10):
        await group.handle(records(random.Random(1), PROFILING, number))
        await group.commit(number)
        await group.merge()
    assert group.told == []
    group = Group(tmp_path, interval_s=0)
    await group.start()
    await group.handle(records(random.Random(1), PROFILING, 0))
    await group.commit(0)
    await group.merge()
    assert [(told.final, told.result["status"]) for told in group.told] == [(False, "running")]


async def test_records_that_are_lost_for_good_leave_a_summary_that_is_not_final(tmp_path: Path) -> None:
    group = Group(tmp_path)
    await group.start()
    event = records(random.Random(1), PROFILING, 0)
    await group.handle(event)
    await group.finish(RunComplete(run_id="run", status="completed", records=event.count + 2))
    last = group.told[-1]
    assert (last.final, last.result["complete"], last.result["missing_records"]) == (False, False, 2)


async def test_records_that_come_after_an_incomplete_end(tmp_path: Path) -> None:
    """A publisher that was taken for lost comes back: with its last records the result is final."""
    group = Group(tmp_path)
    await group.start()
    draw = random.Random(1)
    first, late = (records(draw, PROFILING, 0) for _ in range(2))
    await group.handle(first)
    await group.finish(RunComplete(run_id="run", status="lost", records=first.count + late.count))
    assert not group.told[-1].final
    await group.replace_leader()
    await group.handle(late)
    await group.commit(0)
    await group.merge()
    last = group.told[-1]
    assert (last.final, last.result["records"]) == (True, first.count + late.count)


async def test_after_a_runs_end_nothing_of_it_is_kept(tmp_path: Path) -> None:
    group = Group(tmp_path)
    await group.start()
    draw = random.Random(1)
    event = records(draw, PROFILING, 0)
    await group.handle(event)
    await group.commit(0)
    old = group.kept[0]
    await group.finish(RunComplete(run_id="run", status="completed", records=event.count))
    count = len(group.told)
    await group.leader.instance.merge({0: old})
    await group.leader.handle(PhaseComplete(run_id="run", phase=PROFILING))
    await group.leader.commit()
    await group.leader.instance.stop()
    assert len(group.told) == count
    for member in (group.leader, group.parts[0]):
        assert len(await member.commit()) < 100
    await group.parts[0].replace()
    await group.handle(records(draw, PROFILING, 0))  # late ones, at a new owner
    assert len(await group.parts[0].commit()) < 100


async def test_other_runs_go_on_when_one_is_over(tmp_path: Path) -> None:
    group = Group(tmp_path)
    await group.start()
    draw = random.Random(1)
    events = {run_id: records(draw, PROFILING, 2, run_id) for run_id in ("one", "two")}
    for event in events.values():
        await group.handle(event)
    for run_id, event in events.items():
        await group.finish(RunComplete(run_id=run_id, status="completed", records=event.count))
    assert [told.run_id for told in group.told if told.final] == ["one", "two"]


async def test_what_is_remembered_of_past_runs_is_bounded(tmp_path: Path) -> None:
    group = Group(tmp_path)
    for number in range(500):
        group.parts[0].instance.forget(f"run-{number}")
    assert len(await group.parts[0].commit()) < 2_000
