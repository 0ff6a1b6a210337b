"""The load of the sinks' benchmark, the processes that work it off, and what these took."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
import structlog
from msgspec import Struct

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.records import RecordBatch
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhasePlan,
    PhaseRef,
    PhasesConfigured,
    PhaseStart,
    PhaseStats,
    Records,
    RunStart,
)
from phase_bus.harness.simulation import draw_records
from phase_bus.testing.memory import MemoryBus

T = TypeVar("T")

RECORDS_PER_S = 1000  # of the run: what it is that is caught up with
METRICS = (
    *("request_latency", "time_to_first_token", "inter_token_latency", "input_sequence_length"),
    *("output_sequence_length", "output_token_count", "output_token_throughput_per_user"),
)
_BATCH = 256
_PHASE = PhaseRef("profiling", "profiling", 0)
_RUN_ID = "5b7e2d9c1a4f"
_MIB = 1 << 20

Row: TypeAlias = dict[str, Any]
Work: TypeAlias = Callable[[], int | None]
"""Works the load off; returns how many records are there now, if only this process can see that."""


class Place(NamedTuple):
    """Where a side's rows go in one turn.

    Attributes:
        url: of the server, or a directory.
        name: that of the table, index, ..., of this turn alone.
    """

    url: str
    name: str


class Load(NamedTuple):
    """A run: its events but for the end, and its records as plain rows.

    Attributes:
        start_ns: when it began: so long ago that it has just ended.
    """

    events: list[EventBase]
    rows: list[Row]
    start_ns: int


Play: TypeAlias = Callable[[Load, Place], AbstractContextManager[Work]]
"""A side: prepares, yields what is measured, and ends."""


class Turn(Struct):
    """What a turn took.

    Attributes:
        found: what the work returned.
        cpu_s: of all threads of the process.
        memory_mib: by how much it grew at most.
    """

    found: int | None
    took_s: float
    cpu_s: float
    memory_mib: float


def make_load(count: int) -> Load:
    """Return a run of made-up requests, none of which failed."""
    step_ns = 10**9 // RECORDS_PER_S
    start_ns = time.time_ns() - (count + 1) * step_ns
    ticks = itertools.count(start_ns, step_ns)
    bus = MemoryBus(batch_records=_BATCH)
    publisher = bus.publisher("benchmark")
    same: dict[str, Any] = {"run_id": _RUN_ID, "ts_ns": start_ns}
    stats = PhaseStats(start_ns=start_ns, expected_requests=count)
    publisher.publish(RunStart(producer="benchmark", models=("simulated",), **same))
    publisher.publish(PhasesConfigured(phases=(PhasePlan(phase=_PHASE, expected_requests=count),), **same))
    publisher.publish(PhaseStart(phase=_PHASE, stats=stats, **same))
    random = np.random.default_rng(0)
    for record in draw_records(random, _RUN_ID, _PHASE, 0, count, clock=lambda: next(ticks)):
        publisher.record(*record)
    end_ns = next(ticks)
    stats = msgspec.structs.replace(stats, sent=count, completed=count, sent_end_ns=end_ns, end_ns=end_ns)
    publisher.publish(PhaseComplete(run_id=_RUN_ID, ts_ns=end_ns, phase=_PHASE, stats=stats))
    events = [_at_its_time(event) for event in bus.events()]
    return Load(events, list(itertools.chain.from_iterable(map(_plain, events))), start_ns)


def _plain(event: EventBase) -> Iterator[Row]:
    """Yield an event's records, as somebody has them who knows nothing of us."""
    if isinstance(event, Records):
        for record in RecordBatch(event):
            values = {name: value for name, value in record.items() if value is not None}
            yield {"run_id": event.run_id, "phase": event.phase.name, **values}


def _at_its_time(event: EventBase) -> EventBase:
    if isinstance(event, Records):
        ts_ns = int(RecordBatch(event).values("request_end_ns").max())
        return msgspec.structs.replace(event, ts_ns=ts_ns)
    return event


def chunks(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield so many rows at a time."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


@contextmanager
def feed(
    consumer: Consumer, load: Load, name: str, last: Callable[[], int] | None = None
) -> Iterator[Work]:
    """Give a consumer the run as messages, to decode and to handle until all is written out.

    Args:
        last: what is done at the end, in a thread, while the consumer still runs; its result is the work's.
    """
    bus = MemoryBus()
    bus.publish(*load.events)
    bus.complete_run(_RUN_ID)
    run = bus.consumer(consumer, name=name)

    async def work() -> int | None:
        await run.catch_up()
        return None if last is None else await asyncio.to_thread(last)

    with asyncio.Runner() as runner:
        runner.run(run.__aenter__())
        try:
            yield lambda: runner.run(work())
        finally:
            runner.run(run.__aexit__())
    if run.dead_letters or not run.receipt.complete:
        raise RuntimeError(f"{name}: the sink did not handle all: {run.receipt}")


def player(connection: Connection, play: Play, count: int, url: str) -> None:
    """Be the process of a side: make the load, then work it off whenever it is told a place's name."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    load = make_load(count)
    connection.send(None)
    while True:
        name = connection.recv()
        with play(load, Place(url, name)) as work:
            turn = _measure(work)
        connection.send(turn)


def _measure(work: Work) -> Turn:
    gc.collect()
    gc.freeze()  # the load is not looked through again and again
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before_mib = _status_mib("VmRSS")
    started_s, cpu_s = time.monotonic(), time.process_time()
    found = work()
    took_s, cpu_s = time.monotonic() - started_s, time.process_time() - cpu_s
    return Turn(found, took_s, cpu_s, max(_status_mib("VmHWM") - before_mib, 0.0))


def _status_mib(name: str) -> float:
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / _MIB if found else 0.0
