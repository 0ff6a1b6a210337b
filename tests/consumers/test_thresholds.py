"""The consumer that judges: on the bus in memory, alone and as a group."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from phase_bus.consumer.consumer import named
from phase_bus.errors import ConfigError, JournalError
from phase_bus.events import EventBase, RunComplete, Verdict
from phase_bus.journal.reader import JournalReader
from phase_bus.testing import MemoryBus
from phase_bus.testing.factories import make_event, make_records, make_run
from phase_bus.thresholds import judge_journal, parse_threshold
from phase_bus_consumers.thresholds import Thresholds
from tests.support.workplace import Workplace, wait_for

EXPRESSIONS = [
    "profiling request_latency p99 < 100 ms",
    "time_to_first_token p50 < 1 ms",
    "error_rate < 90 %",
    "goodput(request_latency < 10 s, time_to_first_token < 10 s) > 5 %",
    "warmup requests > 10",
    "no_such_metric p50 < 5",
]


def finals(verdicts: Iterable[Verdict]) -> dict[str, str]:
    return {v.threshold: v.state for v in verdicts if v.final}


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    bus.publish(*make_run({"warmup": 40, "profiling": 3000}))
    return bus


async def test_every_threshold_has_a_final_verdict(bus: MemoryBus) -> None:
    run = await bus.run_consumer(Thresholds, thresholds=EXPRESSIONS)
    assert run.receipt.complete
    found = finals(bus.events(Verdict))
    assert list(found) == [parse_threshold(text).text for text in EXPRESSIONS]
    assert list(found.values())[-1] == "unknown"
    assert set(found.values()) == {"passed", "failed", "unknown"}


async def test_a_group_says_the_same(bus: MemoryBus) -> None:
    await bus.run_consumer(Thresholds, name="alone", thresholds=EXPRESSIONS)
    alone = [replace(v, producer="") for v in bus.events(Verdict)]
    await bus.run_group(Thresholds, name="group", thresholds=EXPRESSIONS)
    group = [replace(v, producer="") for v in bus.events(Verdict) if v.producer == "group"]
    assert group == alone


async def test_abort_on_failure_is_in_each_verdict(bus: MemoryBus) -> None:
    await bus.run_consumer(Thresholds, thresholds=EXPRESSIONS[:1], abort_on_failure=True)
    assert {v.abort for v in bus.events(Verdict)} == {True}


async def test_other_thresholds_than_before(bus: MemoryBus) -> None:
    """What was counted for others is of no use; a pass would not be one of the whole run."""
    events = make_run({"profiling": 500}, run_id="second")
    bus.publish(*events[: len(events) // 2])
    await bus.run_consumer(Thresholds, name="judge", thresholds=EXPRESSIONS[:1])
    bus.publish(*events[len(events) // 2 :])
    await bus.run_consumer(Thresholds, name="judge", thresholds=["error_rate < 100 %"])
    last = bus.events(Verdict)[-1]
    assert (last.run_id, last.final, last.state) == ("second", True, "unknown")
    assert last.reason.endswith("records are here")


async def test_a_leader_with_other_thresholds_than_its_partitions_had() -> None:
    """It is handed their old states before they have begun anew: these are of no use to it."""
    part = named(Thresholds(EXPRESSIONS[:1]), "judge/03")
    part.context.partition = 3
    await part.on_records(make_records(50, partition=3))
    leader = named(Thresholds(["goodput(request_latency < 1 h) > 0 %"]), "judge")
    leader.context.leads = True
    told: list[EventBase] = []
    leader.context.publish = told.append
    await leader.merge({3: part.state()})
    await leader.on_run_complete(make_event(RunComplete, records=50))
    (verdict,) = told
    assert isinstance(verdict, Verdict)
    assert (verdict.state, verdict.samples) == ("unknown", 0)


async def test_wrong_expressions_are_refused() -> None:
    for wrong in ([], ["request_latency p99 <"], ["request_latency p199 < 5 ms"]):
        with pytest.raises(ConfigError) as refused:
            await MemoryBus().run_consumer(Thresholds, thresholds=wrong)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_workers_that_are_killed(workplace: Workplace) -> None:
    """Four workers, two of which are killed in the middle: the verdicts are those of the journal."""
    thresholds = [
        "request_latency p90 < 60 ms over 3 s",
        "time_to_first_token p50 < 30.1 ms",
        "request_throughput > 100/s over 2 s for 1 s",
        "error_rate < 2 %, at least 200 samples",
    ]
    config = {
        "address": "ipc://bus",
        "data": "journal",
        "ready_timeout_s": 90,
        "bus": {"silent_after_s": 2.0},
        "consumers": [{"use": "thresholds", "workers": 4, "set": {"thresholds": thresholds}}],
    }
    (workplace.directory / "bus.yaml").write_text(yaml.safe_dump(config))
    simulate = ("phase_bus", "simulate", "--requests", "6000", "--rate", "400", "--run-id", "killed")
    command = workplace.phase_bus("exec", "-c", "bus.yaml", "--", sys.executable, "-m", *simulate)
    journal = workplace.directory / "journal"
    wait_for(lambda: _verdicts(journal), "the first verdict", 100)
    workers = [
        process for process in workplace.left() if "consume" in process.cmdline() and not process.children()
    ]
    assert len(workers) == 4
    for process in workers[:2]:
        process.kill()
    done = workplace.finish(command)
    said = _verdicts(journal)
    parsed = [parse_threshold(text) for text in thresholds]
    assert finals(said).keys() == {each.text for each in parsed}, done.stderr
    with JournalReader(journal) as reader:
        judged = judge_journal(
            reader, "killed", [parse_threshold(text) for text in thresholds], "thresholds"
        )
        end = next(iter(reader.events("killed", RunComplete)))
        assert end.records == sum(entry.records for entry in reader.entries("killed"))
    # A leader that was killed says again what it had said since its last commit: the same.
    assert list(dict.fromkeys(map(repr, said))) == list(map(repr, judged))


def _verdicts(journal: Path) -> list[Verdict]:
    try:
        with JournalReader(journal) as reader:
            return list(reader.events("killed", Verdict))
    except JournalError:
        return []  # the bus has not begun it yet
