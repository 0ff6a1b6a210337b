"""Records by columns against records one by one: into the outbox, and to the aggregator's final summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count as counting
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
from phase_bus.consumer.consumer import Consumer
from phase_bus.core.columns import rows_of
from phase_bus.core.outbox import Outbox
from phase_bus.events import RunStart, Summary
from phase_bus.publisher.columns import cut
from phase_bus.publisher.composer import BatchOptions, Composer
from phase_bus.publisher.drops import Drops
from phase_bus.publisher.publisher import Publisher
from phase_bus_consumers.aggregator import ResultsAggregator

QUESTION = "How many requests a second does a load generator publish that has them as columns?"
_AT_ONCE = 65_536  # records that are handed over together
_PENDING = 4096
_LOST_S = 60.0

Columns = dict[str, Any]


class Aggregating(ResultsAggregator):
    """The aggregator, without a file."""

    def __init__(self) -> None:
        super().__init__(output=None)


class Finals(Consumer):
    """Note of how many records the last final summary is."""

    def __init__(self, counts: Any) -> None:
        self._counts = counts

    async def on_summary(self, event: Summary) -> None:
        if event.final:
            self._counts[0] = event.result["records"]


def main() -> Report:
    """Measure, print, return."""
    return run("columns", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    _into_outbox(plan, report)
    _end_to_end(plan, report)


def _metrics(count: int) -> Columns:
    random = np.random.default_rng(0)
    return {
        "request_latency": random.lognormal(20.0, 0.3, count).astype(np.int64),
        "inter_token_latency": random.lognormal(17.0, 0.2, count),
    }


def _times(count: int) -> Columns:
    ends_ns = 1_800_000_000_000_000_000 + 10_000 * np.arange(count)
    return {"request_start_ns": ends_ns - 500_000_000, "request_end_ns": ends_ns}


def _texts(count: int) -> Columns:
    return {"x_request_id": [f"3f2a5c7e-{number:027d}" for number in range(count)]}


def _records(columns: Columns, fields: Columns, count: int) -> list[tuple[Columns, Columns]]:
    """Return columns as arguments of ``Publisher.record``."""
    return list(zip(rows_of(columns, count), rows_of(fields, count), strict=True))


# ---- into the outbox ----


def _into_outbox(plan: Plan, report: Report) -> None:
    sizes = {"of 1,024": 1024, "of 65,536": _AT_ONCE}
    shapes_: dict[str, Callable[[int], Columns]] = {
        "two metrics": lambda _: {},
        "two metrics, two times": _times,
        "two metrics, two times, an id": lambda count: _times(count) | _texts(count),
    }
    sides: dict[str, Callable[[], float]] = {}
    for shape, fields in shapes_.items():
        sides[f"{shape}: one by one"] = _one_by_one(fields, _AT_ONCE // 16)
        for size, count in sizes.items():
            sides[f"{shape}: columns {size}"] = _by_columns(
                fields, count, plan.count(16 * _AT_ONCE // count)
            )
    values = alternate(sides, plan)
    rows_ = []
    for name, some in values.items():
        single = values[f"{name.partition(':')[0]}: one by one"]
        rows_.append([name, spread(some).show(1e6), ratios(some, single).show()])
    for shape, key in zip(shapes_, ("", "_times", "_times_id"), strict=True):
        report.figures[f"columns_outbox{key}_records_per_s"] = spread(values[f"{shape}: columns of 65,536"])
    report.tables.append(
        Table(
            "Into the outbox, CPU of the call and of the publisher's thread",
            ["what", "million records/s", "of one by one"],
            rows_,
        )
    )


def _composer() -> tuple[Outbox, Composer]:
    outbox = Outbox(bytes(16), 1 << 40)
    return outbox, Composer(outbox, Drops("", "", lambda *_: None), BatchOptions("summary", 256, 0.1))


def _by_columns(fields_of: Callable[[int], Columns], count: int, times: int) -> Callable[[], float]:
    """Return what measures records/s of CPU; both threads' work, in one."""
    columns, fields = _metrics(count), fields_of(count)

    def side() -> float:
        outbox, composer = _composer()
        before_s = time.thread_time()
        for _ in range(times):
            for batch in cut(shapes.RUN_ID, shapes.PHASE, columns, fields, None):
                composer.add_columns(batch)
            outbox.acknowledge(outbox.last_seq)
        return times * count / (time.thread_time() - before_s)

    return side


def _one_by_one(fields_of: Callable[[int], Columns], count: int) -> Callable[[], float]:
    rows = _records(_metrics(count), fields_of(count), count)

    def side() -> float:
        outbox, composer = _composer()
        before_s = time.thread_time()
        for metrics, fields in rows:
            composer.add_record((shapes.RUN_ID, shapes.PHASE, metrics, fields, None))
        outbox.acknowledge(outbox.last_seq)
        return count / (time.thread_time() - before_s)

    return side


# ---- to the final summary ----


def _end_to_end(plan: Plan, report: Report) -> None:
    many, few = plan.count(4_000_000), plan.count(600_000)
    columns = _metrics(_AT_ONCE)
    rows = _records(columns, {}, _AT_ONCE)
    counts = shared_counts(1)
    numbers = counting()
    with ExitStack() as stack:
        address = f"ipc://{stack.enter_context(directory())}"
        bus = stack.enter_context(Child(peers.bus, address))
        bus.ready()
        aggregator = stack.enter_context(Child(peers.consumer, Aggregating, address))
        finals = stack.enter_context(Child(peers.consumer, Finals, address, counts))
        for child in aggregator, finals:
            child.ready()
        publisher = stack.enter_context(Publisher(address))

        def one_run(send: Callable[[str, int], None], total: int) -> float:
            run_id = f"r{next(numbers)}"
            counts[0] = 0
            started_s = time.monotonic()
            publisher.publish(RunStart(run_id=run_id))
            for first in range(0, total, _AT_ONCE):
                send(run_id, min(_AT_ONCE, total - first))
            publisher.complete_run(run_id, "completed")
            if not wait_for(lambda: counts[0] == total, _LOST_S):
                raise RuntimeError(f"the final summary is of {counts[0]} records, not {total}")
            return total / (time.monotonic() - started_s)

        def by_columns(run_id: str, count: int) -> None:
            publisher.records(run_id, shapes.PHASE, {name: some[:count] for name, some in columns.items()})
            while publisher.pending > 64:  # a benchmark that drops records shows nothing
                time.sleep(0.0002)

        def singly(run_id: str, count: int) -> None:
            for place in range(count):
                publisher.record(run_id, shapes.PHASE, *rows[place])
                if not place % 1024:
                    while publisher.pending > _PENDING:
                        time.sleep(0.0002)

        sides: dict[str, Callable[[], float]] = {
            "Publisher.record": lambda: one_run(singly, few),
            "Publisher.records": lambda: one_run(by_columns, many),
        }
        values = alternate(sides, plan)
    gain = ratios(values["Publisher.records"], values["Publisher.record"])
    report.figures["columns_end_to_end_per_s"] = spread(values["Publisher.records"])
    report.figures["columns_end_to_end_ratio"] = gain
    report.tables.append(
        Table(
            "Requests of two metrics, from the first call to the aggregator's final summary on the bus",
            ["what", "requests/s", "of record"],
            [
                [name, spread(some).show(), ratios(some, values["Publisher.record"]).show()]
                for name, some in values.items()
            ],
            f"{few:,} requests by record, {many:,} by records, {_AT_ONCE:,} at once; with a journal.",
        )
    )


if __name__ == "__main__":
    main()
