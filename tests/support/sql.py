"""A run for the consumer `sql`, and what its tables are to hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import sqlalchemy as sa

from phase_bus.consumer.consumer import Consumer, handlers_of, named
from phase_bus.core.position import Lineage, Segment
from phase_bus.core.records import RecordBatch
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhasePlan,
    PhaseProgress,
    PhaseRef,
    PhasesConfigured,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Records,
    RunComplete,
    RunStart,
    Summary,
)
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus_consumers.sql import SqlSink
from phase_bus_consumers.sql_rows import Tables

WARMUP, PROFILING = PhaseRef("warmup", "warmup", 0), PhaseRef("profiling", "profiling", 1)
JOURNAL = "journal-1"
NOT_ROWS = {"positions"}


def records(first: int, count: int, phase: PhaseRef = PROFILING) -> Records:
    """Return a batch with successes and failures, whole numbers and fractions, known and other metrics."""
    builder = RecordBuilder(lists="full")
    for number in range(first, first + count):
        fields = {
            "x_request_id": f"request-{number}",
            "worker_id": f"worker-{number % 3}",
            "request_start_ns": 1_700_000_000_000_000_000 + number,
            "request_end_ns": 1_700_000_000_000_000_001 + 2 * number,
            "was_cancelled": number % 11 == 0,
            "record_processor_id": "rp",
        }
        if number % 7 == 0:
            builder.add({"error_request_count": 1}, fields, ("Timeout", f"late: {number}", 504))
            continue
        metrics = {
            "request_latency": 1000 + number,
            "inter_token_latency": number / 3,
            "output_sequence_length": number % 50,
            "request_count": 1,
            "chunks": [number, number + 1],
        }
        builder.add(metrics, fields)
    tables, field_tables, errors, _ = builder.build()
    return Records(
        run_id="r1",
        ts_ns=first,
        phase=phase,
        count=count,
        metrics=tables,
        fields=field_tables,
        errors=errors,
    )


def stream(batches: int, rows: int = 40) -> list[tuple[int, EventBase]]:
    """Return the events of a run with their offsets: the same ones at every call."""
    plans = (PhasePlan(phase=WARMUP), PhasePlan(phase=PROFILING, expected_requests=9, request_rate=2.5))
    done = PhaseStats(sent=5, completed=4, errors=1, start_ns=1, sent_end_ns=2, end_ns=3)
    events: list[EventBase] = [
        RunStart(run_id="r1", ts_ns=1, producer="test", models=("m",), variation={"c": 8}),
        PhasesConfigured(run_id="r1", ts_ns=2, phases=plans),
        PhaseStart(run_id="r1", ts_ns=3, phase=PROFILING, stats=PhaseStats(start_ns=1)),
    ]
    for number in range(batches):
        events.append(records(number * rows, rows))
        if number % 5 == 0:
            stats = PhaseStats(sent=number, start_ns=1)
            events.append(PhaseProgress(run_id="r1", ts_ns=number, phase=PROFILING, stats=stats))
    events += [
        PhaseSendingComplete(run_id="r1", ts_ns=4, phase=PROFILING, stats=PhaseStats(sent=5)),
        PhaseTimeout(run_id="r1", ts_ns=5, phase=PROFILING, stats=done, requests_cut=2),
        PhaseComplete(run_id="r1", ts_ns=5, phase=PROFILING, stats=done),
        Summary(run_id="r1", ts_ns=6, producer="a", result={"n": 1}),
        Summary(run_id="r1", ts_ns=7, producer="a", final=True, result={"n": 2}),
        RunComplete(run_id="r1", ts_ns=8, status="completed", records=batches * rows),
    ]
    return list(enumerate(events, 1))


async def feed(sink: Consumer, events: list[tuple[int, EventBase]], pause_s: float = 0.0) -> None:
    """Hand a sink events as its runner would."""
    handlers = handlers_of(sink)
    for offset, event in events:
        sink.context.offset = offset
        await handlers.get(event.kind, handlers["*"])(event)
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def running(
    url: str, name: str = "sql", journal: str = JOURNAL, **options: Any
) -> AsyncIterator[SqlSink]:
    """A sink that is started, and stopped at the end."""
    sink = SqlSink(url, **options)
    named(sink, name).context.lineage = Lineage([Segment(journal, 1)] if journal else [])
    await sink.start()
    try:
        await sink.position()
        yield sink
    finally:
        await sink.stop()


def dump(url: str, prefix: str = "phase_bus_") -> dict[str, list[dict[str, Any]]]:
    """Return all tables, in the order of their keys."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    tables = Tables(prefix).metadata.sorted_tables
    try:
        with engine.connect() as connection:
            return {
                table.name.removeprefix(prefix): [
                    dict(row)
                    for row in connection.execute(
                        sa.select(table).order_by(*table.primary_key.columns)
                    ).mappings()
                ]
                for table in tables
            }
    finally:
        engine.dispose()


def plain(event: EventBase) -> Any:
    """Return an event as it comes out of JSON."""
    return msgspec.json.decode(msgspec.json.encode(event))


def check(url: str, events: list[tuple[int, EventBase]]) -> None:
    """See that every event and record is there once, with its content."""
    tables = dump(url)
    others = [(offset, event) for offset, event in events if not isinstance(event, Records)]
    assert [row["stream_offset"] for row in tables["events"]] == [offset for offset, _ in others]
    assert [row["event"] for row in tables["events"]] == [plain(e) for _, e in others]
    batches = [(offset, event) for offset, event in events if isinstance(event, Records)]
    assert len(tables["records"]) == sum(event.count for _, event in batches)
    expected = (
        (offset, row, record) for offset, event in batches for row, record in enumerate(RecordBatch(event))
    )
    for found, (offset, row, record) in zip(tables["records"], expected, strict=True):
        assert (found["stream_offset"], found["record_row"]) == (offset, row)
        assert found["x_request_id"] == record["x_request_id"]
        assert found["request_end_ns"] == record["request_end_ns"]
        assert found["was_cancelled"] == record["was_cancelled"]
        assert found["inter_token_latency"] == record.get("inter_token_latency")
        assert found["request_latency"] == record.get("request_latency")
        assert found["error_message"] == (record["error"] or {"message": None})["message"]
        assert found["metrics"].get("chunks") == record.get("chunks")
    (position,) = tables["positions"]
    assert (position["journal_id"], position["position"]) == (JOURNAL, events[-1][0])
    (run,) = tables["runs"]
    assert (run["status"], run["models"], run["started_ns"], run["ended_ns"]) == ("completed", ["m"], 1, 8)
    warmup, profiling = sorted(tables["phases"], key=lambda row: row["phase_index"])
    assert (warmup["state"], profiling["state"]) == (None, "complete")
    assert (profiling["sent"], profiling["requests_cut"], profiling["request_rate"]) == (5, 2, 2.5)
    assert [(row["final"], row["result"]) for row in tables["summaries"]] == [(True, {"n": 2})]
