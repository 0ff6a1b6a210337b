"""Judging a run: against numbers computed apart from it, and the same whoever counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from phase_bus.core.control import PARTITIONS
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseProgress,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    Records,
    RunComplete,
    RunStart,
    Verdict,
)
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus.thresholds import Needs, PartitionCells, RunJudge
from phase_bus.thresholds.threshold import (
    Condition,
    Goodput,
    Metric,
    Operator,
    Quantity,
    Rate,
    Saturation,
    Threshold,
)

T0_S = 1_795_354_391
WARMUP, PROFILING = PhaseRef("warmup", "warmup", 0), PhaseRef("profiling", "profiling", 1)
MS = 1_000_000


class Placed(NamedTuple):
    """An event of a journal, its number among those that are no records, and its place."""

    event: EventBase
    number: int
    offset: int


class Request(NamedTuple):
    """What is known of a request apart from what is tested: the second it was published in, its latency."""

    second: int
    latency_ns: int | None  # None for a failed one
    offset: int


def threshold(
    quantity: Quantity, operator: Operator, limit: float, text: str = "", **more: object
) -> Threshold:
    text = text or f"{quantity} {operator} {limit} {more}"
    return Threshold(text=text, quantity=quantity, operator=operator, limit=limit, **more)  # type: ignore[arg-type]


P99 = threshold(Metric("request_latency", "p99"), "<", 140 * MS, "p99")
WINDOW = threshold(Metric("request_latency", "p50"), "<", 120 * MS, "window", over_s=5.0)
HELD = threshold(Metric("request_latency", "mean"), "<", 100 * MS, "held", over_s=3.0, for_s=4.0)
RATE = threshold(Rate("request_throughput"), ">", 20.0, "rate", over_s=4.0)
ERRORS = threshold(Rate("error_rate"), "<=", 0.1, "errors", at_least=50)
GOOD = threshold(
    Goodput((Condition("request_latency", "<", 130 * MS), Condition("output_sequence_length", ">=", 10))),
    ">=",
    0.5,
    "good",
)
STALLS = threshold(Saturation(), "<", 0.3, "saturation", over_s=10.0)
ALL = [P99, WINDOW, HELD, RATE, ERRORS, GOOD, STALLS]


class World:
    """A run in a journal, and every request of it."""

    def __init__(self, seed: int, seconds: int = 40, rate: int = 60, late: float = 0.05) -> None:
        print("seed", seed)
        draw = random.Random(seed)
        self.draw, self.events, self.requests = draw, [], []  # type: ignore[var-annotated]
        self._number = 0
        self.put(RunStart(run_id="run", ts_ns=T0_S * 10**9))
        start_ns = (T0_S + 1) * 10**9
        self.put(
            PhaseStart(run_id="run", phase=PROFILING, ts_ns=start_ns, stats=PhaseStats(start_ns=start_ns))
        )
        slow = draw.randrange(5, seconds - 10)
        for second in range(1, seconds):
            if second % draw.choice([2, 2, 3]) == 0:
                if draw.random() < 0.3:
                    self._number += 1  # an event of somebody else
                now_ns = (T0_S + second) * 10**9 + draw.randrange(10**9)
                stats = PhaseStats(start_ns=start_ns)
                self.put(PhaseProgress(run_id="run", phase=PROFILING, ts_ns=now_ns, stats=stats))
            stalled = draw.random() < 0.1
            for _ in range(0 if stalled else draw.randint(1, 6)):
                at_s = second - (draw.randint(1, 3) if draw.random() < late else 0)
                center = 150 if slow <= second < slow + 8 else 90
                self.records(T0_S + max(at_s, 1), draw.randint(1, rate // 3), center)
        end_ns = (T0_S + seconds) * 10**9
        ended = PhaseStats(start_ns=start_ns, sent_end_ns=end_ns - 10**9, end_ns=end_ns)
        self.put(PhaseSendingComplete(run_id="run", phase=PROFILING, ts_ns=end_ns - 10**9, stats=ended))
        self.records(T0_S + seconds, 20, 90)
        self.put(PhaseComplete(run_id="run", phase=PROFILING, ts_ns=end_ns, stats=ended))
        self.records(T0_S + seconds + 1, 20, 90)  # those that came late
        self.end = self.put(
            RunComplete(run_id="run", status="completed", ts_ns=end_ns + 10**9, records=len(self.requests))
        )
        self.duration_s = seconds - 1

    def put(self, event: EventBase) -> Placed:
        self._number += not isinstance(event, Records)
        placed = Placed(event, self._number, len(self.events) + 1)
        self.events.append(placed)
        return placed

    def records(self, second: int, count: int, center: int) -> None:
        builder = RecordBuilder()
        for _ in range(count):
            if self.draw.random() < 0.05:
                builder.add({"error_isl": 1}, {}, ("TimeoutError", "", None))
                latency_ns = None
            else:
                latency_ns = int(self.draw.gauss(center, 15) * MS)
                tokens = self.draw.randint(8, 40)
                builder.add({"request_latency": latency_ns, "output_sequence_length": tokens}, {})
            self.requests.append(Request(second, latency_ns, len(self.events) + 1))
        tables, known, errors, _ = builder.build()
        self.put(
            Records(
                run_id="run",
                phase=PROFILING,
                partition=self.draw.randrange(PARTITIONS),
                count=count,
                ts_ns=second * 10**9 + self.draw.randrange(10**9),
                metrics=tables,
                fields=known,
                errors=errors,
            )
        )

    def alone(self, thresholds: Sequence[Threshold] = ALL, *, restarts: bool = False) -> list[Verdict]:
        judge = RunJudge("run", thresholds, "judge")
        verdicts = []
        for placed in self.events:
            verdicts += judge.take(*placed)
            if restarts and self.draw.random() < 0.2:
                judge = restarted(judge, thresholds, alone=True)
        return verdicts

    def shared(self, thresholds: Sequence[Threshold] = ALL, *, restarts: bool = True) -> list[Verdict]:
        """Judge as a group does, whose partitions commit and whose leader looks whenever it happens."""
        judge = RunJudge("run", thresholds, "judge", alone=False)
        needs = Needs.of(thresholds)
        cells = {number: PartitionCells(needs, lasting=True) for number in range(PARTITIONS)}
        committed = dict.fromkeys(cells, 0)
        verdicts: list[Verdict] = []
        for event, number, offset in self.events:
            if isinstance(event, RunComplete):  # held back until all have come to it
                verdicts += judge.merge({n: copied(each, needs) for n, each in cells.items()}, offset)
            if isinstance(event, Records):
                cells[event.partition].take(event, number)
            else:
                verdicts += judge.take(event, number, offset)
            looked = {}
            for partition, each in cells.items():
                if self.draw.random() < 0.1:
                    committed[partition] = offset
                    looked[partition] = each
            if looked and self.draw.random() < 0.5:
                # All are handed over: a commit that the leader has not seen would be older.
                states = {n: copied(each, needs) for n, each in cells.items()}
                verdicts += judge.merge(states, min(committed.values()))
            if restarts and self.draw.random() < 0.1:
                judge = restarted(judge, thresholds, alone=False)
                judge.merge({n: copied(each, needs) for n, each in cells.items()}, 0)
        return verdicts


def copied(cells: PartitionCells, needs: Needs) -> PartitionCells:
    document = msgspec.msgpack.decode(msgspec.msgpack.encode(cells.to_dict()))
    return PartitionCells.from_dict(document, needs, lasting=True)


def restarted(judge: RunJudge, thresholds: Sequence[Threshold], *, alone: bool) -> RunJudge:
    """Return what goes on from the judge's state, in another process."""
    other = RunJudge("run", thresholds, "judge", alone=alone)
    other.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(judge.saved())))
    return other


def final(verdicts: Sequence[Verdict], text: str) -> Verdict:
    (found,) = [v for v in verdicts if v.final and v.threshold == text]
    return found


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 12))]
)
def test_the_same_whoever_counts(seed: int) -> None:
    """Alone, restarted over and over, and as a group whose leader looks at any time: the same verdicts."""
    alone = World(seed, 30).alone()
    assert len(alone) > len(ALL)
    assert World(seed, 30).alone(restarts=True) == alone
    assert World(seed, 30).shared() == alone


@pytest.mark.parametrize("seed", range(4))
def test_changes_are_where_the_numbers_say(seed: int) -> None:
    """Each change of a threshold on the whole phase, held against all requests before its event."""
    world = World(seed)
    verdicts = [v for v in world.alone([P99]) if not v.final]
    assert verdicts
    for verdict in verdicts:
        second = verdict.ts_ns // 10**9 - 1
        before = [r for r in world.requests if r.offset < verdict.offset and r.latency_ns is not None]
        counted = [r.latency_ns for r in before if r.second <= second]
        assert verdict.samples == len(counted)
        assert verdict.value == pytest.approx(np.percentile(counted, 99), rel=1e-12)
        assert verdict.state == ("passed" if np.percentile(counted, 99) < P99.limit else "failed")


@pytest.mark.parametrize("seed", range(4))
def test_final_numbers(seed: int) -> None:
    """The final verdicts have the numbers of all requests."""
    world = World(seed)
    verdicts = world.alone()
    latencies = [r.latency_ns for r in world.requests if r.latency_ns is not None]
    p99 = final(verdicts, "p99")
    assert p99.value == pytest.approx(np.percentile(latencies, 99), rel=1e-12)
    assert p99.state == ("passed" if np.percentile(latencies, 99) < 140 * MS else "failed")
    assert p99.samples == len(latencies)
    errors = final(verdicts, "errors")
    assert errors.value == (len(world.requests) - len(latencies)) / len(world.requests)
    assert errors.unit == "fraction"


def test_a_slow_stretch_fails_a_window_for_good() -> None:
    """With a window, one that failed decides; without one, the whole does."""
    world = World(1)
    verdicts = world.alone()
    states = [v.state for v in verdicts if v.threshold == "window" and not v.final]
    assert "failed" in states
    assert states[-1] == "passed"
    last = final(verdicts, "window")
    assert last.state == "failed"
    assert last.value is not None
    assert last.value > 120 * MS
    assert "windows, the first" in last.reason


def test_no_data_is_unknown() -> None:
    world = World(2)
    nothing = threshold(Metric("time_to_first_token", "p99"), "<", 1.0)
    warmup = threshold(Metric("request_latency", "p99"), "<", 1e12, phase="warmup")
    long = threshold(Metric("request_latency", "p99"), "<", 1e12, over_s=600.0)
    many = threshold(Metric("request_latency", "p99"), "<", 1e12, at_least=10**6)
    slow = threshold(Metric("request_latency", "p99"), "<", 1e12, for_s=3600.0)
    verdicts = world.alone([nothing, warmup, long, many, slow])
    assert all(v.final for v in verdicts)
    assert [v.state for v in verdicts] == ["unknown"] * 5
    assert [v.reason for v in verdicts] == [
        "no value of time_to_first_token",
        "the run had no phase 'warmup'",
        "there was no whole window of 600 s",
        f"{verdicts[3].samples:,} of at least 1,000,000 samples",
        "no state lasted 3600 s",
    ]


def test_a_throughput_of_tokens_without_tokens_is_unknown() -> None:
    """Requests whose lengths nobody counted have no throughput of tokens, which is not one of 0."""
    nobody = threshold(Rate("input_token_throughput"), "<", 1e9)
    stalled = threshold(Rate("output_token_throughput"), ">", 1.0, over_s=3.0)
    world = World(2)
    last, _ = [v for v in world.alone([nobody, stalled]) if v.final]
    assert (last.state, last.value) == ("unknown", None)
    assert last.reason == "no value of input_sequence_length"


def test_a_pass_needs_all_records() -> None:
    """What is not here, or was dropped, might have failed."""
    for changes, reason in (
        ({"records": 10**6}, "records are here"),
        ({"dropped": {"records.00.run$": 1}, "dropped_records": 7}, "dropped 7 records"),
        ({"status": "lost"}, "was lost"),
        ({"status": "cancelled"}, "was cancelled"),
        ({"status": "failed"}, "failed"),
    ):
        world = World(3)
        end = world.events[-1]
        world.events[-1] = end._replace(event=msgspec.structs.replace(end.event, **changes))
        fine = threshold(Metric("request_latency", "min"), ">", 0.0)
        bad = threshold(Metric("request_latency", "min"), "<", 0.0)
        good, failed = [v for v in world.alone([fine, bad]) if v.final]
        assert good.state == "unknown"
        assert reason in good.reason
        assert failed.state == "failed"


def test_records_after_the_end() -> None:
    """The last record comes after the run's end: the first final verdict knows that something lacks."""
    world = World(4)
    late = next(
        i for i in range(len(world.events) - 1, 0, -1) if isinstance(world.events[i].event, Records)
    )
    event = world.events.pop(late).event
    world.events.append(Placed(event, world.events[-1].number, world.events[-1].offset + 1))
    fine = threshold(Metric("request_latency", "min"), ">", 0.0)
    first, second = [v for v in world.alone([fine]) if v.final]
    assert (first.state, second.state) == ("unknown", "passed")
    assert second.samples > first.samples


def test_a_clock_that_jumps() -> None:
    """A clock far ahead, or set back, neither hangs nor loses what is counted."""
    for jump_s in (10**6, -(10**6)):
        world = World(5)
        middle = len(world.events) // 2
        world.events[middle:] = [
            p._replace(event=msgspec.structs.replace(p.event, ts_ns=p.event.ts_ns + jump_s * 10**9))
            for p in world.events[middle:]
        ]
        verdicts = world.alone()
        latencies = [r.latency_ns for r in world.requests if r.latency_ns is not None]
        assert final(verdicts, "p99").samples == len(latencies)


def test_without_a_journal() -> None:
    """In direct mode events have no numbers: they are counted as they come."""
    world = World(6)
    numbered = world.alone()
    world.events = [p._replace(number=0, offset=0) for p in world.events]
    assert [(v.threshold, v.state, v.final) for v in world.alone()] == [
        (v.threshold, v.state, v.final) for v in numbered
    ]


def test_a_leader_that_was_away() -> None:
    """What cannot be judged any more is told, and the final verdict is on everything all the same."""
    world = World(7, seconds=400, rate=12)
    lasting = threshold(Metric("request_latency", "min"), ">", 0.0, "lasting", over_s=3.0)
    thresholds = [*ALL, lasting]
    needs = Needs.of(thresholds)
    judge = RunJudge("run", thresholds, "judge", alone=False)
    cells = {number: PartitionCells(needs, lasting=True) for number in range(PARTITIONS)}
    verdicts = []
    for event, number, offset in world.events:
        if isinstance(event, RunComplete):
            verdicts += judge.merge(cells, offset)
        if isinstance(event, Records):
            cells[event.partition].take(event, number)
        else:
            verdicts += judge.take(event, number, offset)
    alone = World(7, seconds=400, rate=12).alone(thresholds)
    found, wanted = final(verdicts, "p99"), final(alone, "p99")
    assert (found.state, found.value, found.samples) == (wanted.state, wanted.value, wanted.samples)
    assert "not judged at" in found.reason
    assert final(alone, "lasting").state == "passed"
    assert final(verdicts, "lasting").state == "unknown"  # a window that nobody saw may have failed
    assert "not every window could be judged" in final(verdicts, "lasting").reason
    kept = sum(len(each.cells) for each in cells.values())
    assert kept < PARTITIONS * 200


def test_a_publisher_that_tells_no_progress() -> None:
    """Every window is judged when the phase ends at last, those of its first minutes, too."""
    world = silent_world(seconds=640, slow=range(10, 30))
    failed = final(world.alone([WINDOW]), "window")
    assert failed.state == "failed"
    assert "in 20 of 635 windows, the first 12 s after" in failed.reason


def test_what_did_not_last_is_told() -> None:
    """The number is that of the whole phase, and on the other side of the limit."""
    world = silent_world(seconds=60, slow=range(40, 60), progress=True)
    held = threshold(Metric("request_latency", "max"), "<", 140 * MS, "held", for_s=30.0)
    last = final(world.alone([held]), "held")
    assert (last.state, last.reason) == ("passed", "failed in the end, but not for 30 s")


def silent_world(seconds: int, slow: range = range(0), *, progress: bool = False) -> World:
    """Return a run with five requests a second, that are slow in some."""
    world = World.__new__(World)
    world.draw, world.events, world.requests, world._number = random.Random(1), [], [], 0
    start_ns, end_ns = (T0_S + 1) * 10**9, (T0_S + seconds) * 10**9
    world.put(RunStart(run_id="run", ts_ns=T0_S * 10**9))
    began = PhaseStats(start_ns=start_ns)
    world.put(PhaseStart(run_id="run", phase=PROFILING, ts_ns=start_ns, stats=began))
    for second in range(1, seconds):
        world.records(T0_S + second, 5, 200 if second in slow else 90)
        if progress:
            now_ns = (T0_S + second + 1) * 10**9 - 1
            world.put(PhaseProgress(run_id="run", phase=PROFILING, ts_ns=now_ns, stats=began))
    ended = PhaseStats(start_ns=start_ns, sent_end_ns=end_ns, end_ns=end_ns)
    world.put(PhaseComplete(run_id="run", phase=PROFILING, ts_ns=end_ns, stats=ended))
    world.put(
        RunComplete(run_id="run", status="completed", ts_ns=end_ns + 10**9, records=len(world.requests))
    )
    return world
