"""Post-processors as a consumer: what they are given and when, failures, restarts, bounded memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.position import Lineage, Segment
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseRef,
    PhaseStats,
    Records,
    RunComplete,
    Summary,
)
from phase_bus.plugins.adapters import processors
from phase_bus.plugins.adapters.processors import ProcessorConsumer, TooLateError
from phase_bus.plugins.adapters.results import PhaseResults
from phase_bus.plugins.build import build
from phase_bus.plugins.registry import Registry
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus.testing import MemoryBus

WARMUP, PROFILING = PhaseRef("warmup", "warmup", 0), PhaseRef("profiling", "profiling", 1)

seen: list[tuple[str, list[Any]]] = []
answers: list[Any] = []


@dataclass
class ProcessingResult:
    """As a reader of the guide writes it."""

    success: bool
    record_count: int = 0
    metrics: dict[str, Any] | None = None


class Recorder:
    """Goes through the results twice, and answers as the test says."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    async def process(self, results: Sequence[dict[str, Any]]) -> Any:
        await asyncio.sleep(0)
        ids = [result["session_num"] for result in results]
        assert ids == [result["session_num"] for result in results]
        self.phases.append(results[0]["phase"] if results else "-")
        seen.append(("Recorder", [*self.phases, ids]))
        answer = answers.pop(0) if answers else ProcessingResult(True, len(results), {"n": len(ids)})
        if isinstance(answer, Exception):
            raise answer
        return answer


class Second:
    async def process(self, results: Sequence[dict[str, Any]]) -> ProcessingResult:
        seen.append(("Second", [len(results)]))
        return ProcessingResult(True, len(results))


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.clear()
    answers.clear()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def make(no_leaks: None) -> Iterator[Callable[..., Made]]:
    """Make consumers as their process would, and stop those that a test does not."""
    made: list[Made] = []

    def one(*names: str, journal: str = "j") -> Made:
        made.append(Made(names or ("Recorder",), journal))
        return made[-1]

    yield one
    for each in made:
        each.die()


class Made:
    """A consumer, what it published, and its place in the journal."""

    def __init__(self, names: tuple[str, ...], journal: str) -> None:
        use = f"processor:{','.join(f'{__name__}:{name}' for name in names)}"
        consumer: Consumer = build(Registry(), use, "mine", {})
        assert isinstance(consumer, ProcessorConsumer)
        self.consumer = consumer
        self.summaries: list[Summary] = []
        consumer.context.lineage = Lineage([Segment(journal, 1)])
        consumer.context.publish = self._publish

    def _publish(self, event: EventBase) -> None:
        assert isinstance(event, Summary)
        self.summaries.append(event)

    async def give(self, *events: EventBase) -> None:
        for event in events:
            await getattr(self.consumer, f"on_{event.kind}")(event)

    async def checkpoint(self) -> bytes | None:
        """Return the state that the bus would remember now, None if the checkpoint stays where it is."""
        await self.consumer.flush()
        return None if self.consumer.holds_checkpoint else self.consumer.state()

    async def stop(self) -> None:
        await self.consumer.flush()
        await self.consumer.stop()

    def die(self) -> None:
        """Let go of the files as a killed process does."""
        for run in self.consumer._runs.values():
            run.close()


Make = Callable[..., Made]


def records(first: int, count: int, phase: PhaseRef = PROFILING, run_id: str = "r") -> Records:
    builder = RecordBuilder()
    for number in range(first, first + count):
        error = ("Oops", "no", 500) if number % 10 == 9 else None
        metrics = {"request_latency": 1_500_000 * (number + 1)} if error is None else {"error_isl": 1}
        builder.add(metrics, {"session_num": number}, error)
    tables, fields, errors, _ = builder.build()
    return Records(run_id=run_id, phase=phase, count=count, metrics=tables, fields=fields, errors=errors)


def complete(sent: int, phase: PhaseRef = PROFILING, cancelled: int = 0) -> PhaseComplete:
    stats = PhaseStats(sent=sent, completed=sent - cancelled, cancelled=cancelled)
    return PhaseComplete(run_id="r", phase=phase, stats=stats)


def end(count: int, run_id: str = "r") -> RunComplete:
    return RunComplete(run_id=run_id, status="completed", records=count)


def files(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("last", ["records", "phase"])
async def test_a_phase_is_processed_when_it_is_whole(last: str, make: Make) -> None:
    """As soon as it is over and each request has its record, whichever comes last; once."""
    made = make()
    await made.give(records(0, 3))
    rest = [records(3, 4), complete(7)]
    await made.give(rest[0] if last == "phase" else rest[1])
    assert seen == []
    await made.give(rest[1] if last == "phase" else rest[0])
    assert seen == [("Recorder", ["profiling", list(range(7))])]
    await made.give(end(7))
    assert len(seen) == 1
    (summary,) = made.summaries
    assert (summary.producer, summary.run_id, summary.final) == ("mine", "r", True)
    assert summary.result == {
        "processor": "Recorder",
        "phase": "profiling",
        "success": True,
        "record_count": 7,
        "metrics": {"n": 7},
        "error": None,
        "output_file": None,
    }


async def test_requests_that_were_cut_bring_no_record(make: Make) -> None:
    """Then the run's end says that no more will come; phases go in order, each in all its records."""
    made = make()
    await made.give(records(0, 2, WARMUP), complete(3, WARMUP, cancelled=1), records(5, 4), complete(4))
    assert seen == []
    await made.give(end(6))
    assert [call[1][-1] for call in seen] == [[0, 1], [5, 6, 7, 8]]
    assert seen[1][1][:2] == ["warmup", "profiling"]  # the same object had both
    assert [summary.final for summary in made.summaries] == [True, True]


async def test_records_that_never_came_are_told(make: Make) -> None:
    """The phase is processed with what is there, and its summary is not final."""
    made = make()
    await made.give(records(0, 2, WARMUP), records(0, 5), complete(5), complete(3, WARMUP), end(8))
    finals = {summary.result["phase"]: summary.final for summary in made.summaries}
    assert finals == {"warmup": False, "profiling": True}


async def test_a_phase_without_records(make: Make) -> None:
    """A run of which nobody publishes records still has results: none."""
    made = make()
    await made.give(complete(5), end(0))
    assert seen == [("Recorder", ["-", []])]
    assert made.summaries[0].result["record_count"] == 0


async def test_results_are_the_guides_dicts() -> None:
    """A sequence of dicts, by any way of reading it."""
    results = PhaseResults()
    assert not results
    assert list(results) == []
    for first, count in ((0, 4), (4, 1), (5, 7)):
        results.add(records(first, count))
    every = list(results)
    assert len(results) == len(every) == 12
    assert [results[i] for i in range(-12, 12)] == every * 2
    assert results[3:9] == every[3:9]
    assert results[::-5] == every[::-5]
    assert list(reversed(results)) == every[::-1]
    assert every[0] == {
        "phase": "profiling",
        "session_num": 0,
        "request_latency": 1_500_000,
        "latency_ms": 1.5,
        "status": "success",
        "error": None,
    }
    assert every[9]["status"] == "error"
    assert every[9]["error"] == {"type": "Oops", "message": "no", "code": 500}
    assert "latency_ms" not in every[9]
    with pytest.raises(IndexError):
        results[12]
    results.close()


async def test_memory_does_not_grow_with_the_records() -> None:
    """Twice the records take no more memory to go through."""
    results = PhaseResults()
    batch = records(0, 500)
    peaks = []
    for _ in range(2):
        for _ in range(40):
            results.add(batch)
        tracemalloc.start()
        assert sum(1 for _ in results) == len(results)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    results.close()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"success": True, "metrics": {"p": np.float64(1.5)}}, (True, {"p": 1.5}, None)),
        ({"p50": np.array([1, 2])}, (True, {"p50": [1, 2]}, None)),
        (ProcessingResult(False), (False, None, None)),
        (None, (False, None, "not a ProcessingResult")),
        ("done", (False, None, "not a ProcessingResult")),
        (ValueError("bad"), (False, None, "ValueError('bad')")),
    ],
)
async def test_what_processors_return(answer: Any, expected: tuple[Any, ...], make: Make) -> None:
    """An object or a dict with the fields of a ProcessingResult; a dict of metrics; else a failure."""
    answers.append(answer)
    made = make("Recorder", "Second")
    await made.give(records(0, 3))
    fails = expected[2] is not None
    event = complete(3)
    for _ in range(3 if fails else 1):  # as its process tries again
        if fails:
            with pytest.raises(ExceptionGroup) as caught:
                await made.give(event)
            assert "processor 'Recorder', phase 'profiling'" in caught.value.exceptions[0].__notes__[0]
        else:
            await made.give(event)
    assert [call[0] for call in seen] == ["Recorder", "Second"]  # once, and the other one too
    first, second = (summary.result for summary in made.summaries)
    assert (first["success"], first.get("metrics")) == expected[:2]
    assert (expected[2] or "") in (first.get("error") or "")
    assert second["success"]
    await made.give(end(3))
    assert len(seen) == 2


async def test_what_comes_too_late_fails(make: Make) -> None:
    """Records after their phase was processed, and anything after the run's end, are failures."""
    made = make()
    await made.give(records(0, 3), complete(3))
    with pytest.raises(TooLateError, match="2 records came after phase profiling was processed"):
        await made.give(records(3, 2))
    await made.give(end(5))
    for late in (records(5, 1), complete(3), end(5)):
        with pytest.raises(TooLateError, match="with --from start"):
            await made.give(late)
    again = make()
    state = await made.checkpoint()
    assert state is not None
    again.consumer.restore(state)
    with pytest.raises(TooLateError):
        await again.give(records(5, 1))


async def test_the_checkpoint_stays_while_a_run_goes_on(make: Make) -> None:
    """So the next process is given all of the run again, whatever the first one did with it."""
    made = make()
    before = [records(0, 2, WARMUP), complete(2, WARMUP), records(0, 3)]
    after = [records(3, 2), complete(5), end(7)]
    await made.give(*before)
    assert await made.checkpoint() is None
    await made.give(after[0])
    assert await made.checkpoint() is None
    made.die()
    again = make()
    await again.give(*before, *after)
    assert [call[1] for call in seen[1:]] == [["warmup", [0, 1]], ["warmup", "profiling", [0, 1, 2, 3, 4]]]
    assert await again.checkpoint() is not None


async def test_a_restart_on_a_bus() -> None:
    """The next process is given the run from its beginning, and one after the run's end nothing."""
    bus = MemoryBus()
    every = [records(0, 2, WARMUP), complete(2, WARMUP), records(0, 3), complete(3), end(5)]
    for part in (every[:3], every[3:], []):
        bus.publish(*part)
        consumer = build(Registry(), f"processor:{__name__}:Recorder", "mine", {})
        async with bus.consumer(consumer, name="mine") as host:
            await host.catch_up()
    assert [call[1] for call in seen] == [
        ["warmup", [0, 1]], ["warmup", [0, 1]], ["warmup", "profiling", [0, 1, 2]],
    ]  # fmt: skip


async def test_runs_that_overlap(make: Make) -> None:
    """The checkpoint stays until none is open; what has ended meanwhile is processed once."""
    made = make()
    await made.give(records(0, 3, run_id="a"), records(0, 3, run_id="b"), end(3, "a"))
    assert await made.checkpoint() is None
    await made.give(end(3, "b"))
    assert await made.checkpoint() is not None
    assert len(seen) == 2


async def test_a_run_of_another_journal_does_not_hold_the_checkpoint(make: Make) -> None:
    """Its records cannot be read again, and its end may never come."""
    made = make()
    await made.give(records(0, 3, run_id="a"))
    made.consumer.context.lineage = Lineage([Segment("other", 1)])
    assert await made.checkpoint() is not None
    await made.give(records(3, 3, run_id="a"))  # its publisher goes on in the new journal
    assert await made.checkpoint() is None
    await made.give(end(6, "a"))
    assert seen[0][1][-1] == list(range(6))


async def test_runs_without_an_end_are_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """So they do not hold the checkpoint forever."""
    monkeypatch.setattr(processors, "_OPEN_RUNS", 2)
    made = make()
    await made.give(*(records(0, 1, run_id=str(number)) for number in range(3)))
    await made.give(end(1, "1"), end(1, "2"))
    assert await made.checkpoint() is not None


async def test_a_batch_that_cannot_be_written_leaves_no_trace(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk fails the event, and trying it again does not double it."""
    made = make()
    await made.give(records(0, 3))
    batch = records(3, 3)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", _half_then_full())
        with pytest.raises(OSError, match="full"):
            await made.give(batch)
    await made.give(batch, complete(6), end(6))
    assert seen[0][1][-1] == list(range(6))


def _half_then_full() -> Callable[..., int]:
    import os

    real, calls = os.pwrite, iter([True, False])

    def write(descriptor: int, data: memoryview, place: int) -> int:
        if next(calls):
            return real(descriptor, data[: len(data) // 2], place)
        raise OSError(28, "the disk is full")

    return write


@pytest.mark.parametrize("journal", ["j", ""])
async def test_nothing_is_left_on_the_disk(journal: str, make: Make, tmp_path: Path) -> None:
    """The file of a phase has no name, so even a process that is killed leaves none behind."""
    made = make(journal=journal)
    await made.give(records(0, 3, run_id="a"), records(0, 3, run_id="b"), end(3, "a"))
    assert files(tmp_path) == []
    await made.stop()
    assert files(tmp_path) == []


async def test_runs_are_forgotten(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends are remembered for a bounded number of runs."""
    monkeypatch.setattr(processors, "_KEPT_ENDS", 2)
    made = make()
    for number in range(5):
        await made.give(end(0, str(number)))
    assert list(made.consumer._ended) == ["3", "4"]
