"""Records a second from the benchmark to percentiles, in batches and one message a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks import peers, shapes
from benchmarks.harness import (
    Child,
    Plan,
    Report,
    Table,
    alternate,
    directory,
    ratios,
    run,
    shared_counts,
    spread,
    wait_for,
)
from phase_bus.aggregation.state import RunState
from phase_bus.consumer.consumer import Consumer
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import encode_event
from phase_bus.events import PhaseStart, Records, Summary
from phase_bus.publisher.publisher import Publisher

QUESTION = "How many AIPerf-shaped records a second become percentiles, in three consumers?"
CONSUMERS = 3
PERCENTILES = (50, 90, 95, 99)
_POOL = 1024
_IN_FLIGHT = 8192
_LOST_S = 60.0


class Aggregating(Consumer):
    """Sum up batches with ``RunState``; when a run is whole, take all percentiles."""

    def __init__(self, counts: Any, place: int, total: int) -> None:
        self._counts, self._place, self._total = counts, place, total
        self._state = RunState("")

    async def on_records(self, event: Records) -> None:
        self._state.update(RecordBatch(event))
        if self._state.records >= self._total:
            percentiles_of(self._state)
            self._state = RunState("")
        self._counts[self._place] += event.count


class Sorting(Consumer):
    """The guide's way: append each record's values to a list a metric; sort, when the run is whole."""

    def __init__(self, counts: Any, place: int, total: int) -> None:
        self._counts, self._place, self._total = counts, place, total
        self._lists: dict[str, list[float]] = {}
        self._records = 0

    async def on_summary(self, event: Summary) -> None:
        append_all(self._lists, event.result["metrics"])
        self._records += 1
        if self._records >= self._total:
            sorted_percentiles(self._lists)
            self._lists, self._records = {}, 0
        self._counts[self._place] += 1


def percentiles_of(state: RunState) -> dict[str, list[float]]:
    """Return all percentiles of all metrics."""
    return {
        name: metric.percentiles(PERCENTILES)
        for phase in state.phases()
        for name, metric in phase.metrics.items()
    }


def append_all(lists: dict[str, list[float]], metrics: dict[str, Any]) -> None:
    """Append a record's numbers to the lists of its metrics; of a list its mean."""
    for name, value in metrics.items():
        number = sum(value) / len(value) if type(value) is list else value
        lists.setdefault(name, []).append(number)


def sorted_percentiles(lists: dict[str, list[float]]) -> dict[str, list[float]]:
    """Sort, and pick percentiles as the guide does."""
    result = {}
    for name, values in lists.items():
        ordered = sorted(values)
        result[name] = [_percentile(ordered, p) for p in PERCENTILES]
    return result


def _percentile(ordered: Sequence[float], percentile: float) -> float:
    index = (percentile / 100.0) * len(ordered)
    return ordered[int(index) - 1] if index % 1 == 0 else ordered[int(index)]


def main() -> Report:
    """Measure, print, return."""
    return run("batches", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    _end_to_end(plan, report)
    _in_one_process(plan, report)


def _end_to_end(plan: Plan, report: Report) -> None:
    total = plan.count(60_000)
    few = max(total // 10, 1)  # the slow sides get fewer, so that a round stays short; rates compare
    pool = shapes.records(_POOL)
    with ExitStack() as stack:
        batched = Way(stack, Aggregating, total, 256)
        single = Way(stack, Aggregating, few, 1)
        sorting = Way(stack, Sorting, few, 256)
        sides = {
            "batches of 256, RunState": lambda: batched.measure(recorder(batched.publisher, pool)),
            "one records event a record, RunState": lambda: single.measure(
                recorder(single.publisher, pool)
            ),
            "one msgpack message a record, lists with sort": lambda: sorting.measure(
                _messenger(sorting.publisher, pool)
            ),
        }
        values = alternate(sides, plan)
    first = next(iter(values))
    rows = []
    for name, some in values.items():
        gain = ratios(values[first], some)
        key = {"b": "batched", "o": "single"}[name[0]] + ("_sorted" if "sort" in name else "")
        report.figures[f"{key}_records_per_s"] = spread(some)
        report.figures[f"batched_over_{key}"] = gain
        rows.append([name, spread(some).show(), gain.show()])
    report.tables.append(
        Table(
            "Publisher.record, the bus, three consumers, percentiles of all metrics",
            ["what", "records/s", "batches are so many times faster"],
            rows,
            f"A record in a batch: {_bytes_a_record(256)} B; alone in a records event: "
            f"{_bytes_a_record(1)} B; as msgpack of its metrics and fields: "
            f"{len(encode_event(_message(pool[0])))} B.",
        )
    )
    report.notes.append(
        "Records/s is what reaches every one of the three, from the first record() to the last "
        "consumer's percentiles. Lists with sort keep the mean of a metric that is a list; RunState "
        "keeps its count, mean, min and max."
    )


class Way:
    """A publisher, a bus and three consumers."""

    def __init__(
        self, stack: ExitStack, make: Callable[..., Consumer], total: int, batch_records: int
    ) -> None:
        address = f"ipc://{stack.enter_context(directory())}"
        stack.enter_context(Child(peers.bus, address)).ready()
        self.total = total
        self._counts = shared_counts(CONSUMERS)
        children = [
            stack.enter_context(Child(peers.consumer, make, address, self._counts, place, total))
            for place in range(CONSUMERS)
        ]
        for child in children:
            child.ready()
        self.publisher = Publisher(address, batch_records=batch_records, buffer_bytes=1 << 30)
        stack.callback(self.publisher.close)
        # A bus with a journal keeps no summary of a run that it does not know.
        self.publisher.publish(PhaseStart(run_id=shapes.RUN_ID, phase=shapes.PHASE))
        self.publisher.flush(_LOST_S)

    def measure(self, send: Callable[[int], None]) -> float:
        """Send all records; return records/s to the last consumer's percentiles."""
        base: list[int] = list(self._counts)
        sent = 0

        def behind() -> int:
            arrived: int = min(now - then for now, then in zip(self._counts, base, strict=True))
            return sent - arrived

        started_s = time.monotonic()
        while sent < self.total:
            count = min(_POOL, self.total - sent)
            send(count)
            sent += count
            if not wait_for(lambda: behind() < _IN_FLIGHT, _LOST_S):
                raise RuntimeError(f"{behind()} records did not arrive")
        if not wait_for(lambda: behind() == 0, _LOST_S):
            raise RuntimeError(f"{behind()} records did not arrive")
        return self.total / (time.monotonic() - started_s)


def recorder(publisher: Publisher, pool: Sequence[shapes.Record]) -> Callable[[int], None]:
    """Return what hands so many records to a publisher."""

    def send(count: int) -> None:
        for metrics, fields, error in pool[:count]:
            publisher.record(shapes.RUN_ID, shapes.PHASE, metrics, fields, error)

    return send


def _messenger(publisher: Publisher, pool: Sequence[shapes.Record]) -> Callable[[int], None]:
    def send(count: int) -> None:
        for record in pool[:count]:
            publisher.publish(_message(record))

    return send


def _message(record: shapes.Record) -> Summary:
    result = {"metrics": record.metrics, "fields": record.fields}
    return Summary(run_id=shapes.RUN_ID, producer="", result=result)


def _bytes_a_record(count: int) -> int:
    return len(encode_event(shapes.batch(count))) // count


def _in_one_process(plan: Plan, report: Report) -> None:
    """Aggregation alone: arrays against lists, without a bus between."""
    count = plan.count(100)
    batches = [RecordBatch(shapes.batch(256, seed=seed)) for seed in range(8)]
    pool = shapes.records(2048)

    def arrays() -> float:
        state = RunState(shapes.RUN_ID)
        before_s = time.process_time()
        for number in range(count):
            state.update(batches[number % len(batches)])
        percentiles_of(state)
        return count * 256 / (time.process_time() - before_s)

    def lists() -> float:
        collected: dict[str, list[float]] = {}
        before_s = time.process_time()
        for number in range(count * 256):
            append_all(collected, pool[number % len(pool)].metrics)
        sorted_percentiles(collected)
        return count * 256 / (time.process_time() - before_s)

    values = alternate({"RunState on batches of 256": arrays, "a list a metric, with sort": lists}, plan)
    ours, theirs = values.values()
    report.figures["local_over_lists"] = ratios(ours, theirs)
    rows = [[name, spread(some).show(), ratios(some, theirs).show()] for name, some in values.items()]
    report.tables.append(
        Table(
            "Aggregation alone, in one process, without decoding",
            ["what", "records/s of CPU", "of lists with sort"],
            rows,
            f"Largest difference of RunState to numpy.percentile, p50 to p99: {_difference(batches):.2%}.",
        )
    )


def _difference(batches: Sequence[RecordBatch]) -> float:
    """Return the largest relative difference to numpy's percentiles, beyond the exact limit."""
    state = RunState(shapes.RUN_ID)
    times = 12
    for batch in list(batches) * times:
        state.update(batch)
    found = percentiles_of(state)["request_latency"]
    values = np.concatenate([batch.values("request_latency") for batch in batches])
    exact = np.percentile(np.tile(values, times), PERCENTILES)
    return float(np.max(np.abs(np.array(found) / exact - 1.0)))


if __name__ == "__main__":
    main()
